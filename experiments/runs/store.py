"""Finds run folders: of a planned run by its key, and all below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from datamodules.errors import InputError
from experiments.papers.plan import PlannedRun
from experiments.papers.schema import Cost
from experiments.runs.folder import is_running
from experiments.runs.identity import SEED_AND_KEY
from experiments.runs.rehearsed import Rehearsed, measured_in, read_rehearsed
from experiments.runs.results import Evaluation, Results, ResultsStatus, read_results

if TYPE_CHECKING:
    import numpy.typing as npt

Status = ResultsStatus | Literal["unreadable", "missing", "not at this scale"]
_REHEARSAL = "{} is a rehearsal (`crosslight sweep rehearse`): its numbers are of a few steps and images, and no results."
_STAND_IN = (
    "{} is a run on stand-ins (data or weights of random contents, or what was made of them or by a rehearsal): its numbers are "
    "no results."
)


@dataclass(frozen=True)
class Run:
    """A run with a seed as it was found.

    Args:
        name: PAPER/RUN, or what the run calls itself.
        seed: Its seed.
        status: Of its results; missing where there is no folder.
        folder: Where it is.
        results: results.json; None where there is none, or none that can be read.
        error: Why it did not finish or cannot be read.
        planned: What was planned; None of a folder that was given by hand.
        others: Folders of the same planned run and seed that are finished, too, and do not count.
    """

    name: str
    seed: int
    status: Status
    folder: Path | None = None
    results: Results | None = None
    error: str = ""
    planned: PlannedRun | None = None
    others: tuple[Path, ...] = ()

    def evaluation(self, data: str | None) -> Evaluation | None:
        """The test on a data set, or the first one."""
        return next(iter(self.results.tests(data)), None) if self.results is not None else None

    def fingerprint(self, data: str) -> str | None:
        described = None if self.results is None else self.results.data.get(data)
        return None if described is None else described.fingerprint


def read_run(folder: Path) -> Run:
    """The run of a folder. What cannot be read is a run too: one broken run must not hide the others."""
    if not os.path.lexists(folder / "results.json"):
        return Run(folder.name, 0, "interrupted", folder, error="it was stopped before it wrote anything")
    try:
        results = read_results(folder)
        killed = results.status == "running" and not is_running(folder)
    except InputError as error:
        return Run(folder.name, 0, "unreadable", folder, error=str(error))
    if results.provenance is not None and results.provenance.rehearsal:
        return Run(results.name, results.seed or 0, "unreadable", folder, error=_REHEARSAL.format(folder))
    marked = any(described.further.get("stand_in") for described in results.data.values())
    if marked or (results.provenance is not None and results.provenance.stand_in):
        return Run(results.name, results.seed or 0, "unreadable", folder, error=_STAND_IN.format(folder))
    run = Run(results.name, results.seed or 0, results.status, folder, results, results.error or "")
    if killed:
        return replace(run, status="interrupted", error="its process was killed; the same sweep resumes it")
    return run


def _of_its_seed(run: Run) -> Run:
    """A folder that was renamed, or results that were changed, are no run of that seed."""
    seeded = run.planned is not None and run.planned.recipe.seeded
    if run.results is None or not seeded or run.results.seed in (None, run.seed):
        return run
    why = f"{run.folder}: its name says seed {run.seed} and its results.json seed {run.results.seed}. Give it its own name back."
    return replace(run, status="unreadable", results=None, error=why)


def run_folders_below(folders: Iterable[str | Path], holding: str = "results.json") -> list[Path]:
    """Run folders in or below folders, each once.

    Args:
        folders: At or above the run folders.
        holding: What makes a folder one.

    Raises:
        InputError: A folder does not exist or holds no run.
    """
    below: dict[Path, Path] = {}  # one that is named twice, or linked to, is one run
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder. Give run folders, or folders that hold them.")
        if not (runs := sorted(folders_holding(folder, holding))):
            what = "run in it" if holding == "results.json" else "run in it that logged anything"
            raise InputError(f"{folder} holds no {holding}: there is no {what}.")
        for run in runs:
            below.setdefault(run.resolve(), run)
    return list(below.values())


def folders_holding(root: Path, name: str) -> Iterator[Path]:
    """Folders at or below `root` that have an entry of this name, each once: links are followed, and may lead in circles."""

    def unreadable(error: OSError) -> NoReturn:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}): give the folders below it that can.") from None

    seen: set[str] = set()
    for place, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        if name in files or name in folders:
            yield Path(place)


class RunFolders:
    """Run folders in roots, by the key of what was planned. Roots may come from several machines; a folder is known by the key at
    its end, since a run that has several names may have been started under another one."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Looks at the folders' names; results are read when they are asked for.

        Raises:
            InputError: A root does not exist.
        """
        self._by_key: dict[str, list[Path]] = {}
        seeds: set[int] = set()
        for root in roots:
            if not root.is_dir():
                raise InputError(f"--runs {root} is not a folder. Give the folder that `crosslight sweep run` wrote to.")
            for folder in sorted(root.iterdir()):
                if (named := SEED_AND_KEY.search(folder.name)) and folder.is_dir():
                    self._by_key.setdefault(named[2], []).append(folder)
                    seeds.add(int(named[1]))
        self.seeds = sorted(seeds) or [0]
        self._roots = list(roots)
        self._read: dict[Path, Run] = {}
        self._arrays: dict[Path, dict[str, npt.NDArray[Any]]] = {}

    @property
    def empty(self) -> bool:
        """Whether no root has a folder of a planned run."""
        return not self._by_key

    def of(self, planned: PlannedRun) -> list[Path]:
        """The folders of what was planned, in the order of the roots."""
        return self._by_key.get(planned.key[:8], [])

    def cost_of(self, planned: PlannedRun) -> tuple[Cost | None, bool]:
        """What a planned run costs: measured by a rehearsal on a GPU in one of the roots (and True), or its estimate."""
        for rehearsed in self._rehearsed:
            if (cost := measured_in(rehearsed, planned, planned.recipe.cost)) is not None:
                return cost, True
        return planned.recipe.cost, False

    @cached_property
    def _rehearsed(self) -> list[dict[str, Rehearsed]]:
        return [read_rehearsed(root) for root in self._roots]

    def find(self, planned: PlannedRun, name: str) -> Run:
        """The run of what was planned: a finished one before any other, and of several the first root's; it names the others."""
        for folder in self.of(planned):
            if folder not in self._read:
                self._read[folder] = read_run(folder)
        runs = [replace(self._read[folder], name=name, seed=planned.seed, planned=planned) for folder in self.of(planned)]
        runs = [_of_its_seed(run) for run in runs]
        runs.sort(key=lambda run: run.status != "finished")  # stable: else the first root's
        if not runs:
            return Run(name, planned.seed, "missing", planned=planned)
        finished = {run.folder.resolve(): run.folder for run in runs[::-1] if run.folder is not None and run.status == "finished"}
        return replace(runs[0], others=tuple(folder for folder in finished.values() if folder != runs[0].folder))

    def arrays(self, run: Run, evaluation: Evaluation) -> dict[str, npt.NDArray[Any]]:
        """Of an evaluation's per-query file; empty where there is none.

        Raises:
            InputError: It cannot be read.
        """
        file = None if run.folder is None else run.folder / (evaluation.per_query_file or "")
        if file is None or file == run.folder:
            return {}
        if file not in self._arrays:
            self._arrays[file] = arrays_of(run, evaluation)
        return self._arrays[file]


def arrays_of(run: Run, evaluation: Evaluation) -> dict[str, npt.NDArray[Any]]:
    """Of an evaluation's per-query file; empty where there is none.

    Raises:
        InputError: It cannot be read, or gives other recalls than the evaluation.
    """
    name = evaluation.per_query_file
    if run.folder is None or not name or not os.path.lexists(run.folder / name):
        return {}
    from experiments.runs.per_query import read_per_query  # numpy: runs without such files do without

    return read_per_query(run.folder / name, evaluation.metrics)


def folder_of(planned: PlannedRun, roots: Sequence[Path]) -> Path:
    """Where a planned run is, or else where it shall be: in the first root."""
    return next(iter(RunFolders([root for root in roots if root.is_dir()]).of(planned)), roots[0] / planned.folder_name)
