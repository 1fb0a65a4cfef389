"""metrics.csv of a run folder: everything logged, a row a step. Its one reader; `experiments.training.loggers` writes it."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError

FILE = "metrics.csv"
ISDA, META_SUM = "val/isda", "val/rsum"


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The complete rows so far; empty where there is no file. The run may be writing it: half a line at its end is left out, as a
    process that was killed leaves one."""
    file = folder / FILE
    if not file.exists():
        return []
    text = file.read_text()
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))


def logged(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Step and value of every row that has the metric as a finite number."""
    points = [(int(row["step"]), float(row[metric])) for row in read_rows(folder) if row.get(metric)]
    return [(step, value) for step, value in points if math.isfinite(value)]


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
    points = [Validation(int(row["step"]), float(row[x]), float(row[y])) for row in rows if row[x] and row[y]]
    return [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
