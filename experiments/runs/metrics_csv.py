"""metrics.csv of a run folder: everything logged, a row a step."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError


def history(folder: Path, metric: str) -> list[float]:
    """The finite values of a column of metrics.csv so far, a value a validation; the run may be writing it."""
    file = folder / "metrics.csv"
    if not file.exists():
        return []
    text = file.read_text()
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    values = [float(row[metric]) for row in rows if row.get(metric)]
    return [value for value in values if math.isfinite(value)]


ISDA, META_SUM = "val/isda", "val/rsum"


@dataclass(frozen=True)
class Validation:
    """Both metrics after some step of a run."""

    step: int
    x: float
    y: float


def validations(run: Path, x: str = ISDA, y: str = META_SUM) -> list[Validation]:
    """The rows of a run's metrics.csv that have both metrics, as finite numbers.

    Raises:
        InputError: The file lacks one of the columns.
    """
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for column in (x, y):
        if rows and column not in rows[0]:
            there = sorted(name for name in rows[0] if name and name.startswith("val/"))
            raise InputError(f"{run / 'metrics.csv'} has no column {column}; of validation it has {', '.join(there) or 'none'}.")
    found = [Validation(int(row["step"]), float(row[x]), float(row[y])) for row in rows if row[x] and row[y]]
    return [each for each in found if math.isfinite(each.x) and math.isfinite(each.y)]
