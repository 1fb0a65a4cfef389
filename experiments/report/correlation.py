"""Do checkpoints that keep relations closer retrieve better? Pearson's r of two logged metrics over the validations of runs
(Figure 3 of IAIS: ISDa against Meta-Sum over checkpoints of a plain fine-tuning, r = -0.60)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from datamodules.errors import InputError, printable
from experiments.runs.metrics_csv import FILE, ISDA, META_SUM, Validation, logged, validations
from experiments.runs.seeds import configuration_of
from experiments.runs.store import read_run, run_folders_below


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's correlation coefficient; None where it is not defined: fewer than two points, or all of one value."""
    if len(xs) != len(ys):
        raise ValueError(f"{len(xs)} values against {len(ys)}")
    if len(xs) < 2:
        return None
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    spread_x = math.fsum((x - mean_x) ** 2 for x in xs)
    spread_y = math.fsum((y - mean_y) ** 2 for y in ys)
    if not spread_x or not spread_y:
        return None
    together = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return together / math.sqrt(spread_x) / math.sqrt(spread_y)


def _all(folders: Iterable[Path]) -> str:
    """What stands for all runs together: they may be more than the seeds of one configuration."""
    runs = [read_run(folder) for folder in folders]
    known = [configuration_of(run.folder, run.results) for run in runs if run.folder is not None and run.results is not None]
    configurations, seeds = {each.digest for each in known}, {(each.digest, each.seed) for each in known}
    words = [f"{len(configurations)} configurations"] if len(configurations) > 1 else []
    words += [f"{len(seeds)} different runs of {len(known)}"] if len(seeds) < len(known) else []
    return ", ".join(["all", *words])


def report(folders: Iterable[str | Path], x: str = ISDA, y: str = META_SUM) -> list[str]:
    """One line a run, and with several runs one over all their checkpoints. One whose file is damaged says so.

    Raises:
        InputError: A folder does not exist or holds no run that logged anything, or one that lacks a column.
    """
    runs: dict[Path, list[Validation]] = {}
    damaged: list[str] = []
    for run in run_folders_below(folders, FILE):
        try:
            for metric in (x, y):
                logged(run, metric)
        except InputError as error:
            damaged.append(f"{printable(str(run))}  cannot be read: {error}")
        else:
            runs[run] = validations(run, x, y)
    named = {printable(str(run)): found for run, found in runs.items()}
    if len(runs) > 1:
        named[_all(runs)] = [each for found in runs.values() for each in found]
    width = max(map(len, named), default=3)
    lines = [f"{x} against {y}", f"{'run':<{width}}  checkpoints  Pearson's r"]
    for name, found in named.items():
        r = pearson([each.x for each in found], [each.y for each in found])
        lines.append(f"{name:<{width}}  {len(found):>11}  {'-' if r is None else f'{r:.3f}':>11}")
    return lines + damaged
