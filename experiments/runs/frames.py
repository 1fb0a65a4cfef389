"""Runs as pandas frames. Names of columns are those of results.json, metrics.csv and config.yaml.

    runs = load_runs("runs/")
    runs.frame()      # a row a run: name, seed, status, COCO/test/t2i_r1, the options that differ, cost, device, revision
    runs.per_query()  # a row a query of every test: rank, or the scores of a caption beside it and its references
    runs.history()    # what was logged: run, step, epoch, metric, value

pandas is imported when a frame is made.
"""

from __future__ import annotations

import glob
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError, some
from experiments.runs.beside import read_beside
from experiments.runs.headings import counted
from experiments.runs.metrics_csv import FILE, read_rows
from experiments.runs.results import Evaluation, Results
from experiments.runs.seeds import configuration_of, differing, short_name
from experiments.runs.store import Run, arrays_of, folders_holding, read_run
from experiments.runs.validation import best_validation

if TYPE_CHECKING:
    import pandas as pd

_COSTS = (
    "tunable_parameters", "tunable_percent", "adapter_parameters", "total_parameters", "peak_memory_bytes", "seconds_per_epoch",
    "seconds_per_step_median", "pairs_per_second",
)  # fmt: skip
# What `Configuration.options` has beside options: the frame has columns of its own for it.
_NO_OPTIONS = {"code", "command", "scale", "parameters", "configuration"}
_BEGUN = ("config.yaml", "metrics.csv", "checkpoints")  # what a folder has that was to be a run


@dataclass(frozen=True)
class Row:
    """What the frame has of one run.

    Args:
        identity: Which run it is, and how it ended.
        metrics: Of its tests, as DATA/SPLIT/METRIC, and of its best validation.
        options: Its configuration, by dotted name.
        further: What it cost, where and when it was computed, by which code.
    """

    identity: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    further: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Runs:
    """Runs that were found, with what cannot be read among them.

    Args:
        runs: In the order of their folders.
        without: Folders beside them in which there is no run.
    """

    runs: tuple[Run, ...]
    without: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __repr__(self) -> str:
        counts = Counter(run.status for run in self.runs)
        lines = [f"{counted(len(self), 'run')}: " + ", ".join(f"{count} {status}" for status, count in counts.most_common())]
        lines += [f"  {run.status}: {run.folder}: {run.error}" for run in self.runs if run.status == "unreadable"]
        lines += [f"  no run in: {', '.join(map(str, self.without))}"] if self.without else []
        return "\n".join(lines)

    @property
    def finished(self) -> Runs:
        """Those that are finished."""
        return Runs(tuple(run for run in self.runs if run.status == "finished"), self.without)

    def named(self, pattern: str) -> Runs:
        """Those whose folder's name has the pattern, such as `mwa-*`."""
        return Runs(tuple(run for run in self.runs if run.folder is not None and run.folder.match(pattern)), self.without)

    def frame(self) -> pd.DataFrame:
        """A row a run: run, name, seed, status; DATA/SPLIT/METRIC of every test, val/METRIC of the best validation; the options
        in which runs differ that have them (`model.optimization.lr`); cost, seconds, device, revision; folder and error. Values
        that a run does not have are missing (NaN or None)."""
        return frame_of(self.rows())

    def rows(self) -> list[Row]:
        """What `frame` is made of."""
        return [_row(run, label) for label, run in self.labelled()]

    def per_query(self) -> pd.DataFrame:
        """A row a query of every test of finished runs: run, name, seed, data, split, kind, query, image, and

        - of kind `i2t` and `t2i`: the rank of the first right answer (from 1). `query` is the row of the image or of the caption
          in the split, `image` that of the image;
        - of kind `caption`: a column a score, and `image_id`, `file`, `caption`, `references` where the run has kept them;
        - of kind `image`: a column a score, of a model that writes no captions.

        `experiments.analysis.queries.with_data` adds what captions and images of the data set a query is about.
        """
        pandas = _pandas()
        parts = []
        for label, run in self.labelled():
            for evaluation in run.results.tests() if run.results is not None and run.status == "finished" else ():
                try:
                    found = _queries(run, evaluation)
                except InputError as error:
                    warnings.warn(f"{label}: left out of the queries: {error}", stacklevel=2)
                    continue
                about = {"run": label, "name": run.name, "seed": run.seed, "data": evaluation.data, "split": evaluation.split}
                parts += [pandas.DataFrame({**about, **columns}) for columns in found]
        names = ["run", "name", "seed", "data", "split", "kind", "query", "image", "rank"]
        if not parts:
            return pandas.DataFrame(columns=names)
        table = pandas.concat(parts, ignore_index=True)
        return table.reindex(columns=[*names, *(column for column in table.columns if column not in names)])

    def history(self, wide: bool = False) -> pd.DataFrame:
        """Everything that runs logged, finished or not: run, name, seed, step, epoch, metric, value; a row a value.

        Args:
            wide: A row a step with a column a metric instead, as metrics.csv has it.
        """
        pandas = _pandas()
        parts = []
        for label, run in self.labelled():
            try:
                rows = [] if run.folder is None else _numbers(run.folder)
            except InputError as error:
                warnings.warn(f"{label}: left out of the history: {error}", stacklevel=2)
                continue
            if rows:
                about = {"run": label, "name": run.name, "seed": run.seed}
                parts.append(pandas.DataFrame(rows).assign(**about))
        first = ["run", "name", "seed", "step", "epoch"]
        if not parts:
            return pandas.DataFrame(columns=first if wide else [*first, "metric", "value"])
        table = pandas.concat(parts, ignore_index=True)
        metrics = sorted(column for column in table.columns if column not in first)
        if wide:
            return table.reindex(columns=[*first, *metrics])
        table = table.reindex(columns=[*first, *metrics]).melt(first, metrics, "metric", "value")
        return table.dropna(subset="value").reset_index(drop=True)

    def labelled(self) -> list[tuple[str, Run]]:
        """What frames call each run: its folder's name, or the whole path where several have one name."""
        names = Counter(run.folder.name for run in self.runs if run.folder is not None)
        return [
            (str(run.folder) if run.folder is None or names[run.folder.name] > 1 else run.folder.name, run) for run in self.runs
        ]


def read_runs(where: Sequence[str | Path]) -> Runs:
    """What `experiments.runs.load_runs` gives."""
    if not where:
        raise InputError('load_runs() was given no folder; give one that holds runs: load_runs("runs/").')
    found: dict[Path, Run] = {}
    without: dict[Path, None] = {}
    for place in where:
        roots, asked = _folders(place)
        some_run = False
        for root in roots:
            runs, empty = _search(root)
            some_run = some_run or any(os.path.lexists(folder / "results.json") for folder in runs)
            for folder in runs:
                found.setdefault(folder.resolve(), _read(folder))
            without.update(dict.fromkeys(empty))
        if not some_run:
            raise InputError(
                f"{asked} holds no results.json: there is no run in it. `crosslight demo` makes some in runs/papers."
            )
    all_runs = Runs(tuple(found.values()), tuple(without))
    if bad := [str(run.folder) for run in all_runs if run.status == "unreadable"]:
        warnings.warn(f"{len(bad)} of {len(all_runs)} runs cannot be read ({some(bad)}): their rows say why.", stacklevel=3)
    return all_runs


def _folders(place: str | Path) -> tuple[list[Path], str]:
    """The folder, or those of a pattern."""
    if Path(place).is_dir():
        return [Path(place)], str(place)
    if not glob.has_magic(str(place)):
        raise InputError(f"{place} is not a folder. Give run folders, folders that hold them, or a pattern such as runs/mwa-*.")
    folders = sorted(Path(each) for each in glob.glob(str(place), recursive=True) if os.path.isdir(each))
    if not folders:
        raise InputError(f"no folder is named {place}. `crosslight demo` makes runs in runs/papers.")
    return folders, str(place)


def _search(root: Path) -> tuple[list[Path], list[Path]]:
    """Run folders at or below a folder; and folders in the ones that lead to them in which there is no run."""
    finished = sorted(folders_holding(root, "results.json"))
    above = {parent for run in finished for parent in run.parents if parent == root or root in parent.parents}
    if not finished:
        return ([root], []) if _was_begun(root) else ([], [root])
    runs, empty = set(finished), []
    for folder in sorted(above - runs):
        for child in sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")):
            if child in above or child in runs:
                continue
            if _was_begun(child):
                runs.add(child)
            else:
                empty.append(child)
    return sorted(runs), empty


def _was_begun(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in _BEGUN)


def _read(folder: Path) -> Run:
    run = read_run(folder)
    if os.path.lexists(folder / "results.json"):
        return run
    return replace(run, status="unreadable", error="it has no results.json: it was stopped early, or is no run of crosslight")


def _row(run: Run, label: str) -> Row:
    identity: dict[str, Any] = {"run": label, "name": run.name, "seed": run.seed, "status": run.status}
    results = run.results
    if results is None or run.folder is None:
        return Row({**identity, "seed": None}, further={"folder": str(run.folder), "error": run.error or None})
    configuration = configuration_of(run.folder, results)
    options = {name: value for name, value in configuration.options.items() if name not in _NO_OPTIONS}
    problem = configuration.problem
    try:
        best = best_validation(run.folder, results)
    except InputError as error:
        best, problem = None, problem or str(error)
    metrics = {f"{test.data}/{test.split}/{name}": value for test in results.evaluations for name, value in test.metrics.items()}
    if best is not None and results.fit is not None and results.fit.monitor is not None:
        metrics |= {results.fit.monitor: best.value, **{f"val/{name}": value for name, value in best.metrics.items()}}
    return Row({**identity, "seed": results.seed}, metrics, options, _further(run, results, problem))


def _further(run: Run, results: Results, problem: str | None) -> dict[str, Any]:
    cost = {} if results.cost is None else asdict(results.cost)
    device = None if results.provenance is None else results.provenance.device
    return {
        "scale": results.scale, "steps": None if results.fit is None else results.fit.steps, "seconds": results.seconds,
        **{name: cost.get(name) for name in _COSTS},
        "device": None if device is None else device.name, "processes": None if device is None else device.world_size,
        "precision": None if device is None else device.precision, "revision": results.code,
        "started": results.started, "finished": results.finished, "parent": results.parent, "command": results.command,
        "folder": str(run.folder), "error": run.error or problem,
    }  # fmt: skip


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a frame, with the options in which they differ; lists and the like are JSON, and whole numbers stay whole where
    runs lack them. `frame.attrs["options"]` has the columns that are options, with what they are called on a command line."""
    columns, lines, options = table_of(rows)
    frame = _pandas().DataFrame(lines, columns=columns)
    for name in options:
        values = [line.get(name) for line in lines]
        if None in values and all(value is None or type(value) is int for value in values):
            frame[name] = _pandas().Series(values, dtype=object)
    frame.attrs["options"] = options
    return frame


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[dict[str, Any]], dict[str, str]]:
    """The frame's columns and rows, for who writes them without pandas, and the options by their columns."""
    options = [{short_name(name): _plain(value) for name, value in row.options.items()} for row in rows]
    taken = {name for row in rows for part in (row.identity, row.metrics, row.further) for name in part}
    names = differing(options, absent=False)
    columns = [f"option {name}" if name in taken else name for name in names]
    lines = [
        {**row.identity, **row.metrics, **{column: each.get(name) for column, name in zip(columns, names, strict=True)},
         **row.further}
        for row, each in zip(rows, options, strict=True)
    ]  # fmt: skip
    first = _in_order(row.identity for row in rows)
    last = _in_order(row.further for row in rows)
    metrics = _in_order(row.metrics for row in rows)
    written = {short_name(name): name.removesuffix(".class_path") for row in rows for name in row.options}
    return (
        [*first, *metrics, *columns, *last],
        lines,
        {column: written[name] for column, name in zip(columns, names, strict=True)},
    )


def _in_order(parts: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part))


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)


def _queries(run: Run, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Columns of the queries of a test, for each kind of query."""
    arrays = dict(arrays_of(run, evaluation))
    kinds: list[dict[str, Any]] = []
    for side in ("i2t", "t2i"):
        if (rank_Q := arrays.pop(f"{side}_rank", None)) is None:
            continue
        image_Q = arrays.pop(f"{side}_image_index")
        query_Q = arrays.pop("t2i_text_index", None) if side == "t2i" else image_Q
        kinds.append(
            {"kind": side, "query": range(len(rank_Q)) if query_Q is None else query_Q, "image": image_Q, "rank": rank_Q}
        )
    if not arrays:
        return kinds
    beside = [] if run.folder is None else read_beside(run.folder, evaluation.data)
    for size in dict.fromkeys(len(array) for array in arrays.values()):
        columns: dict[str, Any] = {"kind": "image", "query": range(size), "image": range(size)}
        if len(beside) == size:
            columns |= {"kind": "caption", "image_id": [row.image_id for row in beside], "file": [row.file for row in beside],
                        "caption": [row.caption for row in beside], "references": [row.references for row in beside]}  # fmt: skip
        kinds.append({**columns, **{name: array for name, array in arrays.items() if len(array) == size}})
    return kinds


def _numbers(folder: Path) -> list[dict[str, float | int]]:
    """The rows of metrics.csv as numbers, without what they do not have.

    Raises:
        InputError: Something in it is no number.
    """
    rows: list[dict[str, float | int]] = []
    for place, row in enumerate(read_rows(folder), 1):
        try:
            values = {name: float(cell) for name, cell in row.items() if cell and name != "step"}
            rows.append({"step": int(row["step"]), **{name: value for name, value in values.items() if not math.isnan(value)}})
        except ValueError as error:
            raise InputError(f"{folder / FILE}: row {place} has something else than numbers ({error}).") from None
    return rows


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise InputError(
            f"frames of runs need pandas, which is not installed ({error}): pip install 'crosslight[notebooks]'"
        ) from None
    return pandas
