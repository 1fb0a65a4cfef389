"""Exponential moving average of what trains: theta_ema <- decay * theta_ema + (1 - decay) * theta, after optimizer steps."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from datamodules.errors import InputError
from lightning_modules.checkpoints.trainable import trainable_state_dict

CURRENT = "current_model_state"  # in checkpoints: the weights that the average, which is in their place there, is of


class EMA(Callback):
    """Validates, saves and tests the average of the weights, and goes on training the weights themselves.

    With the options of Lightning's `EMAWeightAveraging`, which averages the frozen weights too: they take memory twice and drift
    by rounding, until the backbone is another one. Here only what trains is averaged, so that it fits every tuning. Before the
    average begins, it is the weights themselves.

    Args:
        decay: Of the average, in (0, 1).
        update_every_n_steps: Optimizer steps between two updates.
        update_starting_at_step: Optimizer steps before the average begins; null: with the first.
        update_starting_at_epoch: Epochs before the average begins.
        device: Where the average is kept; null: where the model is.
        use_buffers: Average the statistics of trained batch norms as well, instead of taking the last ones.

    Raises:
        InputError: An option is out of range, or both ways to begin are given.
    """

    def __init__(
        self,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        device: str | None = None,
        use_buffers: bool = True,
    ) -> None:
        if not 0 < decay < 1:
            raise InputError(f"decay of the EMA is {decay}; give a number between 0 and 1, for example 0.999.")
        if update_every_n_steps < 1:
            raise InputError(f"update_every_n_steps of the EMA is {update_every_n_steps}; give at least 1.")
        if update_starting_at_step is not None and update_starting_at_epoch is not None:
            raise InputError("the EMA has both update_starting_at_step and update_starting_at_epoch; give one of them.")
        if device is not None:
            _require_device(device)
        self.decay = decay
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch
        self.device = device
        self.use_buffers = use_buffers
        self._options = {  # that decide what the average is
            "decay": decay,
            "update_every_n_steps": update_every_n_steps,
            "update_starting_at_step": update_starting_at_step,
            "update_starting_at_epoch": update_starting_at_epoch,
            "use_buffers": use_buffers,
        }
        self._update = get_ema_multi_avg_fn(decay)
        self._average: dict[str, Tensor] | None = None  # None: it has not begun
        self._current: dict[str, Tensor] = {}  # the weights themselves, not copies
        self._averaged: list[str] = []
        self._taken: list[str] = []  # the others, as they are
        self._swapped = False
        self._seen_step = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find what trains, now that it is where it will stay.

        Raises:
            InputError: The training ends before the average would begin, or a checkpoint of weights alone would not have it.
        """
        self._require_beginning(trainer)
        alone = any(getattr(callback, "save_weights_only", False) for callback in trainer.callbacks)
        if alone and not getattr(pl_module, "saves_average", False):
            raise InputError(
                f"save_weights_only of a checkpoint callback beside the EMA: Lightning asks no callback then, so weights of "
                f"{type(pl_module).__name__} would be kept that were not validated. Set save_weights_only to false."
            )
        self._current = trainable_state_dict(pl_module)
        parameters = dict(pl_module.named_parameters(remove_duplicate=False))
        self._averaged = [
            name for name, value in self._current.items()
            if value.is_floating_point() and (self.use_buffers or name in parameters)
        ]  # fmt: skip
        self._taken = [name for name in self._current if name not in set(self._averaged)]
        if self._average is not None:  # of a checkpoint
            self._average = {name: value.to(self._place(name)) for name, value in self._average.items()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen_step or not self._due(trainer.global_step - 1, trainer.current_epoch):
            return
        self._seen_step = trainer.global_step
        if self._average is None:
            self._average = {name: value.clone().to(self._place(name)) for name, value in self._current.items()}
            return
        average = self._average
        current = [self._current[name].to(average[name].device) for name in self._averaged]
        self._update([average[name] for name in self._averaged], current, self._seen_step)
        for name in self._taken:
            average[name].copy_(self._current[name])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's swaps back before the module's `on_validation_epoch_end`, which may still compute with the network."""
        self._swap(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The module is what was validated, as its checkpoints are."""
        if self._average is not None:
            for name, value in self._average.items():
                self._current[name].copy_(value)

    def _swap(self, trainer: pl.Trainer) -> None:
        if trainer.state.fn != TrainerFn.FITTING or self._average is None:
            return
        self._swapped = not self._swapped
        for name, current in self._current.items():
            kept = current.clone()
            current.copy_(self._average[name])
            self._average[name].copy_(kept)

    def _due(self, step: int, epoch: int) -> bool:
        begun = step >= (self.update_starting_at_step or 0) and epoch >= (self.update_starting_at_epoch or 0)
        return begun and step % self.update_every_n_steps == 0

    def _require_beginning(self, trainer: pl.Trainer) -> None:
        step, epoch = self.update_starting_at_step, self.update_starting_at_epoch
        if step is not None and step >= trainer.estimated_stepping_batches:
            steps = trainer.estimated_stepping_batches
            raise InputError(f"the EMA would begin at step {step} (from 0), and the training ends after {steps}: begin earlier.")
        epochs = trainer.max_epochs
        if epoch is not None and epochs not in (None, -1) and epoch >= epochs:
            raise InputError(f"the EMA would begin at epoch {epoch} (from 0), and the training has {epochs}: begin earlier.")

    def _place(self, name: str) -> torch.device:
        return torch.device(self.device) if self.device is not None else self._current[name].device

    # -------------------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"seen_step": self._seen_step, "options": self._options}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen_step = state_dict["seen_step"]

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """The average in place of the weights, as it was validated, and the weights beside it, to go on from."""
        if current := self.put_into(trainer, checkpoint):
            checkpoint[CURRENT] = current

    def put_into(self, trainer: pl.Trainer, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
        """Put the average in place of the weights of a checkpoint.

        Args:
            trainer: That saves it.
            checkpoint: Its `state_dict` is replaced.

        Returns:
            The weights; empty where there is no average, or none but the average.
        """
        if self._average is None or trainer.state.fn != TrainerFn.FITTING:
            return {}
        ours, other = {name: checkpoint["state_dict"][name] for name in self._average}, self._average
        average, current = (ours, other) if self._swapped else (other, ours)
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **average}
        return current

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from the weights. What is only tested stays the average.

        Raises:
            InputError: The training would go on with an average that was begun with other options.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        begun = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("options", self._options)
        if differing := [f"{name} {begun.get(name)}" for name, value in self._options.items() if begun.get(name) != value]:
            raise InputError(
                f"checkpoint {trainer.ckpt_path} has an average (EMA) that began with {', '.join(differing)}: go on with that."
            )
        if (current := checkpoint.get(CURRENT)) is not None:
            self._average = {name: checkpoint["state_dict"][name].clone() for name in current}
            pl_module.load_state_dict(current, strict=False)


def _require_device(device: str) -> None:
    """Raises InputError: there is no such device here."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = None
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise InputError(
            f"device of the EMA is {device!r}, which this machine has not; give cpu, or null for where the model is."
        )
