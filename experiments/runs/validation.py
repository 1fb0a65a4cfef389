"""What a run's best validation measured: the numbers that runs are compared and chosen by, never those of a test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError
from experiments.runs.metrics_csv import FILE, read_rows
from experiments.runs.results import Results


@dataclass(frozen=True)
class BestValidation:
    """The validation whose weights are kept as the best.

    Args:
        monitor: What chose it, without "val/".
        value: The monitor's.
        metrics: All that it measured, by name without "val/"; at most the monitor where metrics.csv has no more of it.
        steps: Of the optimizer before it; None where metrics.csv does not have it.
        count: How many validations there were, this one included.
    """

    monitor: str
    value: float
    metrics: dict[str, float]
    steps: int | None
    count: int


def best_validation(folder: Path, results: Results) -> BestValidation | None:
    """Of a run folder; None where nothing was trained, or nothing validated.

    Raises:
        InputError: metrics.csv cannot be read, or holds something else than numbers.
    """
    fit = results.fit
    if fit is None or fit.monitor is None or fit.best_value is None:
        return None
    rows = [row for row in read_rows(folder) if row.get(fit.monitor)]
    try:
        best = next((row for row in rows if math.isclose(float(row[fit.monitor]), fit.best_value, rel_tol=1e-6)), None)
        found = {} if best is None else {name[4:]: float(cell) for name, cell in best.items() if cell and name.startswith("val/")}
        steps = None if best is None else int(best["step"]) + 1
    except ValueError as error:
        raise InputError(
            f"{folder / FILE} has something else than numbers ({error}): restore it, or run the run again."
        ) from None
    if fit.monitor.startswith("val/"):
        found = {fit.monitor[4:]: fit.best_value, **found}
    return BestValidation(fit.monitor.removeprefix("val/"), fit.best_value, found, steps, len(rows))
