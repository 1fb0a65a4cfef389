"""A power cut at a chosen moment, for the test of resuming."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class KillSwitch(Callback):
    """SIGKILLs its own process before a step, once.

    Args:
        step: Optimiser steps that are done by then.
        spent: A file that appears with the kill; where it is there already, nothing happens.
    """

    def __init__(self, step: int, spent: str) -> None:
        self.step = step
        self.spent = Path(spent)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and not self.spent.exists():
            self.spent.touch()
            os.kill(os.getpid(), signal.SIGKILL)
