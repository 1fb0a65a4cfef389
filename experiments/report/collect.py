"""From run folders to an exhibit's cells: what the paper prints, what we measured, how sure that is, and what is missing.

Run folders of several roots (machines) merge: a folder is known by the key of its planned run at the end of its name, and where
there are several of one planned run a finished one counts before any other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from datamodules.errors import InputError
from experiments.analysis.stored_maps import SHARES_FILES, By, stored, stored_shares
from experiments.papers.catalogue import published_row, published_table, read_exhibit
from experiments.papers.plan import plan_runs
from experiments.papers.schema import Column, Exhibit, Scale, Variant
from experiments.report.bootstrap import Floats, PerImage, interval, mean_of, per_image
from experiments.report.grounding import by_image as word_means
from experiments.runs.beside import read_beside
from experiments.runs.metrics_csv import require_whole
from experiments.runs.provenance import Device
from experiments.runs.store import Run, RunFolders

# What is counted, not measured: it has no spread, one run says it all.
COUNTED = ("tunable_parameters", "total_parameters", "adapter_parameters", "tunable_percent")


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
        code: The revision that computed it.
    """

    seed: int
    value: float
    by_image: PerImage | None = None
    fingerprint: str | None = None
    data: str | None = None
    seeded: bool = True
    conditions: str | None = None
    code: str | None = None


def unlike(measured: Iterable[Measured]) -> list[str]:
    """What numbers that count as seeds of one configuration differ in beside the seed, in words."""
    measured = list(measured)
    codes = sorted({each.code or "unknown" for each in measured})
    words = [f"{len(codes)} code revisions ({', '.join(codes)})"] if len(codes) > 1 else []
    for name in sorted({each.data for each in measured if each.data}):
        prints = sorted({each.fingerprint or "unknown" for each in measured if each.data == name})
        words += [f"{len(prints)} versions of the data {name} ({', '.join(prints)})"] if len(prints) > 1 else []
    return words


@dataclass(frozen=True)
class Cell:
    """A variant's value of a column.

    Args:
        variant: What it is called at the scale.
        column: The column.
        published: What the paper prints.
        measured: Ours, one a seed.
        planned: Whether there is a run of it at this scale, done or not.
        quoted: It is another system's, which is not run here: `measured` is then what the paper prints, at full scale.
        finished: Runs that could have it: seeds that are finished.
    """

    variant: str
    column: Column
    published: float | None = None
    measured: tuple[Measured, ...] = ()
    planned: bool = True
    quoted: bool = False
    finished: int = 0

    @property
    def n(self) -> int:
        return len(self.measured)

    @property
    def partly(self) -> str:
        """ "2 of 3" where some finished seeds do not have it; else empty."""
        return f"{self.n} of {self.finished}" if 0 < self.n < self.finished else ""

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
class VariantView:
    """A variant with its runs by role, its cells by the columns' names, and what it is called at the scale (claims name it by its
    declared label)."""

    declared: Variant
    runs: Mapping[str, tuple[Run, ...]]
    cells: Mapping[str, Cell]
    at_scale: str | None = None

    @property
    def label(self) -> str:
        return self.at_scale or self.declared.label

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
    def told(self) -> str:
        """The status, and what its seeds differ in that should not differ. Its runs may: one may start from another world's."""
        by_run: dict[str | None, list[Measured]] = {}
        for cell in self.cells.values():
            by_run.setdefault(cell.column.run, []).extend(cell.measured)
        words = dict.fromkeys(each for measured in by_run.values() for each in unlike(measured))
        if others := {folder for runs in self.runs.values() for run in runs for folder in run.others}:
            words[f"{len(others)} more folder{'s' * (len(others) > 1)} of the same run, finished and left out"] = None
        return "; ".join([self.status, *words])

    @property
    def finished(self) -> int:
        """Finished runs."""
        return len({run.folder for runs in self.runs.values() for run in runs if run.status == "finished"})


@dataclass(frozen=True)
class View:
    """An exhibit as it was measured at a scale."""

    name: str
    exhibit: Exhibit
    scale: Scale
    variants: tuple[VariantView, ...]
    quoted: tuple[tuple[str, Mapping[str, float]], ...] = ()

    @property
    def slug(self) -> str:
        return self.name.replace("/", "-").replace("_", "-")

    @property
    def command(self) -> str:
        """What runs what is missing, with all seeds that some variant has."""
        more = f" --seeds {' '.join(map(str, self.seeds))}" if self.seeds not in ([], [0]) else ""
        return f"crosslight sweep run {self.name} --scale {self.scale}{more}"

    @property
    def incomplete(self) -> bool:
        """Whether `command` would run anything: rows without a run at this scale stay without."""
        return any(
            run.status not in ("finished", "not at this scale")
            for each in self.variants
            for runs in each.runs.values()
            for run in runs
        )

    @property
    def printed(self) -> frozenset[str]:
        """Names of the columns of which the paper prints a number."""
        cells = [cell for variant in self.variants for cell in variant.cells.values()]
        return frozenset(cell.column.name for cell in cells if cell.published is not None)

    @property
    def runs(self) -> list[Run]:
        """All runs that there are, each once."""
        found = {
            run.folder: run
            for variant in self.variants
            for runs in variant.runs.values()
            for run in runs
            if run.folder is not None
        }
        return list(found.values())

    def cell(self, variant: str, column: str) -> Cell:
        """Of a variant by its declared label, or of a quoted row."""
        of_ours = next((each.cells[column] for each in self.variants if each.declared.label == variant), None)
        if of_ours is not None:
            return of_ours
        declared = next(each for each in self.exhibit.columns if each.name == column)
        value = _sum_of(dict(self.quoted)[variant], declared)
        return Cell(variant, declared, value, () if value is None else (Measured(0, value, seeded=False),), quoted=True)

    @property
    def remarks(self) -> list[str]:
        """What its rows' tests say that their numbers do not show: of each row and remark the first run's words."""
        told: list[str] = []
        for variant in self.variants:
            runs = {run.folder: run for runs in variant.runs.values() for run in runs if run.status == "finished" and run.results}
            words: dict[str, dict[Path | None, str]] = {}
            for folder, run in runs.items():
                for test in run.results.tests() if run.results is not None else ():
                    for what, remark in test.notes.get("remarks", {}).items():
                        words.setdefault(f"{what}, {test.data}", {}).setdefault(folder, remark)
            for what, of_runs in words.items():
                count = f" ({len(of_runs)} of {len(runs)} runs; the first says)" if len(runs) > 1 else ""
                told.append(f"{variant.label}, {what}{count}: {next(iter(of_runs.values()))}")
        return told

    @property
    def seeds(self) -> list[int]:
        """Of the finished runs."""
        return sorted({run.seed for run in self.runs if run.status == "finished"})


def collect(names: Iterable[str], scale: Scale, folders: RunFolders) -> list[View]:
    """Exhibits (PAPER/NAME) with what the folders hold of them.

    Raises:
        InputError: An exhibit is wrong.
    """
    exhibits = {name: read_exhibit(name).at_scale(scale) for name in names}
    wanted = {
        f"{name.partition('/')[0]}/{run}": None
        for name, exhibit in exhibits.items()
        for variant in exhibit.variants
        for run in variant.runs.values()
    }
    found: dict[str, tuple[Run, ...]] = dict.fromkeys(wanted, ())
    problems: dict[Path, str | None] = {}
    for planned in plan_runs(wanted, scale, folders.seeds):
        for name in planned.names:
            if name in found:
                found[name] += (_sound(folders.find(planned, name), folders, problems),)
    return [_view(name, exhibit, scale, found, folders) for name, exhibit in exhibits.items()]


def _sound(run: Run, folders: RunFolders, problems: dict[Path, str | None]) -> Run:
    """A finished run whose files can be read, all of them; else one that says which cannot. It must not hide the others."""
    if run.status != "finished" or run.folder is None:
        return run
    if run.folder not in problems:
        problems[run.folder] = _problem(run, run.folder, folders)
    why = problems[run.folder]
    return run if why is None else replace(run, status="unreadable", results=None, error=why)


def _problem(run: Run, folder: Path, folders: RunFolders) -> str | None:
    try:
        for evaluation in run.results.tests() if run.results is not None else ():
            folders.arrays(run, evaluation)
            read_beside(folder, evaluation.data)
        require_whole(folder)
        stored(folder)
        for by in SHARES_FILES:
            stored_shares(folder, by)
    except InputError as error:
        return str(error)
    return None


def _view(name: str, exhibit: Exhibit, scale: Scale, found: Mapping[str, tuple[Run, ...]], folders: RunFolders) -> View:
    paper = name.partition("/")[0]
    variants = []
    called = exhibit.at[scale].variants if scale in exhibit.at else {}
    for variant in exhibit.variants:
        label = called.get(variant.label, variant.label)
        runs = {
            role: found[f"{paper}/{run}"] or (Run(f"{paper}/{run}", 0, "not at this scale"),)
            for role, run in variant.runs.items()
        }
        published = published_row(exhibit, variant) or {}
        cells: dict[str, Cell] = {}
        for column in exhibit.columns:
            parts = [cells[part] for part in column.sum_of]
            cells[column.name] = (
                _summed(label, column, parts) if parts else _cell(label, column, published, runs.get(column.run, ()), folders)
            )
        variants.append(VariantView(variant, runs, cells, label))
    quoted = [
        (str(each.get("model", "quoted")), {key: float(value) for key, value in each.items() if _number(value)})
        for each in published_table(exhibit)
        if each["quoted"]
    ]
    return View(name, exhibit, scale, tuple(variants), tuple(quoted))


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(label: str, column: Column, published: Mapping[str, Any], runs: Sequence[Run], folders: RunFolders) -> Cell:
    printed = published.get(column.name)
    planned = any(run.status != "not at this scale" for run in runs)
    finished = [run for run in runs if run.status == "finished"]
    measured = [found for run in finished if (found := measure(run, column, folders)) is not None]
    return Cell(label, column, float(printed) if _number(printed) else None, tuple(measured), planned, finished=len(finished))


def _sum_of(published: Mapping[str, float], column: Column) -> float | None:
    """What a published row has in a column, or in all that the column sums."""
    parts = [published.get(name) for name in column.sum_of or [column.name]]
    return None if None in parts else math.fsum(part for part in parts if part is not None)


def _summed(label: str, column: Column, parts: Sequence[Cell]) -> Cell:
    """The cell of a column that sums others: of the seeds that all of them have."""
    by_seed = [{each.seed: each for each in part.measured} for part in parts]
    measured = []
    for seed in sorted(set.intersection(*(set(each) for each in by_seed))):
        each = [of_part[seed] for of_part in by_seed]
        images = [one.by_image for one in each if one.by_image is not None]
        factors = {one.factor for one in images}
        by_image = None
        if len(images) == len(each) and len(factors) == 1 and len({one.images for one in images}) == 1:
            total, count = (np.concatenate(arrays, 1) for arrays in zip(*((x.total_IT, x.count_IT) for x in images), strict=True))
            by_image = PerImage(total, count, factors.pop())
        measured.append(replace(each[0], value=math.fsum(one.value for one in each), by_image=by_image))
    published = _sum_of({part.column.name: part.published for part in parts if part.published is not None}, column)
    planned, finished = all(part.planned for part in parts), max(part.finished for part in parts)
    return Cell(label, column, published, tuple(measured), planned, finished=finished)


def measure(run: Run, column: Column, folders: RunFolders) -> Measured | None:
    """A column's number of a finished run; None where the run does not have it."""
    # One that starts from a trained run has that run's seed, though it draws nothing itself.
    seeded = run.planned is None or run.planned.recipe.seeded or bool(run.planned.after)
    code = None if run.results is None else run.results.code
    if column.cost is not None:
        cost, origin = (None, None) if run.results is None else (run.results.cost, run.results.provenance)
        value: object = None if cost is None else getattr(cost, column.cost)
        if not _number(value):
            return None
        where = None if column.cost in COUNTED or origin is None else _conditions(origin.device)
        return Measured(run.seed, column.factor * value, seeded=seeded, conditions=where, code=code)
    if column.attention is not None:
        return _grounding(run, column, "attention", column.attention, seeded, code)
    if column.gradient is not None:
        return _grounding(run, column, "gradient", column.gradient, seeded, code)
    evaluation = run.evaluation(column.data)
    value = None if evaluation is None else evaluation.metrics.get(str(column.metric))
    if evaluation is None or not _number(value) or not math.isfinite(value):
        return None
    found = per_image(str(column.metric), folders.arrays(run, evaluation), value)
    if found is not None:
        found = PerImage(found.total_IT, found.count_IT, found.factor * column.factor)
    return Measured(run.seed, column.factor * value, found, run.fingerprint(evaluation.data), evaluation.data, seeded, code=code)


def _grounding(run: Run, column: Column, by: By, name: str, seeded: bool, code: str | None) -> Measured | None:
    """A share of the maps of words, by image, where `report --maps` or `crosslight ground` has measured it."""
    shares = None if run.folder is None else stored_shares(run.folder, by)
    values_W = getattr(shares, f"{name}_W", None)
    if shares is None or values_W is None:
        return None
    by_image = word_means(values_W, shares.image_W, column.factor)
    return Measured(run.seed, by_image.value(), by_image, shares.fingerprint, shares.data or None, seeded, code=code)


def _conditions(device: Device) -> str:
    """ "AMD EPYC, 1 process, 2 threads": what times and memory depend on besides the run. Whatever else was running on the
    machine is not known."""
    processes, threads = device.world_size, device.threads
    told = [device.name, f"{processes} process{'es' * (processes != 1)}"]
    return ", ".join([*told, *([f"{threads} thread{'s' * (threads != 1)}"] if threads is not None else [])])
