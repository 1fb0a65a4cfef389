"""Holds a run in its middle until it is told to leave, so that a signal finds a tiny run there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from experiments.training import preemption


class Hold(Callback):
    """Waits before a step, on every rank.

    Args:
        steps: Optimizer steps that are done by then.
        until: A file; where it is, nobody waits.
    """

    def __init__(self, steps: list[int], until: str) -> None:
        self.steps = steps
        self.until = Path(until)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        while trainer.global_step in self.steps and not self.until.exists() and preemption.told() is None:
            time.sleep(0.05)
