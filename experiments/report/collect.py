"""From run folders to an artefact's cells: what the paper prints, what we measured, how sure that is, and what is missing.

Run folders of several roots (machines) merge: a folder is known by the key of its job at the end of its name, and where a job
has several folders a finished one counts before any other.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np

from datamodules.errors import InputError
from experiments.artefacts import Artefact, Column, Job, Row, Scale, plan_runs, published_row, published_table, read_artefact
from experiments.report.bootstrap import Floats, PerImage, interval, mean_of, per_image
from experiments.run_folder import read_results
from experiments.runner import is_held

Status = Literal[
    "finished", "failed", "oom", "interrupted", "running", "stopped_early", "unreadable", "missing", "not at this scale"
]
# What is counted, not measured: it has no spread, one run says it all.
COUNTED = ("tunable_parameters", "total_parameters", "adapter_parameters", "tunable_percent")
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
    job: Job | None = None

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

    def find(self, job: Job, name: str) -> Run:
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


@dataclass(frozen=True)
class Measured:
    """One number of one run, in the published unit.

    Args:
        seed: Of the run.
        value: The number.
        by_image: Taken apart by image, where it is a mean over images.
        fingerprint: Of the data that it was measured on.
        data: The data's name.
        seeded: Whether the run depends on its seed.
        conditions: What a time or memory was measured on; None of all other numbers.
    """

    seed: int
    value: float
    by_image: PerImage | None = None
    fingerprint: str | None = None
    data: str | None = None
    seeded: bool = True
    conditions: str | None = None


@dataclass(frozen=True)
class Cell:
    """A row's value of a column.

    Args:
        row: Label of the row.
        column: The column.
        published: What the paper prints.
        measured: Ours, one a seed.
        planned: Whether there is a run of it at this scale, done or not.
    """

    row: str
    column: Column
    published: float | None = None
    measured: tuple[Measured, ...] = ()
    planned: bool = True

    @property
    def n(self) -> int:
        return len(self.measured)

    @property
    def counted(self) -> bool:
        return self.column.cost in COUNTED

    @property
    def seedless(self) -> bool:
        """One run for all seeds: a test of published weights."""
        return self.n == 1 and not self.measured[0].seeded

    @cached_property
    def mean(self) -> float | None:
        return statistics.fmean(each.value for each in self.measured) if self.measured else None

    @cached_property
    def deviation(self) -> float | None:
        """Over seeds."""
        return statistics.stdev(each.value for each in self.measured) if self.n > 1 else None

    @cached_property
    def by_image(self) -> PerImage | None:
        """The mean over seeds by image, where all seeds were tested on the same data."""
        parts = [each.by_image for each in self.measured if each.by_image is not None]
        same = len({each.fingerprint for each in self.measured}) == 1
        return mean_of(parts) if parts and len(parts) == self.n and same else None

    @cached_property
    def resamples(self) -> Floats | None:
        return None if self.by_image is None else self.by_image.resamples()

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % over the queries, of the mean over seeds."""
        return None if self.resamples is None else interval(self.resamples)

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.mean is None or self.published is None else self.mean - self.published


@dataclass(frozen=True)
class RowView:
    """A row with its runs by role, and its cells by the columns' names."""

    row: Row
    runs: Mapping[str, tuple[Run, ...]]
    cells: Mapping[str, Cell]

    @property
    def status(self) -> str:
        """finished where every role has a finished run; else what keeps it from being so, with how many runs."""
        words: list[str] = []
        for role, runs in self.runs.items():
            states = [run.status for run in runs]
            if "finished" not in states or any(state not in ("finished", "missing") for state in states):
                bad = [state for state in states if state != "finished"]
                counts = [f"{bad.count(each)} x {each}" if bad.count(each) > 1 else each for each in dict.fromkeys(bad)]
                words.append((f"{role}: " if len(self.runs) > 1 else "") + ", ".join(counts))
        return "; ".join(words) or "finished"

    @property
    def finished(self) -> int:
        """Finished runs."""
        return len({run.folder for runs in self.runs.values() for run in runs if run.status == "finished"})


@dataclass(frozen=True)
class View:
    """An artefact as it was measured at a scale."""

    name: str
    artefact: Artefact
    scale: Scale
    rows: tuple[RowView, ...]
    quoted: tuple[tuple[str, Mapping[str, float]], ...] = ()

    @property
    def slug(self) -> str:
        return self.name.replace("/", "-").replace("_", "-")

    @property
    def command(self) -> str:
        """What runs what is missing, with all seeds that some row has."""
        more = f" --seeds {' '.join(map(str, self.seeds))}" if self.seeds not in ([], [0]) else ""
        return f"crosslight sweep run {self.name} --scale {self.scale}{more}"

    @property
    def printed(self) -> frozenset[str]:
        """Names of the columns of which the paper prints a number."""
        cells = [cell for row in self.rows for cell in row.cells.values()]
        return frozenset(cell.column.name for cell in cells if cell.published is not None)

    @property
    def runs(self) -> list[Run]:
        """All runs that there are, each once."""
        found = {run.folder: run for row in self.rows for runs in row.runs.values() for run in runs if run.folder is not None}
        return list(found.values())

    def cell(self, row: str, column: str) -> Cell:
        return next(each.cells[column] for each in self.rows if each.row.label == row)

    @property
    def seeds(self) -> list[int]:
        """Of the finished runs."""
        return sorted({run.seed for run in self.runs if run.status == "finished"})


def collect(names: Iterable[str], scale: Scale, folders: RunFolders) -> list[View]:
    """Artefacts (PAPER/NAME) with what the folders hold of them.

    Raises:
        InputError: An artefact is wrong.
    """
    artefacts = {name: read_artefact(name) for name in names}
    wanted = {
        f"{name.partition('/')[0]}/{run}": None
        for name, artefact in artefacts.items()
        for row in artefact.rows
        for run in row.runs.values()
    }
    found: dict[str, tuple[Run, ...]] = dict.fromkeys(wanted, ())
    for job in plan_runs(wanted, scale, folders.seeds):
        for name in job.names:
            if name in found:
                found[name] += (folders.find(job, name),)
    return [_view(name, artefact, scale, found, folders) for name, artefact in artefacts.items()]


def _view(name: str, artefact: Artefact, scale: Scale, found: Mapping[str, tuple[Run, ...]], folders: RunFolders) -> View:
    paper = name.partition("/")[0]
    rows = []
    for row in artefact.rows:
        runs = {
            role: found[f"{paper}/{run}"] or (Run(f"{paper}/{run}", 0, "not at this scale"),) for role, run in row.runs.items()
        }
        published = published_row(artefact, row) or {}
        cells = {column.name: _cell(row, column, published, runs.get(column.run, ()), folders) for column in artefact.columns}
        rows.append(RowView(row, runs, cells))
    quoted = [
        (str(each.get("model", "quoted")), {key: float(value) for key, value in each.items() if _number(value)})
        for each in published_table(artefact)
        if each["quoted"]
    ]
    return View(name, artefact, scale, tuple(rows), tuple(quoted))


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(row: Row, column: Column, published: Mapping[str, Any], runs: Sequence[Run], folders: RunFolders) -> Cell:
    printed = published.get(column.name)
    planned = any(run.status != "not at this scale" for run in runs)
    measured = [found for run in runs if run.status == "finished" and (found := measure(run, column, folders)) is not None]
    return Cell(row.label, column, float(printed) if _number(printed) else None, tuple(measured), planned)


def measure(run: Run, column: Column, folders: RunFolders) -> Measured | None:
    """A column's number of a finished run; None where the run does not have it."""
    # One that starts from a trained run has that run's seed, though it draws nothing itself.
    seeded = run.job is None or run.job.recipe.seeded or bool(run.job.after)
    if column.cost is not None:
        value: object = run.results.get("cost", {}).get(column.cost)
        if not _number(value):
            return None
        where = None if column.cost in COUNTED else _conditions(run.results.get("device") or {})
        return Measured(run.seed, column.factor * value, seeded=seeded, conditions=where)
    evaluation = run.evaluation(column.data)
    value = None if evaluation is None else evaluation["metrics"].get(column.metric)
    if evaluation is None or not _number(value) or not np.isfinite(value):
        return None
    found = per_image(str(column.metric), folders.arrays(run, evaluation), value)
    if found is not None:
        found = PerImage(found.total_IT, found.count_IT, found.factor * column.factor)
    data = evaluation["data"]
    return Measured(run.seed, column.factor * value, found, run.fingerprint(data), data, seeded)


def _conditions(device: Mapping[str, Any]) -> str:
    """ "AMD EPYC, 1 process, 2 threads": what times and memory depend on besides the run. Whatever else was running on the
    machine is not known."""
    processes, threads = device.get("world_size") or 1, device.get("threads")
    told = [str(device.get("name") or "a device unknown"), f"{processes} process{'es' * (processes != 1)}"]
    return ", ".join([*told, *([f"{threads} thread{'s' * (threads != 1)}"] if threads is not None else [])])
