"""What `crosslight sweep` is asked for, whatever the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.errors import InputError
from experiments.sweep.slurm_script import SlurmOptions
from experiments.sweep.sweep_file import MOST_POINTS


@dataclass(frozen=True)
class Request:
    """
    Args:
        action: run, or show or cancel what was started.
        target: As it was named.
        out: Folder of the run folders (default: by the target).
        jobs: Runs at once.
        count: Points of a sweep file.
        search_seed: Of random and bayes.
        dry_run: Only show.
        retry_failed: Start again what failed.
        submit: Submit to Slurm, with these options; None: run on this machine.
    """

    action: Literal["run", "status", "cancel"]
    target: str
    out: Path | None = None
    jobs: int | None = None
    count: int | None = None
    search_seed: int | None = None
    dry_run: bool = False
    retry_failed: bool = False
    submit: SlurmOptions | None = None

    def __post_init__(self) -> None:
        if self.count is not None and not 1 <= self.count <= MOST_POINTS:
            raise InputError(f"--count is {self.count}; a sweep has 1 to {MOST_POINTS:,} points.")

    @property
    def starts(self) -> bool:
        """Whether anything is started or submitted."""
        return self.action == "run" and not self.dry_run
