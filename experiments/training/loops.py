"""Lightning's training loops with one more moment: between two steps, and two epochs, when nothing of the last is left to do.

Lightning saves inside of a step: before its metrics are written, and before the callbacks that learn from an epoch's metrics have
seen them. What is saved there a resumed run never learns. Here the checkpoint to resume from is written when everything is done.

And its evaluation with one less refusal: of several processes some may have nothing to evaluate.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from experiments.training.checkpoints import ResumePoint
from lightning_modules import collectives


class EvaluationLoop(_EvaluationLoop):
    """A process without a batch takes part all the same: at the end all of them gather, and the others would wait for it.

    Lightning's refuses an empty loader, and would pass by the end of the epoch where all loaders of a process are: where a split
    has fewer images than there are processes, say.
    """

    def __init__(self, stock: _EvaluationLoop) -> None:
        super().__init__(stock.trainer, stock._trainer_fn, stock._stage, stock.verbose, stock.inference_mode)

    @property
    def skip(self) -> bool:
        return super().skip and not (collectives.several() and self._combined_loader is not None)

    def setup_data(self) -> None:
        module = self.trainer.lightning_module
        before = module.allow_zero_length_dataloader_with_multiple_devices
        module.allow_zero_length_dataloader_with_multiple_devices = True
        try:
            super().setup_data()
        finally:
            module.allow_zero_length_dataloader_with_multiple_devices = before


class EpochLoop(_TrainingEpochLoop):
    """Tells the resume point when a step and its validation are over."""

    _skip_next_val: bool
    val_loop: _EvaluationLoop

    def __init__(self, trainer: pl.Trainer, min_steps: int | None, max_steps: int, point: ResumePoint) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.val_loop = EvaluationLoop(self.val_loop)
        self._point = point

    def on_advance_end(self, data_fetcher: Any) -> None:
        if self._skip_next_val:  # resumed behind a validation: nothing of its step is left to do
            self._skip_next_val = False
            return
        super().on_advance_end(data_fetcher)
        stops = self.trainer.should_stop and self.trainer.fit_loop._can_stop_early
        self._point.batch_ended(self.trainer, epoch_ends=self._is_training_done or stops)


class FitLoop(_FitLoop):
    """Tells the resume point when an epoch is over, and begins the next one when it is resumed from there."""

    def __init__(self, trainer: pl.Trainer, point: ResumePoint) -> None:
        stock = trainer.fit_loop
        super().__init__(trainer, stock.min_epochs, stock.max_epochs)
        self.epoch_loop = EpochLoop(trainer, stock.min_steps, stock.max_steps, point)
        self._point = point

    @property
    def restarting(self) -> bool:
        return bool(_Loop.restarting.fget(self))

    @restarting.setter
    def restarting(self, restarting: bool) -> None:
        current = self.epoch_progress.current
        # Lightning would go on in the finished epoch where max_steps ends the training.
        unfinished = current.ready != current.processed or current.started != current.processed
        _Loop.restarting.fset(self, restarting and unfinished)

    def on_advance_end(self) -> None:
        super().on_advance_end()
        self._point.epoch_ended(self.trainer)
