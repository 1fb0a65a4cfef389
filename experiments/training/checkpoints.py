"""Which checkpoints a run keeps: the best by validation and the last, which resumes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file
from experiments.runs.identity import deciding, differing_keys, listed
from experiments.training import preemption
from experiments.training.loggers import MetricsCSV
from lightning_modules.callbacks.ema import CURRENT, EMA
from lightning_modules.checkpoints.weights import write_torch


@dataclass
class Checkpoints:
    """What is kept, and by what the best is chosen.

    Args:
        monitor: Validation metric that picks the best checkpoint. Never a test metric.
        mode: Whether more or less of it is better.
        every_n_steps: Write the checkpoint to resume from every so many optimizer steps too, and not only after each validation
            and at the end of each epoch.

    Raises:
        InputError: The monitor is a test metric.
    """

    monitor: str = "val/rsum"
    mode: Literal["max", "min"] = "max"
    every_n_steps: int | None = None

    def __post_init__(self) -> None:
        if self.monitor.startswith(("test", "final")):
            raise InputError(f"checkpoint.monitor is {self.monitor!r}: the best checkpoint is never chosen on test; use val/...")


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints are there whole or not at all. Lightning's are written in the folder for temporary files and moved, which is a
    copy where that is on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_torch(checkpoint, file)


class Best(ModelCheckpoint):
    """The checkpoint of the best validation, written as soon as it is over: with the weights that were validated."""

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        super().__init__(
            dirpath=folder, filename="best", monitor=monitor, mode=mode, save_top_k=1, auto_insert_metric_name=False,
            enable_version_counter=False, save_on_train_epoch_end=False,
        )  # fmt: skip


class ResumePoint(Callback):
    """Writes the checkpoint that a run resumes from, so that a kill at any moment loses nothing and repeats nothing.

    It is written between two steps, when nothing of the last one is left to do: all that learns from its metrics has, and they
    are in metrics.csv (`loops.py` says when). That is after each validation, at the end of each epoch and every `every_n_steps`
    optimizer steps, never while gradients accumulate. Under Slurm also where the ranks agree to leave.

    It holds what Lightning forgets: that the training was told to stop, the metrics that callbacks look at, how many rows of
    metrics.csv there were. Paths in the run folder are kept relative to it: the folder may be moved.

    Args:
        run_folder: Where the run is now.
        config: The run's configuration.
        every_n_steps: See `Checkpoints`.
        agreement: Whether the ranks leave; None outside of Slurm.
    """

    def __init__(
        self, run_folder: Path, config: dict[str, Any], every_n_steps: int | None, agreement: preemption.Agreement | None
    ) -> None:
        self.file = run_folder / "checkpoints" / "last.ckpt"
        self.run_folder = run_folder
        self.config = deciding({key: config.get(key) for key in ("model", "data")}) | {"trainer": _steps_of_an_epoch(config)}
        self.every_n_steps = every_n_steps
        self.agreement = agreement
        self._owed = self._leaving = self._saving = False
        self._resumed: dict[str, Any] = {}

    # ---------------------------------------------------------------------------------------------- when it is written

    def on_validation_end(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        self._owed |= trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking

    def batch_ended(self, trainer: pl.Trainer, epoch_ends: bool) -> None:
        """Between two batches.

        Raises:
            Preempted: The ranks leave, and the checkpoint is on disk.
        """
        if trainer.fit_loop._should_accumulate():
            return
        self._owed |= bool(self.every_n_steps) and trainer.global_step % (self.every_n_steps or 1) == 0
        if self.agreement is not None and not self._leaving:
            self._leaving = self.agreement(trainer.strategy.root_device)
        if not epoch_ends and (self._owed or self._leaving):
            self._save(trainer)

    def epoch_ended(self, trainer: pl.Trainer) -> None:
        """Between two epochs, and after the last one.

        Raises:
            Preempted: The ranks leave, and the checkpoint is on disk.
        """
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        self._owed = False
        if trainer.fast_dev_run:
            return
        self._saving = True
        try:
            trainer.save_checkpoint(self.file, weights_only=False)
        finally:
            self._saving = False
        if self._leaving:
            raise preemption.Preempted(f"after step {trainer.global_step}")

    # ------------------------------------------------------------------------------------------------- what is in it

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["crosslight_config"] = self.config
        checkpoint["callbacks"] = _replaced(checkpoint["callbacks"], self._inside)
        if self._saving:
            rows = [logger.rows for logger in trainer.loggers if trainer.is_global_zero and isinstance(logger, MetricsCSV)]
            checkpoint["crosslight_resume"] = {
                "should_stop": bool(trainer.should_stop),
                "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
                "rows": rows[0] if rows else 0,
            }

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up the state.

        Raises:
            InputError: The checkpoint is of another configuration, none to resume from, or one whose best one is not there.
        """
        there = Path(str(trainer.ckpt_path))
        checkpoint["callbacks"] = _replaced(checkpoint.get("callbacks", {}), self._here)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        names = differing_keys(self.config, {**self.config, **(checkpoint.get("crosslight_config") or {})})
        if names:
            raise InputError(
                f"checkpoint {there} was made with another configuration (it differs in: {', '.join(names[:6])}), so it cannot "
                "be resumed under this one. To start new training from its weights, use --model.init_args.init_from."
            )
        if "crosslight_resume" not in checkpoint:
            raise InputError(
                f"checkpoint {there} is of a validation, in the middle of what a run does. Resume from the last.ckpt beside "
                "it, or start new training from its weights with --model.init_args.init_from."
            )
        if CURRENT in checkpoint and not any(isinstance(callback, EMA) for callback in trainer.callbacks):
            raise InputError(
                f"checkpoint {there} holds an average of the weights (EMA), which would be taken for the weights: go on with the "
                f"{EMA.__name__} of its configuration in trainer.callbacks, or start new training from it with "
                "--model.init_args.init_from."
            )
        self._resumed = checkpoint["crosslight_resume"]
        trainer.should_stop = self._resumed["should_stop"]
        self._require_best(trainer, there, checkpoint["callbacks"])

    def _require_best(self, trainer: pl.Trainer, there: Path, states: dict[str, Any]) -> None:
        """The best checkpoint so far is here; one that lies beside the checkpoint of another folder is copied from there."""
        named = {state.get("best_model_path") for state in states.values() if isinstance(state, dict)}
        for best in sorted(Path(name) for name in named if name):
            if best.exists() or not trainer.is_global_zero or self.run_folder not in best.parents:
                continue
            if not (beside := there.parent / best.name).exists():
                raise InputError(f"{beside} is missing: {there} says that it is the best so far. Put both where they were.")
            best.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(best) as part:
                shutil.copyfile(beside, part)

    def on_train_start(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        """Forget what was logged after the checkpoint, which comes again. (Not called where the training is over.)"""
        trainer._logger_connector._callback_metrics.update(self._resumed.get("metrics", {}))
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.keep(self._resumed.get("rows", 0))

    def _inside(self, text: str) -> str:
        root = str(self.run_folder)
        return _RUN_FOLDER + text[len(root) :] if text == root or text.startswith(f"{root}/") else text

    def _here(self, text: str) -> str:
        return str(self.run_folder) + text[len(_RUN_FOLDER) :] if text.startswith(_RUN_FOLDER) else text


_RUN_FOLDER = "{run folder}"
# Of the trainer, with the values that null stands for: with other steps an epoch, the steps that are done are other epochs, and
# the schedule goes on from a place where it never was. (Devices share the same global batch; overfit_batches is refused anyhow.)
_EPOCH: dict[str, Any] = {"accumulate_grad_batches": 1, "limit_train_batches": 1.0}


def _steps_of_an_epoch(config: dict[str, Any]) -> dict[str, Any]:
    """What of the trainer's options decides how many steps an epoch has."""
    given = config.get("trainer") or {}
    options = {key: all_of_it if given.get(key) is None else given[key] for key, all_of_it in _EPOCH.items()}
    if schedulers := [one for one in listed(given.get("callbacks")) if "GradientAccumulationScheduler" in str(one)]:
        options["callbacks"] = schedulers
    trainer: dict[str, Any] = deciding({"trainer": options})["trainer"]
    return trainer


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
    """A state with its texts changed, keys of mappings too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_replaced(key, change): _replaced(inner, change) for key, inner in value.items()}
    if type(value) in (list, tuple):  # a tuple of names has no constructor of this kind
        return type(value)(_replaced(inner, change) for inner in value)
    return value
