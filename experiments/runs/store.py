"""Finds run folders: of a planned run by its key, and all below a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.errors import InputError
from experiments.papers.plan import PlannedRun
from experiments.runs.files import is_held
from experiments.runs.results import read_results


def folder_of(job: PlannedRun, roots: Sequence[Path]) -> Path:
    """Where a job's run is, or else where it shall be: in the first root. Roots may come from several machines; a folder is known
    by the key at its end, since a run that has several names may have been started under another one."""
    for root in roots:
        for folder in sorted(root.glob(f"*-{job.key[:8]}")):
            if folder.is_dir():
                return folder
    return roots[0] / job.folder_name


Status = Literal[
    "finished", "failed", "oom", "interrupted", "running", "stopped_early", "unreadable", "missing", "not at this scale"
]
_FOLDER = re.compile(r"-s(\d+)-([0-9a-f]{8})$")


@dataclass(frozen=True)
class Run:
    """A run with a seed as it was found.

    Args:
        name: PAPER/RUN.
        seed: Its seed.
        status: Of results.json; missing where there is no folder.
        folder: Where it is.
        results: results.json; empty where there is none.
        job: What was planned; None of a folder that was given by hand.
    """

    name: str
    seed: int
    status: Status
    folder: Path | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    job: PlannedRun | None = None

    @property
    def error(self) -> str:
        return str(self.results.get("error") or "")

    def evaluation(self, data: str | None) -> Mapping[str, Any] | None:
        """The test on a data set, or the first one."""
        tests = [each for each in self.results.get("evaluations", []) if each.get("stage", "test") == "test"]
        return next((each for each in tests if data in (None, each["data"])), None)

    def fingerprint(self, data: str) -> str | None:
        found = self.results.get("data", {}).get(data) or {}
        return found.get("fingerprint")


class RunFolders:
    """Run folders below roots, by job."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Looks at the folders' names; results are read when they are asked for.

        Raises:
            InputError: A root does not exist.
        """
        self.roots = list(roots)
        self._by_key: dict[str, list[Path]] = {}
        self.seeds: list[int] = []
        for root in self.roots:
            if not root.is_dir():
                raise InputError(f"--runs {root} is not a folder. Give the folder that `crosslight sweep run` wrote to.")
            for folder in sorted(root.iterdir()):
                if (found := _FOLDER.search(folder.name)) and folder.is_dir():
                    self._by_key.setdefault(found[2], []).append(folder)
                    self.seeds.append(int(found[1]))
        self.seeds = sorted(set(self.seeds)) or [0]
        self._read: dict[Path, tuple[Status, Mapping[str, Any]]] = {}
        self._arrays: dict[Path, dict[str, Any]] = {}

    def find(self, job: PlannedRun, name: str) -> Run:
        """The run of a job."""
        runs = [Run(name, job.seed, *self.read(folder), job) for folder in self._by_key.get(job.key[:8], [])]
        runs.sort(key=lambda run: run.status != "finished")  # stable: else the first root's
        return runs[0] if runs else Run(name, job.seed, "missing", job=job)

    def read(self, folder: Path) -> tuple[Status, Path, Mapping[str, Any]]:
        """Status, folder and results of a run folder."""
        if folder not in self._read:
            self._read[folder] = read_run(folder)
        status, results = self._read[folder]
        return status, folder, results

    def arrays(self, run: Run, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """Of an evaluation's per-query file; empty where there is none."""
        name = evaluation.get("per_query_file")
        if run.folder is None or not name or not (run.folder / name).is_file():
            return {}
        file = run.folder / name
        if file not in self._arrays:
            with np.load(file, allow_pickle=False) as arrays:
                self._arrays[file] = {key: arrays[key] for key in arrays.files if arrays[key].ndim == 1}
        return self._arrays[file]


def read_run(folder: Path) -> tuple[Status, Mapping[str, Any]]:
    """Status and results of a run folder. What cannot be read is a status too: one broken run must not hide the others."""
    if not (folder / "results.json").exists():
        return "interrupted", {"error": "it was stopped before it wrote anything"}
    try:
        results = read_results(folder)
    except InputError as error:
        return "unreadable", {"error": str(error)}
    if results["status"] == "running" and not is_held(folder / ".lock"):
        return "interrupted", {**results, "error": "its process was killed; the same sweep resumes it"}
    return results["status"], results
