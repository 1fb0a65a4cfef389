"""How far a training is: what it will be, said before its first step, and how long it still takes."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, RichProgressBar

from experiments.runs.duration import readable_time
from experiments.runs.headings import counted
from experiments.training.trainer import data_name, tell_cut_captions, tell_unknown_words

_SECONDS = 5  # between two lines: a log of a thousand short epochs is still read


class Pace:
    """Steps and time of a training that is going on.

    Args:
        trainer: Its training has been set up.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.trainer = trainer
        self.total = trainer.estimated_stepping_batches  # inf of one that only a callback or a signal ends
        batches = trainer.num_training_batches
        self.per_epoch = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else math.inf
        self._first, self._began = trainer.global_step, time.monotonic()

    @property
    def epochs(self) -> int | None:
        """Begun ones until the end."""
        known = math.isfinite(self.total) and math.isfinite(self.per_epoch) and self.per_epoch > 0
        return math.ceil(self.total / self.per_epoch) if known else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, validations counted as they came so far; None before the first step."""
        done = self.trainer.global_step - self._first
        left = self.total - self.trainer.global_step
        return left * (time.monotonic() - self._began) / done if done > 0 and math.isfinite(left) else None

    def left(self) -> str:
        """In words; empty where nobody knows."""
        return "" if self.seconds_left is None else f"{readable_time(self.seconds_left)} left"

    def place(self) -> str:
        """epoch 2 of 5, step 40 of 100."""
        trainer = self.trainer
        epoch = f"epoch {trainer.current_epoch + 1}" + ("" if self.epochs is None else f" of {self.epochs}")
        return f"{epoch}, step {trainer.global_step:,}" + (f" of {self.total:,}" if math.isfinite(self.total) else "")


class Progress(Callback):
    """Says what a training will be, and after each validation how it went, where no bar does.

    Args:
        shown: The metric that chooses the best checkpoint. (Not "monitor": callbacks with that wait for it.)
        lines: Whether to say the latter: there is no terminal that a bar could be on.
    """

    def __init__(self, shown: str, lines: bool) -> None:
        self.shown, self.lines = shown, lines
        self._said = -math.inf
        self._pace: Pace | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        self._pace = pace = Pace(trainer)
        known = math.isfinite(pace.per_epoch)
        words = [f"{counted(int(pace.per_epoch), 'step')} an epoch"] if known else []
        if known and trainer.accumulate_grad_batches > 1:
            words[0] += f" of {trainer.accumulate_grad_batches} batches each"
        words += [counted(pace.epochs, "epoch")] if pace.epochs is not None else []
        words.append(f"{counted(int(pace.total), 'step')} in all" if math.isfinite(pace.total) else "no end of its own")
        trained = sum(each.numel() for each in pl_module.parameters() if each.requires_grad)
        total = sum(each.numel() for each in pl_module.parameters())
        begun = f"; {trainer.global_step:,} of them are done" if trainer.global_step else ""
        _say(trainer, f"training: {', '.join(words)}{begun}; {trained:,} of {total:,} parameters train")
        if trainer.is_global_zero:
            data: Any = getattr(trainer, "datamodule", None)
            tell_unknown_words(data, "train")
            tell_cut_captions(data_name(data), data, ("train",))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        if self._pace is None or not self.lines or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        now, last = time.monotonic(), trainer.global_step >= self._pace.total
        if now - self._said < _SECONDS and not last:
            return
        self._said = now
        value = trainer.callback_metrics.get(self.shown)
        measured = "" if value is None else f": {self.shown} {float(value):.4g}"
        left = self._pace.left()
        _say(trainer, f"{self._pace.place()}{measured}{'; ' if left else ''}{left}")

    def on_test_start(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        if self.lines:
            _say(trainer, f"testing on {getattr(trainer, 'evaluated_data', None) or 'the test split'}")


class Bar(RichProgressBar):
    """Lightning's, with epochs counted from 1, the time that the whole training still takes, and only the metrics that matter.

    Args:
        shown: The metric that chooses the best checkpoint. (Not "monitor": callbacks with that wait for it.)
    """

    def __init__(self, shown: str) -> None:
        super().__init__(leave=False)
        self.shown = shown
        self._pace: Pace | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        self._pace = Pace(trainer)
        super().on_train_start(trainer, pl_module)

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        description, bar, batches, times, _ = super().configure_columns(trainer)
        bar.bar_width = 16  # the metrics need the room
        return [description, bar, batches, times]

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = None if self._pace is None else self._pace.epochs
        return f"Epoch {current_epoch + 1}" + ("" if epochs is None else f" of {epochs}")

    def get_metrics(self, trainer: pl.Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if "train/loss" in metrics:
            metrics = {"loss": metrics["train/loss"]}
        if (value := trainer.callback_metrics.get(self.shown)) is not None:
            metrics[self.shown] = f"{float(value):.4g}"
        if self._pace is not None and (left := self._pace.seconds_left) is not None and trainer.training:
            metrics["all"] = f"{readable_time(left)} left"
        return metrics


def on_a_terminal() -> bool:
    """Whether a bar would be seen."""
    return sys.stdout.isatty()


def _say(trainer: pl.Trainer, text: str) -> None:
    if trainer.is_global_zero:
        print(text, flush=True)
