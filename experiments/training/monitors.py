"""Whether a training's validation comes, and logs what is waited for: told before the first batch, or as early as can be.

What is waited for: `checkpoint.monitor`, and the `monitor` of callbacks (EarlyStopping) and learning rate schedules. What is
logged: modules of ours say it (`TunedModule.validation_metrics`); a module that does not is looked at in a validation of one
batch before the training, and after the training's first batch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, LearningRateMonitor

from datamodules.errors import InputError, some
from experiments.training.checkpoints import Best

_BETTER = {"max": "higher", "min": "lower"}
_ALWAYS = ("epoch", "step")  # Lightning's own


def waited_for(trainer: pl.Trainer) -> Iterator[tuple[str, str | None, str]]:
    """(metric, its mode, the option that names it) of every callback and schedule that waits for a metric."""
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str):
            ours = isinstance(callback, Best)
            yield (
                monitor,
                getattr(callback, "mode", None),
                "checkpoint" if ours else f"trainer.callbacks {type(callback).__name__}",
            )
    for schedule in trainer.lr_scheduler_configs if trainer.strategy._lightning_module is not None else ():
        if schedule.reduce_on_plateau and schedule.monitor is not None:
            mode = getattr(schedule.scheduler, "mode", None)
            yield schedule.monitor, mode, f"configure_optimizers {type(schedule.scheduler).__name__}"


def require_logged(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """See that what is waited for is among what the module says that it logs, and that better is what is better there. Nothing
    is known here of what it logs of its training steps.

    Raises:
        InputError: It is not.
    """
    known = validation_metrics(module)
    if known is None:
        return
    for monitor, mode, option in waited_for(trainer):
        stage, _, name = monitor.partition("/")
        name = name.rpartition("/")[2]  # of a domain: val/near_domain/cider
        if monitor in _ALWAYS or stage == "train":
            continue
        if stage != "val" or name not in known:
            raise InputError(_missing(monitor, option, [f"val/{metric}" for metric in known]))
        better = known[name]
        if better is not None and mode in _BETTER and mode != better:
            raise InputError(
                f"{option}.mode is {mode}, but a {_BETTER[better]} {monitor} is better: set it to {better}, or the worst "
                "model is taken for the best."
            )


class Waiting(Callback):
    """Refuses a training that would wait in vain. Put it before all other callbacks.

    Raises (from the hooks):
        InputError: No validation comes, or a metric is waited for that nothing logs.
    """

    def __init__(self) -> None:
        self._first = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for callback in trainer.callbacks:
            if isinstance(callback, LearningRateMonitor) and not trainer.loggers:
                raise InputError(
                    "trainer.callbacks has a LearningRateMonitor, but trainer.logger is false: leave one of them out."
                )
        if not trainer.enable_validation:
            raise InputError(
                "no validation can come, and the best checkpoint is chosen by one: the model needs a validation_step, the data "
                "a val_dataloader."
            )
        if validation_metrics(pl_module) is None and trainer.num_sanity_val_steps == 0:
            trainer.num_sanity_val_steps = 1  # a look at what it logs

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logged = list(trainer.callback_metrics)
        if validation_metrics(pl_module) is None and logged:  # a module may log nothing of a part of its split
            self._require(trainer, logged, lambda monitor: monitor.startswith("train") or monitor in _ALWAYS)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        require_a_validation(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._first:
            self._first = False
            results = trainer._results
            held = [result.meta.name for result in results.values()] if results is not None else []
            logged = [*trainer.callback_metrics, *held]
            if any(name.startswith("train") for name in logged):
                self._require(trainer, logged, lambda monitor: not monitor.startswith("train"))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._require(trainer, list(trainer.callback_metrics), lambda monitor: monitor.startswith("train"))

    @staticmethod
    def _require(trainer: pl.Trainer, logged: list[str], elsewhere: Any) -> None:
        for monitor, _, option in waited_for(trainer):
            if monitor not in logged and not elsewhere(monitor) and monitor not in _ALWAYS:
                raise InputError(_missing(monitor, option, logged))


def validation_metrics(module: pl.LightningModule) -> Mapping[str, str | None] | None:
    """What the module says that it logs under val/, with the better direction; None where it does not say."""
    return getattr(module, "validation_metrics", None)


def _missing(monitor: str, option: str, logged: Iterable[str]) -> str:
    names = [name for name in dict.fromkeys(logged) if name not in _ALWAYS]
    close = difflib.get_close_matches(monitor, names, 1, 0.5)
    hint = f"Did you mean {close[0]}?" if close else f"It logs {some(names)}." if names else "It logs none."
    return f"{option}.monitor is {monitor!r}, which this model does not log. {hint}"


def require_a_validation(trainer: pl.Trainer) -> None:
    """See that a validation comes before the training's last step. It looks at the whole training, also of a resumed one.

    Raises:
        InputError: None does.
    """
    batches, every = trainer.fit_loop.max_batches, trainer.check_val_every_n_epoch
    interval: Any = trainer.val_check_batch
    if not trainer.lightning_module.automatic_optimization or interval is None or math.isinf(batches):
        return  # steps, times and streams of unknown length
    share = trainer.val_check_interval
    if isinstance(share, float) and share * batches < 1:
        raise InputError(f"trainer.val_check_interval is {share} of an epoch, which has {batches} batches: give one at least.")
    first = interval if every is None else (every - 1) * batches + min(interval, batches)
    accumulated = trainer.accumulate_grad_batches
    total = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs * batches
    if trainer.max_steps != -1:
        epochs, rest = divmod(trainer.max_steps, math.ceil(batches / accumulated))
        total = min(total, epochs * batches + rest * accumulated)
    if first > total:
        unit = "every epoch" if every == 1 else f"every {every} epochs" if every else f"every {interval} batches"
        raise InputError(
            f"no validation would come, and the best checkpoint is chosen by one: it is due after {first} batches "
            f"(val_check_interval {trainer.val_check_interval}, check_val_every_n_epoch {every}: {unit}), and the training ends "
            f"after {total} (max_epochs {trainer.max_epochs}, max_steps {trainer.max_steps}; an epoch has {batches}). Train "
            "longer, or set --trainer.val_check_interval lower."
        )
