"""Which checkpoints a run keeps: the best by validation and the last, which resumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.errors import InputError
from experiments.runs.identity import differing_keys
from experiments.training import preemption


@dataclass
class Checkpoints:
    """What is kept, and by what the best is chosen.

    Args:
        monitor: Validation metric that picks the best checkpoint. Never a test metric.
        mode: Whether more or less of it is better.
        every_n_steps: Write the checkpoint to resume from every so many optimizer steps (null: at each validation).

    Raises:
        InputError: The monitor is a test metric.
    """

    monitor: str = "val/rsum"
    mode: Literal["max", "min"] = "max"
    every_n_steps: int | None = None

    def __post_init__(self) -> None:
        if self.monitor.startswith(("test", "final")):
            raise InputError(f"checkpoint.monitor is {self.monitor!r}: the best checkpoint is never chosen on test; use val/...")


class Last(ModelCheckpoint):
    """The checkpoint that a run resumes from, saved so that a kill loses nothing.

    Where a validation follows a step, after the validation: resumed from before it, a run would never make it up, and that model
    could not become the best. Never in the middle of a step (Lightning does it after a resume): no checkpoint holds the gradients
    accumulated so far. And once more when the training ends: a run killed in its test has all of its training behind it.

    Under Slurm also where the ranks agree to leave. They do so before the next step, when this one's metrics are written.
    """

    agreement: preemption.Agreement | None = None
    _owed = False
    _leaving = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._leaving and not self._owed:
            raise preemption.Preempted(f"after step {trainer.global_step}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop, data, every = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher, self._every_n_train_steps
        if loop._should_accumulate():
            return
        self._owed |= every > 0 and trainer.global_step % every == 0
        if self.agreement is not None and not self._leaving and self.agreement(trainer.strategy.root_device):
            self._leaving = self._owed = True
        if self._owed and not (data is not None and loop._should_check_val_fx(data)):
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            if trainer.fit_loop.epoch_loop._should_accumulate():
                self._owed |= not self._every_n_train_steps
                return
            if self._owed:
                self._save(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save(self, trainer: pl.Trainer) -> None:
        self._owed = False
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class RememberConfig(Callback):
    """Puts the model and data configuration into checkpoints, and refuses to resume under another one."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = {key: config.get(key) for key in ("model", "data")}

    def on_save_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["crosslight_config"] = self.config

    def on_load_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        theirs = checkpoint.get("crosslight_config")
        if trainer.state.fn == "fit" and theirs is not None:
            names = differing_keys(self.config, theirs)
            if names:
                raise InputError(
                    f"the checkpoint was made with another configuration (it differs in: {', '.join(names[:6])}), so it cannot "
                    "be resumed under this one. To start new training from its weights, use --model.init_args.init_from."
                )
