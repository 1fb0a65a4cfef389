"""Which options of a sweep decide its metric, and what to try next. A few runs say little: each share stands beside what chance
gives, and a proposal is one to check, not an answer."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
_SHUFFLES, _CANDIDATES, _SEED = 500, 2000, 20210804
_FEWEST = 4  # runs: with three a curve of second order fits everything


def varied(frame: pd.DataFrame, metric: str) -> list[str]:
    """The options of `load_runs(...).frame()` that differ among the runs that have the metric.

    Raises:
        InputError: The frame has no such metric.
    """
    measured = _measured(frame, metric)
    options = frame.attrs.get("options", {})
    return [name for name in frame.columns if name in options and len(set(words_of(measured[name]))) > 1]


def importance(frame: pd.DataFrame, metric: str, options: Sequence[str] | None = None) -> pd.DataFrame:
    """For each option the share of the metric's variance (of its ranks) that it explains alone: option, share, chance, runs.

    Numbers explain by a curve of second order over their ranks, words by the means of their groups. `chance` is the share that a
    shuffled metric reaches in 5 of 100 shuffles: a share below it says nothing.

    Args:
        frame: Of runs.
        metric: Its column.
        options: Default: all that were varied.

    Raises:
        InputError: Fewer than four runs have the metric.
    """
    import pandas

    measured = _measured(frame, metric)
    if len(measured) < _FEWEST:
        raise InputError(f"{len(measured)} runs have {metric}; what decides it can be asked of {_FEWEST} or more.")
    ranks_N = measured[metric].rank().to_numpy(np.float64)
    shuffled_SN = np.stack([np.random.default_rng([_SEED, n]).permutation(ranks_N) for n in range(_SHUFFLES)])
    rows = []
    for name in varied(frame, metric) if options is None else options:
        design_NP = _design(measured[name])
        share = _explained(design_NP, ranks_N[None])[0]
        chance = float(np.quantile(_explained(design_NP, shuffled_SN), 0.95))
        rows.append({"option": name, "share": float(share), "chance": chance, "runs": len(measured)})
    table = pandas.DataFrame(rows, columns=["option", "share", "chance", "runs"])
    return table.sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


def proposals(frame: pd.DataFrame, metric: str, maximize: bool = True, count: int = 3) -> pd.DataFrame:
    """Points to try next, within what was tried: a column an option, `expected` and `deviation` of the metric there, and
    `command`, the options as `crosslight run` takes them.

    An option of which few values were tried is one of these. A Gaussian process over the options (numbers, where they span more
    than ten times on a logarithmic scale; words apart) is fitted to the runs, and the points with the largest expected
    improvement are given, each as if the ones before had come out as expected.

    Raises:
        InputError: Fewer than four runs have the metric, or no number was varied.
    """
    import pandas

    measured = _measured(frame, metric)
    # an option that some runs lack (of an adapter that they have not) cannot be combined with all others
    names = [name for name in varied(frame, metric) if not measured[name].isna().any()]
    if len(measured) < _FEWEST or not any(is_numeric(list(measured[name])) for name in names):
        raise InputError(
            f"{len(measured)} runs have {metric}, and {', '.join(names) or 'no option'} was varied in all of them: a proposal "
            f"takes {_FEWEST} runs or more that differ in a number."
        )
    axes = [_Axis(measured[name]) for name in names]
    sign = 1.0 if maximize else -1.0
    value_N = sign * measured[metric].to_numpy(np.float64)
    mean, scale = float(value_N.mean()), float(value_N.std()) or 1.0
    value_N = (value_N - mean) / scale
    point_NP = np.concatenate([axis.place(list(measured[name])) for axis, name in zip(axes, names, strict=True)], 1)
    rng = np.random.default_rng(_SEED)
    drawn = [axis.draw(rng, _CANDIDATES) for axis in axes]
    point_CP = np.concatenate([axis.place(values) for axis, values in zip(axes, drawn, strict=True)], 1)
    written = frame.attrs["options"]
    rows = []
    for _ in range(count):
        expected_C, deviation_C = _process(point_NP, value_N, point_CP)
        chosen = int(np.argmax(_improvement(expected_C, deviation_C, float(value_N.max()))))
        values = [each[chosen] for each in drawn]
        command = shlex.join(f"--{written[name]}={_written(value)}" for name, value in zip(names, values, strict=True))
        rows.append({**dict(zip(names, values, strict=True)), "expected": sign * (mean + scale * float(expected_C[chosen])),
                     "deviation": scale * float(deviation_C[chosen]), "command": command})  # fmt: skip
        point_NP, value_N = np.vstack([point_NP, point_CP[chosen]]), np.append(value_N, expected_C[chosen])
    return pandas.DataFrame(rows)


def _measured(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    if metric not in frame:
        there = [name for name in frame.columns if "/" in name]
        raise InputError(f"no run has {metric}; the metrics are {', '.join(there) or 'none'}.")
    return frame.dropna(subset=[metric])


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether an option's values are numbers; an option that is not set is a word."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values)


def words_of(values: Iterable[Any]) -> list[str]:
    """Values as words; one that is not set is "null"."""
    return ["null" if value is None or value != value else str(value) for value in values]


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether numbers span more than ten times, all above zero."""
    return min(values) > 0 and max(values) / min(values) > 10


def _design(values: pd.Series) -> Floats:
    """[N, P]: what the metric is explained by, with a constant."""
    groups = words_of(values)
    if is_numeric(list(values)) and len(set(groups)) > 2:
        rank_N = values.rank().to_numpy(np.float64)
        rank_N = (rank_N - rank_N.mean()) / (np.ptp(rank_N) or 1.0)
        return np.stack([np.ones_like(rank_N), rank_N, rank_N**2], 1)
    return np.array([[each == group for group in dict.fromkeys(groups)] for each in groups], np.float64)


def _explained(design_NP: Floats, value_SN: Floats) -> Floats:
    """[S]: R squared of least squares, lowered for the parameters that it has (adjusted), not below 0."""
    runs, parameters = design_NP.shape
    solved_PS = np.linalg.lstsq(design_NP, value_SN.T, rcond=None)[0]
    left_S = ((value_SN.T - design_NP @ solved_PS) ** 2).sum(0)
    total_S = ((value_SN - value_SN.mean(1, keepdims=True)) ** 2).sum(1)
    shares: Floats = 1 - left_S / np.where(total_S > 0, total_S, 1.0) * (runs - 1) / max(runs - parameters, 1)
    return np.clip(np.where(total_S > 0, shares, 0.0), 0.0, 1.0)


class _Axis:
    """An option as coordinates: a number between its bounds (0 to 1), or a word as one of several corners."""

    def __init__(self, values: pd.Series) -> None:
        self.numbers = is_numeric(list(values))
        self.values = dict(zip(words_of(values), values, strict=True))
        self.few = not self.numbers or len(self.values) <= max(3, len(values) // 4)  # choices, not draws
        if self.numbers:
            self.whole = all(isinstance(value, int) for value in values)
            self.low, self.high = float(values.min()), float(values.max())
            self.log = is_logarithmic(list(values))

    def place(self, values: Sequence[Any]) -> Floats:
        if not self.numbers:
            placed: Floats = np.array([[each == word for word in self.values] for each in words_of(values)], np.float64)
            return placed / math.sqrt(2)
        number_N = np.array(values, np.float64)
        ends = np.array([self.low, self.high])
        if self.log:
            number_N, ends = np.log(number_N), np.log(ends)
        placed = (number_N - ends[0]) / ((ends[1] - ends[0]) or 1.0)
        return placed[:, None]

    def draw(self, rng: np.random.Generator, count: int) -> list[Any]:
        if self.few:
            choices = list(self.values.values())
            return [choices[number] for number in rng.integers(len(choices), size=count)]
        part_C = rng.random(count)
        drawn = self.low * (self.high / self.low) ** part_C if self.log else self.low + (self.high - self.low) * part_C
        return [round(value) if self.whole else float(f"{value:.3g}") for value in drawn]


def _process(point_NP: Floats, value_N: Floats, point_CP: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation [C] of a Gaussian process; its length and noise are those of a few that fit the runs best."""
    best, found = -math.inf, (np.zeros(len(point_CP)), np.ones(len(point_CP)))
    for length in (0.15, 0.3, 0.6, 1.2):
        for noise in (0.01, 0.1, 0.4):
            kernel_NN = _kernel(point_NP, point_NP, length) + noise * np.eye(len(point_NP))
            root_NN = np.linalg.cholesky(kernel_NN)
            solved_N = np.linalg.solve(root_NN.T, np.linalg.solve(root_NN, value_N))
            likelihood = -0.5 * float(value_N @ solved_N) - float(np.log(np.diag(root_NN)).sum())
            if likelihood > best:
                kernel_CN = _kernel(point_CP, point_NP, length)
                spread_NC = np.linalg.solve(root_NN, kernel_CN.T)
                best = likelihood
                found = kernel_CN @ solved_N, np.sqrt(np.clip(1.0 - (spread_NC**2).sum(0), 1e-9, None))
    return found


def _kernel(one_NP: Floats, other_MP: Floats, length: float) -> Floats:
    squared: Floats = ((one_NP[:, None] - other_MP[None]) ** 2).sum(-1)
    return np.exp(-squared / (2 * length**2))


def _improvement(expected_C: Floats, deviation_C: Floats, best: float) -> Floats:
    better_C = (expected_C - best) / deviation_C
    density_C = np.exp(-(better_C**2) / 2) / math.sqrt(2 * math.pi)
    below_C = np.array([0.5 * (1 + math.erf(each / math.sqrt(2))) for each in better_C])
    return deviation_C * (better_C * below_C + density_C)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else words_of([value])[0]
