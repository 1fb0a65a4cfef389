"""A loss that is not finite ends the run at its step, before anything of that step enters the weights.

The question is asked when all micro-batches of an optimizer step have their losses, and answered before the optimizer steps. In
between lies the backward pass of the last one, so a GPU is not waited for: the answer is copied to the host behind the forward
pass, and is there while the backward pass, already launched, goes on. Several processes ask together (one number, before the
backward pass), so that all of them end at the same step, wherever the loss was.

The loss is what counts: fp16 skips steps whose scaled gradients overflow by design, and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from datamodules.errors import AgreedError, InputError, some
from lightning_modules import collectives

_SHOWN = 16  # ids of images or captions in the message


@dataclass(frozen=True)
class MicroBatch:
    """What is kept of a micro-batch until its step is done: ids and a few numbers, no images."""

    index: int
    images: tuple[str, ...]
    captions: tuple[str, ...]
    terms: dict[str, Tensor]


class FiniteLoss(Callback):
    """See the top of the file. `TunedModule` brings it along, the command line for a module of one's own."""

    def __init__(self) -> None:
        self._done: list[MicroBatch] = []  # of the optimizer step that goes on
        self._batch: tuple[int, Any] = (0, None)
        self._answer: tuple[Tensor, torch.cuda.Event | None] | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch_idx, batch
        if hasattr(pl_module, "terms"):
            pl_module.terms = {}  # those of the batch before are not this one's

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        index, batch = self._batch
        terms: dict[str, Tensor] = getattr(pl_module, "terms", {})
        images, texts = getattr(batch, "images", None), getattr(batch, "texts", None)
        self._done.append(
            MicroBatch(
                index,
                getattr(images, "image_ids", ()),
                getattr(texts, "caption_ids", ()),
                {**terms, "loss": loss.detach()},  # Lightning's loss last: it is what trains
            )
        )
        if not trainer.fit_loop._should_accumulate():
            self._answer = self._ask()

    def _ask(self) -> tuple[Tensor, torch.cuda.Event | None]:
        losses = torch.stack([each.terms["loss"].float() for each in self._done])
        wrong = collectives.reduced(losses.isfinite().logical_not().any().int(), "max")
        copied = None
        if wrong.is_cuda:
            wrong = wrong.to("cpu", non_blocking=True)  # into pinned memory
            copied = torch.cuda.Event()
            copied.record()
        return wrong, copied

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Raises AgreedError, on every process alike: the loss of one of them is not finite."""
        if not self._done:
            return
        wrong, copied = self._answer or self._ask()  # not asked yet: the last micro-batch gave no loss
        done, self._done, self._answer = self._done, [], None
        if copied is not None:
            copied.synchronize()
        if bool(wrong):
            raise AgreedError(self._message(trainer, pl_module, done))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._batch = 0, None  # its memory is the next batch's

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raises InputError, on every process alike: what trains is not finite (gradients can be so where the loss was not)."""
        trained = {name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
        require_sound({name: value for name, value in checkpoint["state_dict"].items() if name in trained})

    def _message(self, trainer: pl.Trainer, module: pl.LightningModule, done: list[MicroBatch]) -> str:
        own = [_described(each, trainer.current_epoch) for each in done if not bool(each.terms["loss"].isfinite())]
        if own and (unsound := _unsound_images(self._batch[1])):
            own[-1] += f"; values that are not finite came with images {_listed(unsound)}"
        told: list[list[str]] = collectives.told_objects(own)
        where = "; ".join(
            part if len(told) == 1 else f"process {rank}, {part}" for rank, each in enumerate(told) for part in each
        )
        spoilt = [name for name, parameter in module.named_parameters() if not bool(parameter.isfinite().all())]
        why = (
            f"The weights were not finite before this step ({spoilt[0]}): a step before it had such gradients"
            if spoilt
            else "Nothing of this step entered the weights"
        )
        return (
            f"the loss is not finite at step {trainer.global_step} (counted from 0, as in metrics.csv): {where}. {why}, and no "
            "checkpoint holds it. Lower the learning rate (model.optimization.lr) or set trainer.gradient_clip_val, and see "
            "whether these images and captions are sound (`crosslight data check`)."
        )


def require_sound(state: dict[str, Tensor]) -> None:
    """Refuse to keep weights that are not finite: gradients can be so where the loss was not.

    Raises:
        InputError: Names some of them.
    """
    numbers = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    sums = [tensor.sum(dtype=torch.float32) for tensor in numbers.values()]  # pass NaN and infinity on, in one look at a GPU
    if not sums or bool(torch.stack(sums).isfinite().all()):
        return
    if lost := [name for name, tensor in numbers.items() if not bool(tensor.isfinite().all())]:
        raise InputError(
            f"{len(lost)} trained tensors are not finite ({some(lost)}), so this checkpoint is not written, and what was saved "
            "before stays. Lower the learning rate (model.optimization.lr) or set trainer.gradient_clip_val."
        )


def _described(part: MicroBatch, epoch: int) -> str:
    terms = ", ".join(f"{name} {float(value):.6g}" for name, value in part.terms.items())
    ids = [f"{what} {_listed(names)}" for what, names in (("images", part.images), ("captions", part.captions)) if names]
    return ", ".join([f"batch {part.index} of epoch {epoch} ({terms})", *ids])


def _listed(names: tuple[str, ...] | list[str]) -> str:
    text = ", ".join(map(str, names[:_SHOWN]))
    return text if len(names) <= _SHOWN else f"{text} and {len(names) - _SHOWN} more"


def _unsound_images(batch: Any) -> list[str]:
    """Ids of the images whose pixels, regions or visual tokens are not finite."""
    images = getattr(batch, "images", None)
    regions = getattr(images, "regions", None)
    parts = [getattr(images, "pixels_B3HW", None), getattr(images, "tokens_BVD", None)]
    parts += [getattr(regions, "features_BRD", None), getattr(regions, "boxes_BR7", None)]
    rows = [part.flatten(1).isfinite().all(1).tolist() for part in parts if part is not None]
    ids: tuple[str, ...] = getattr(images, "image_ids", ())
    return [name for name, *sound in zip(ids, *rows, strict=True) if not all(sound)]
