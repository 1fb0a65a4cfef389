"""A power cut at a chosen moment, for the tests of resuming."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from experiments.training import preemption


class KillSwitch(Callback):
    """SIGKILLs its own process before a step, once.

    Args:
        step: Optimizer steps that are done by then.
        spent: A file that appears with the kill; where it is there already, nothing happens.
        notice: Steps by which SIGUSR1 is sent, as Slurm would, to a process that is one of Slurm's.
    """

    def __init__(self, step: int, spent: str, notice: int | None = None) -> None:
        self.step = step
        self.spent = Path(spent)
        self.notice = notice

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and not self.spent.exists():
            self.spent.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.global_step == self.notice and preemption.listening():
            os.kill(os.getpid(), signal.SIGUSR1)


def note_scores(noted: Path, most: int | None = None, kept: bool = True) -> None:
    """From now on `noted` gets the places (START STOP, a line each) of all scores of tests, which are kept, or of validations,
    which are not; after `most` units this process is SIGKILLed."""
    from lightning_modules.metrics.score_store import ScoreStore

    write, count = ScoreStore.write, 0

    def write_and_note(store: ScoreStore, start: int, scores: Any) -> None:
        nonlocal count
        write(store, start, scores)
        if (store.folder is not None) != kept:
            return
        with open(noted, "a") as file:
            file.write(f"{start} {start + len(scores)}\n")
        count += 1
        if count == most:
            os.kill(os.getpid(), signal.SIGKILL)

    ScoreStore.write = write_and_note  # type: ignore[method-assign]


def places(noted: Path) -> list[int]:
    """All places that were noted."""
    lines = (line.split() for line in noted.read_text().splitlines())
    return [place for start, stop in lines for place in range(int(start), int(stop))]


def note_captions(noted: Path, most: int | None = None) -> None:
    """From now on `noted` gets the rows of all captions that a test keeps, a line a batch; after `most` batches this process is
    SIGKILLed."""
    from lightning_modules.metrics.captions.store import CaptionStore

    add, count = CaptionStore.add, 0

    def add_and_note(store: CaptionStore, rows: Any, *written: Any) -> None:
        nonlocal count
        add(store, rows, *written)
        if store.folder is None:
            return
        with open(noted, "a") as file:
            file.write(" ".join(map(str, rows)) + "\n")
        count += 1
        if count == most:
            os.kill(os.getpid(), signal.SIGKILL)

    CaptionStore.add = add_and_note  # type: ignore[method-assign]
