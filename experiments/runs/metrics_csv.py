"""metrics.csv of a run folder: everything logged, a row a step. Its one reader; `experiments.training.loggers` writes it."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError, shown
from datamodules.files.text import read_text

FILE = "metrics.csv"
_REMEDY = "It was changed or damaged after it was written: restore it, or delete the run's folder to run it again."
ISDA, META_SUM = "val/isda", "val/rsum"


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The complete rows so far; empty where there is no file. The run may be writing it: half a line at its end is left out, as a
    process that was killed leaves one.

    Raises:
        InputError: The file cannot be read, or a row has not the columns that the first line names.
    """
    file = folder / FILE
    if not os.path.lexists(file) or (file.is_file() and not file.stat().st_size):
        return []
    text = read_text(file, "the metrics of a run")
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""), strict=True)
    rows: list[dict[str, str]] = []
    try:
        columns = next(lines, [])
        if len(set(columns)) < len(columns) or (columns and "step" not in columns):
            raise InputError(f"{file}: line 1 names no columns of metrics, once each, 'step' among them. {_REMEDY}")
        for cells in lines:
            if len(cells) != len(columns):
                raise InputError(f"{file}: line {lines.line_num} has {len(cells)} values for {len(columns)} columns. {_REMEDY}")
            rows.append(dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise InputError(f"{file}: line {lines.line_num} is no line of a CSV file ({error}). {_REMEDY}") from None
    return rows


def require_whole(folder: Path) -> None:
    """See that the metrics of a finished run, where there are any, are numbers and end where a row ends.

    Raises:
        InputError: They do not, or cannot be read.
    """
    rows, file = read_rows(folder), folder / FILE
    for place, row in enumerate(rows):
        try:
            int(row["step"])
            [float(cell) for cell in row.values() if cell]
        except ValueError as error:
            raise InputError(f"{file}: row {place + 1} has something else than numbers ({error}). {_REMEDY}") from None
    if os.path.lexists(file) and (not rows or not read_text(file, "the metrics of a run").endswith("\n")):
        raise InputError(f"{file} ends within a row, though the run is finished. {_REMEDY}")


def logged(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Step and value of every row that has the metric as a finite number."""
    return [(step, values[0]) for step, values in _numbers(folder, (metric,))]


def _numbers(folder: Path, metrics: Sequence[str]) -> list[tuple[int, list[float]]]:
    """Step and values of every row that has all metrics as finite numbers.

    Raises:
        InputError: A row has something else in one of these columns.
    """
    found = []
    for place, row in enumerate(read_rows(folder)):
        if not all(row.get(metric) for metric in metrics):
            continue
        try:
            step, values = int(row["step"]), [float(row[metric]) for metric in metrics]
        except ValueError:
            told = ", ".join(f"{name} {shown(row[name])}" for name in ("step", *metrics))
            raise InputError(f"{folder / FILE}: row {place + 1} has {told}, which are no numbers. {_REMEDY}") from None
        if all(map(math.isfinite, values)):
            found.append((step, values))
    return found


def history(folder: Path, metric: str) -> list[float]:
    """The finite values of a metric so far."""
    return [value for _, value in logged(folder, metric)]


@dataclass(frozen=True)
class Validation:
    """Both metrics after some step of a run."""

    step: int
    x: float
    y: float


def validations(folder: Path, x: str = ISDA, y: str = META_SUM) -> list[Validation]:
    """The rows that have both metrics, as finite numbers.

    Raises:
        InputError: The file lacks one of the columns.
    """
    rows = read_rows(folder)
    for column in (x, y):
        if rows and column not in rows[0]:
            there = sorted(name for name in rows[0] if name and name.startswith("val/"))
            raise InputError(f"{folder / FILE} has no column {column}; of validation it has {', '.join(there) or 'none'}.")
    return [Validation(step, *values) for step, values in _numbers(folder, (x, y))]
