"""The callback that a rehearsal gives a run: it writes down what happens, and pulls the plug where it is told to."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_modules.callbacks.ema import EMA

KILL_VARIABLE = "CROSSLIGHT_REHEARSAL_KILL_AT"


class Watch(Callback):
    """A line of JSON for each thing that happens, on the first process. It changes nothing that is computed, but for an average
    of the weights (EMA), which begins at once.

    With KILL_VARIABLE in the environment the process is killed (SIGKILL, as a power cut would) when so many optimizer steps are
    done, before anything of the last one is written: the attempt that goes on must make it again.

    Args:
        file: For the lines; those of a second attempt come behind those of the first.
        steps: Optimizer steps of the rehearsal: validation comes behind the last.
    """

    def __init__(self, file: str, steps: int) -> None:
        self.file = Path(file)
        self.steps = steps
        self.kill_at = int(os.environ.get(KILL_VARIABLE) or 0)
        self._began = self._before = 0.0
        self._step = 0
        self._batches = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has an average of the weights begin at once: it may be meant to begin behind the last step of a rehearsal."""
        for callback in trainer.callbacks:
            if isinstance(callback, EMA):
                callback.update_starting_at_step = callback.update_starting_at_epoch = None

    # ----------------------------------------------------------------------------------------------------------- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says how long an epoch is, and sets the validation where the last step will be: an epoch may end in a smaller step."""
        batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
        whole = batches if isinstance(batches, int) else None
        an_epoch = whole or self.steps * accumulated
        epochs, rest = divmod(self.steps - 1, -(-an_epoch // accumulated))
        trainer.val_check_batch = epochs * an_epoch + min((rest + 1) * accumulated, an_epoch)
        loader = trainer.train_dataloader
        ahead = (getattr(loader, "num_workers", 0) or 0) * (getattr(loader, "prefetch_factor", 0) or 0)
        self._write(trainer, "fit", batches=whole, accumulated=accumulated, step=trainer.global_step, ahead=ahead)
        self._began = self._now()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        stepped = trainer.global_step > self._step
        seconds = None
        if stepped:
            now = self._now()
            seconds, self._began = now - self._began, now
        value = loss.detach().double().item() if isinstance(loss, Tensor) else None
        self._write(trainer, "batch", step=self._step, batch=batch_idx, loss=value, stepped=stepped, seconds=seconds, **memory())
        if self.kill_at and trainer.global_step >= self.kill_at and trainer.is_global_zero:
            self._write(trainer, "killed", step=trainer.global_step)
            os.kill(os.getpid(), signal.SIGKILL)

    # --------------------------------------------------------------------------------------------------------- evaluation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()

    def on_validation_batch_start(self, *_: Any) -> None:
        self._before = self._now()

    def on_test_batch_start(self, *_: Any) -> None:
        self._before = self._now()

    def on_validation_batch_end(self, *_: Any) -> None:
        self._batches += self._now() - self._before

    def on_test_batch_end(self, *_: Any) -> None:
        self._batches += self._now() - self._before

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = self._now()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = self._now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._end(trainer, pl_module, "val")
        self._began = self._now()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer, pl_module, "test")

    def _begin(self) -> None:
        self._batches, self._before = 0.0, self._now()

    def _end(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The time of the batches, and of what comes behind them: scores of all pairs, ranks, metrics."""
        data = getattr(trainer, "evaluated_data", None)
        behind = self._now() - self._before
        self._write(trainer, "evaluated", stage=stage, data=data, batches=self._batches, behind=behind, **memory())

    # -------------------------------------------------------------------------------------------------------------- notes

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _write(self, trainer: Trainer, event: str, **values: Any) -> None:
        if trainer.is_global_zero:
            with open(self.file, "a") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")


def memory() -> dict[str, int]:
    """Most bytes so far: of the machine's memory, and of the GPU's (the allocator's)."""
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "peak": peak}
