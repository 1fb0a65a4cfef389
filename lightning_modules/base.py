"""What all tuning shares: which part of the network learns, its optimizer, and checkpoints that hold only what was trained."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from datamodules.errors import InputError, some
from datamodules.inputs import ImageInput
from datamodules.loading.tokens import Tokenizer
from datamodules.records import Positives
from lightning_modules import collectives, optimization
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.tuning import TrainHeads, TuningMode, count_parameters, freeze_encoder, set_mode, set_tuning
from lightning_modules.callbacks.ema import CURRENT, EMA
from lightning_modules.callbacks.finite_loss import FiniteLoss, require_sound
from lightning_modules.callbacks.gradients import EveryParameterLearns
from lightning_modules.checkpoints.fill import fill
from lightning_modules.checkpoints.fresh import note_brought, require_started
from lightning_modules.checkpoints.init_from import require_backbone, short_fingerprint, start_from
from lightning_modules.checkpoints.model_card import Task
from lightning_modules.checkpoints.trainable import load_objective, load_trainable, split_objective, trainable_names
from lightning_modules.contract import require_signatures
from lightning_modules.metrics.positives import positive_notes
from lightning_modules.metrics.recalls import certain_recalls, fold_notes, require_folds
from lightning_modules.networks.half_weights import halve_frozen
from lightning_modules.objectives.objective import Objective

Better = Literal["max", "min"] | None


class TunedModule(pl.LightningModule):
    """A network that is tuned fully, through an adapter, at its heads, or not at all. See `RetrievalModule` for the arguments."""

    protocol: str | None = None  # how it is tested, in words, for results.json
    uses: str = "see the methods of its class"  # what a trained one is good for, where it was asked for something else
    task: Task = Task()  # for the card of an export: what it is found by, and the lines that use it
    needs_captions: frozenset[str] = frozenset({"val", "test"})  # splits of which it measures nothing without captions
    no_result: str | None = None  # why nothing that it computes is a result, where it was loaded from stand-ins or a rehearsal
    saves_average: bool = True  # a checkpoint of weights alone has the average of callbacks.ema too
    _queries: dict[str, Tensor]  # of the last evaluation, when there was one: a rank or score for each query, or image
    terms: dict[str, Tensor]  # of the batch that trains, on this process: what an error says of its loss

    def __init__(
        self,
        network: nn.Module,
        adapter: Adapter | None,
        tuning: TuningMode,
        train_heads: TrainHeads,
        optimization: optimization.Optimization,
        init_from: str | None,
        eval_frozen: bool,
        objective: Objective | None = None,
        frozen_tower: Literal["image", "text"] | None = None,
        frozen_dtype: Literal["bfloat16"] | None = None,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.adapter = adapter
        self.tuning = tuning
        self.train_heads = train_heads
        self.optimization = optimization
        self.init_from = init_from
        self.eval_frozen = eval_frozen
        self.frozen_tower = frozen_tower
        self._queries = {}
        self._notes: dict[str, Any] = {}
        self._remarked: set[str] = set()  # what an evaluation had a remark on
        self._positives: Mapping[str, Positives] = {}  # of the test that is going on
        self.terms = {}
        self._script_seed: int | None = None  # of the draws of this training, where Lightning's seed_everything set none
        self._resumed_seed: int | None = None  # likewise, of the checkpoint that it goes on from
        if adapter is not None:
            require_signatures(adapter, Adapter, "model.adapter")
        fill(network)
        if adapter is not None:
            adapter.inject(network)
            adapter.describe()  # an adapter that could not be exported is refused now, and not after training
            _require_effect(network, adapter)
        if init_from is not None:
            start_from(network, adapter, init_from, objective)
        self.counts = set_tuning(network, adapter, tuning, train_heads)
        self.objective: Any = objective
        if frozen_tower is not None:
            self.counts = freeze_encoder(network, adapter, frozen_tower)
        unread = _unread(self.network, objective)
        for name in unread:
            network.get_parameter(name).requires_grad_(False)
        self.counts = count_parameters(network, adapter) if unread else self.counts
        require_started(network, tuning, unread)
        if objective is not None:
            if self.counts.trainable == 0:  # a loss alone has nothing to learn
                objective.requires_grad_(False)
            self.counts = self.counts.with_objective(objective)
        if frozen_dtype is not None:
            _halve(network, "" if tuning != "full" or frozen_tower else "tuning is full")
        self.strict_loading = False  # checkpoints hold what is trained; on_load_checkpoint checks that nothing else is missing

    def configure_callbacks(self) -> list[Callback]:
        """What every training is watched by: Lightning takes them in beside the trainer's own."""
        watched = any(isinstance(callback, FiniteLoss) for callback in self.trainer.callbacks)
        return [] if watched else [EveryParameterLearns(), FiniteLoss()]

    def on_fit_start(self) -> None:
        resumed, self._resumed_seed, self._script_seed = self._resumed_seed, None, None
        if "PL_GLOBAL_SEED" not in os.environ:  # as in a script: what torch.manual_seed said, of the first process
            self._script_seed = collectives.told_by(torch.initial_seed()) if resumed is None else resumed
        self.train()  # Lightning trains in whatever mode it is given: a network that was built by configuration is in train mode
        if (folds := getattr(self, "folds", None)) is not None:
            data: Any = getattr(self.trainer, "datamodule", None)
            if hasattr(data, "splits") and "test" in data.splits():
                require_folds(folds, len(data.records("test")))  # and not when the training is over

    def train(self, mode: bool = True) -> TunedModule:
        super().train(mode)
        if mode and self.eval_frozen and (self.tuning != "full" or self.frozen_tower is not None):
            set_mode(self.network, True, self.adapter)
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout is a function of (seed, epoch, batch, rank), so a run resumed after SIGKILL draws what it would have drawn.
        seed = self._script_seed if self._script_seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        where = (seed, self.trainer.current_epoch, batch_idx, self.trainer.global_rank)
        seed_draws(where)

    def configure_optimizers(self) -> dict[str, Any]:
        """Over the network and the objective.

        Raises:
            InputError: Something else of the module would train, which no optimizer and no checkpoint would know.
        """
        trained = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        if stray := [name for name in trained if not name.startswith(("network.", "objective."))]:
            raise InputError(
                f"model: {type(self).__module__}.{type(self).__name__} has parameters that are neither its network's nor its "
                f"objective's ({some(stray)}), so nothing would train or keep them. Put them into one of these."
            )
        steps = self.trainer.estimated_stepping_batches
        if steps == math.inf:
            raise InputError(
                "the training has no last step, and the schedule of the learning rate needs one: give --trainer.max_epochs or "
                "--trainer.max_steps beside --trainer.max_time."
            )
        total = int(steps)
        optimizer, schedule = optimization.build(self.network, self.optimization, total, self.owns, self.objective, self._spares)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """As Lightning, which refuses to clip for a fused optimizer in any mixed precision, where only fp16 scales gradients.

        Raises:
            InputError: A fused optimizer at precision 16-mixed: its gradients are still scaled here.
        """
        if not gradient_clip_val:
            return
        if optimizer.defaults.get("fused") and self.trainer.precision == "16-mixed":
            raise InputError(
                "trainer.gradient_clip_val at precision 16-mixed needs an optimizer that is not fused: set "
                "model.optimization.fused to false, or use bf16-mixed"
            )
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def log_terms(self, terms: dict[str, Tensor], batch_size: int) -> None:
        """Log the named terms of a step, averaged over processes: a rank's own loss is of its rows only. One reduction for all of
        them, where Lightning's `sync_dist` makes one with a barrier for each."""
        self.terms = {name: value.detach() for name, value in terms.items()}
        values = collectives.reduced(torch.stack([value.detach().float() for value in terms.values()]))
        values /= collectives.world_size()
        logged = {f"train/{name}": value for name, value in zip(terms, values, strict=True)}
        self.log_dict(logged, batch_size=batch_size, prog_bar=True)

    def owns(self, name: str) -> bool:
        """Whether a parameter of the network belongs to the adapter."""
        return self.adapter is not None and self.adapter.owns(name)

    def _spares(self, name: str) -> bool:
        """Whether weight decay leaves a parameter of the adapter alone."""
        return self.adapter is not None and self.owns(name) and self.adapter.spares(name)

    # ---------------------------------------------------------------------------------------------------- use

    def encode_images(self, paths: Sequence[str | Path], batch_size: int = 32) -> Tensor:
        """Unit vectors of image files, where the model has two encoders (`RetrievalModule`)."""
        self._refuse("gives an image no vector")

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Unit vectors of texts, where the model has two encoders (`RetrievalModule`)."""
        self._refuse("gives a text no vector")

    def score_pairs(self, paths: Sequence[str | Path], texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Scores of image files with texts, where the model looks at both together (`RankingModule`)."""
        self._refuse("scores no pairs")

    def caption(self, paths: Sequence[str | Path], batch_size: int = 16) -> list[str]:
        """A caption of each image file, where the model writes (`CaptioningModule`)."""
        self._refuse("writes no captions")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What reads texts for this network.

        Raises:
            InputError: It names none, or there is none.
        """
        return Tokenizer(self.network.inputs.text)

    @property
    def image_input(self) -> ImageInput:
        """How images become pixels.

        Raises:
            InputError: The network takes region features.
        """
        spec: ImageInput | None = self.network.inputs.image
        if spec is None:
            raise InputError(f"{type(self.network).__name__} takes region features of images, and no image files.")
        return spec

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"this model ({type(self.network).__name__}) {what}: {self.uses}.")

    # --------------------------------------------------------------------------------------------- evaluation

    @property
    def validation_metrics(self) -> Mapping[str, Better] | None:
        """What is logged under val/, and whether "max" or "min" of it is better (None: it depends). A module that says it has a
        mistyped monitor refused before the training; None = it does not say."""
        return None

    def _evaluation_step(self, batch: Any) -> None:
        """Take in a batch of validation or test."""
        raise NotImplementedError

    def _evaluation_end(self, stage: str) -> None:
        """Log the metrics of stage "val" or "test", and set `_queries`."""
        raise NotImplementedError

    def per_query(self) -> dict[str, Any]:
        """Of the last evaluation, as arrays: ranks under the names of `RetrievalRecall.query_ranks`, or an image's scores."""
        return {name: values.cpu().numpy() for name, values in self._queries.items()}

    def _note_folds(self, folds: int | None, images: int) -> None:
        """Have results.json say how the recalls over folds of so many images were made; None: there are none."""
        self._notes = {} if folds is None else fold_notes(folds, images)
        self.protocol = type(self).protocol if folds is None else f"{type(self).protocol}; folds_...: {self._notes['folds']}"

    def _note_remarks(self, stage: str, remarks: Mapping[str, str]) -> None:
        """Have results.json say what numbers of "val" or "test" do not show, by what the remark is on; all validations print one
        once."""
        if not remarks:
            return
        self._notes = {**self._notes, "remarks": {**self._notes.get("remarks", {}), **remarks}}
        for name, remark in remarks.items():
            if self.trainer.is_global_zero and (stage == "test" or name not in self._remarked):
                print(f"crosslight: {stage}, {name}: {remark}")
        self._remarked |= remarks.keys()

    def _note_certain_recalls(self, stage: str, images: int) -> None:
        """Have results.json say which recalls over so many images are 100 for any model. After `_queries` is set."""
        remark = certain_recalls(images, self._queries["t2i_image_index"])
        self._note_remarks(stage, {"recalls": remark} if remark else {})

    def _take_positives(self) -> None:
        """Further right answers of the data that are about to be tested, before anything takes time.

        Raises:
            InputError: Their files cannot be used.
        """
        find = getattr(getattr(self.trainer, "datamodule", None), "split_positives", None)
        self._positives = {} if find is None else find("test")

    def _note_positives(self) -> None:
        """Have results.json say which further right answers there are."""
        notes: dict[str, Any] = positive_notes(self._positives)
        columns = {**self._notes.get("columns", {}), **notes.get("columns", {})}
        self._notes = {**self._notes, **notes, **({"columns": columns} if columns else {})}

    def evaluation_notes(self) -> dict[str, Any]:
        """What results.json says of the last evaluation beside its metrics."""
        return self._notes

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        collectives.meet()  # a resumed process may have nothing left to write, where another has an hour of it
        self._evaluation_end("val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        collectives.meet()
        self._evaluation_end("test")

    # -------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained, and what identifies the backbone it was trained on. A callback may have put other values there,
        as an average of the weights does.

        Raises:
            InputError: It is not finite; what was saved before stays.
        """
        if "state_dict" not in checkpoint:
            checkpoint["state_dict"] = self.state_dict()
        if "callbacks" not in checkpoint:  # of weights alone: Lightning asks no callback for the ones that were validated
            for average in self._averages():
                average.put_into(self.trainer, checkpoint)
        state = checkpoint["state_dict"]
        kept = {f"network.{name}" for name in trainable_names(self.network)}
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in kept or k.startswith("objective.")}
        require_sound(checkpoint["state_dict"])
        checkpoint["crosslight_backbone"] = short_fingerprint(self.network)
        if self._script_seed is not None:
            checkpoint["crosslight_seed"] = self._script_seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what was trained.

        Raises:
            InputError: It is of another network, adapter or objective, or training would go on from an average.
        """
        state, objective = split_objective({k.removeprefix("network."): v for k, v in checkpoint["state_dict"].items()})
        path = getattr(self._trainer, "ckpt_path", None)  # no trainer when `lightning_modules.load` reads it
        source = f"checkpoint {path}" if path else "the checkpoint"
        goes_on = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        self._resumed_seed = checkpoint.get("crosslight_seed") if goes_on else None
        if CURRENT in checkpoint and goes_on and not self._averages():
            raise InputError(
                f"{source} holds an average of the weights (EMA), which would be taken for the weights: go on with the EMA of "
                "its training among the trainer's callbacks, or start new training from it (model.init_from)."
            )
        require_backbone(self.network, checkpoint.get("crosslight_backbone"), state, source)
        load_trainable(self.network, state, source)
        note_brought(self.network, state.keys())
        load_objective(self.objective, objective, source)

    def _averages(self) -> list[EMA]:
        return [] if self._trainer is None else [callback for callback in self._trainer.callbacks if isinstance(callback, EMA)]


def _unread(network: Any, objective: Any) -> set[str]:
    """Temperature and bias of a network, where its objective does not look at them."""
    unread = set() if getattr(objective, "uses_scale", True) else {"logit_scale"}
    if getattr(network, "logit_bias", None) is not None and not getattr(objective, "uses_bias", False):
        unread.add("logit_bias")
    return unread


def _halve(network: nn.Module, nothing: str) -> None:
    """Frozen weights in 16 bits. Raises InputError: there are none, for the reason `nothing`, or because of their kind."""
    if nothing or not halve_frozen(network):
        why = nothing or "no linear layer, embedding or convolution is frozen"
        raise InputError(
            f"model.frozen_dtype: {why}, so there is nothing to keep in 16 bits. Set it to null, or let less train "
            "(model.tuning, model.frozen_tower)."
        )


def _require_effect(network: nn.Module, adapter: Adapter) -> None:
    """Raises InputError: parts of the adapter are where the network says that nothing takes part in the task."""
    unused: Iterable[str] = getattr(network, "unused_parameters", frozenset)()
    if idle := sorted(name for name in unused if adapter.owns(name)):
        raise InputError(
            f"model.adapter: {type(adapter).__name__} went into parts of {type(network).__name__} that take no part in its task "
            f"({some(idle)}), where it learns nothing. Choose other parts (its towers, layers or targets)."
        )


def seed_draws(where: tuple[Any, ...]) -> None:
    """Make what is drawn next a function of `where`."""
    torch.manual_seed(draw_seed(where))


def draw_seed(where: tuple[Any, ...]) -> int:
    """A seed that is a function of `where`."""
    return int.from_bytes(hashlib.blake2b(repr(where).encode(), digest_size=7).digest())
