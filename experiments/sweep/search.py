"""Points of a sweep: all of a grid, draws, Optuna's suggestions; and hyperband's verdicts on runs that are going on.

Grid and hyperband do what W&B's engine does (package sweeps 0.3.0, grid_search.py and hyperband_stopping.py): the same points
in the same order, the same runs stopped. Draws follow its distributions (params.py), with a seed, which W&B has none of: point
`i` is a pure function of (seed, i), so a larger count goes on where a smaller one ended.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datamodules.errors import InputError
from experiments.sweep.sweep_file import (
    MOST_POINTS,
    Hyperband,
    Parameter,
    Point,
    Sweep,
    leaves,
    nested,
)

Path = tuple[str, ...]


def point_id(point: Point) -> str:
    """8 hex digits of a point's values. 3.0 and 3 are one value, as they are to W&B."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list):
            return [plain(each) for each in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return hashlib.sha256(json.dumps(plain(point), sort_keys=True).encode()).hexdigest()[:8]


# ---------------------------------------------------------------------------------------------------------- grid and random


def grid(sweep: Sweep) -> Iterator[Point]:
    """Every combination once, the last parameter by name changing fastest. Nothing is laid out before it is asked for."""
    parameters = leaves(sweep.parameters)
    values = [_grid_values(parameter) for _, parameter in parameters]
    seen, missed = set(), 0
    for number in range(grid_size(sweep)):
        chosen: dict[Path, Any] = {}
        for (path, _), choices in zip(reversed(parameters), reversed(values), strict=True):
            number, place = divmod(number, len(choices))
            chosen[path] = choices[place]
        point = nested({path: chosen[path] for path, _ in parameters})
        if point_id(point) not in seen:
            seen.add(point_id(point))
            missed = 0
            yield point
        elif (missed := missed + 1) > MOST_POINTS:
            raise InputError(f"{sweep.file}: more than {MOST_POINTS:,} points in a row are there twice: raise q.")


def grid_size(sweep: Sweep) -> int:
    """Combinations of a grid, those that are there twice counted twice."""
    return math.prod(len(_grid_values(parameter)) for _, parameter in leaves(sweep.parameters))


class _Steps(Sequence[float]):
    """low, low + q, ... below high: W&B's np.arange, without laying it out."""

    def __init__(self, low: float, high: float, q: float) -> None:
        self.low, self.q, self.size = low, q, math.ceil((high - low) / q)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: Any) -> Any:
        return _clean(self.low + place * self.q)


def _grid_values(parameter: Parameter) -> Sequence[Any]:
    settings = parameter.settings
    if parameter.distribution == "constant":
        return [settings["value"]]
    if parameter.distribution == "int_uniform":
        return range(settings["min"], settings["max"] + 1)
    if parameter.distribution == "q_uniform":  # from min, without max
        return _Steps(settings["min"], settings["max"], settings["q"])
    return list(settings["values"])


def draws(sweep: Sweep, seed: int) -> Iterator[Point]:
    """Points without end; one that comes again is left out, up to a thousand times in a row."""
    seen: set[str] = set()
    missed = 0
    for number in itertools.count():
        point = nested({path: _drawn(sweep, parameter, seed, number, path) for path, parameter in leaves(sweep.parameters)})
        if point_id(point) in seen:
            missed += 1
            if missed == 1000:  # finitely many, and all seen
                return
            continue
        missed = 0
        seen.add(point_id(point))
        yield point


def _drawn(sweep: Sweep, parameter: Parameter, seed: int, number: int, path: Path) -> Any:
    try:
        value = _draw(parameter, seed, number, path)
    except (ArithmeticError, ValueError):
        value = math.inf
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(
            f"{sweep.file}: {'.'.join(path)}: a {parameter.distribution} draw is no finite number: take smaller bounds or sigma."
        )
    return value


def _draw(parameter: Parameter, seed: int, number: int, path: Path) -> Any:
    """A value of a parameter: each has a random stream of its own, so that another parameter does not change it."""
    rng = random.Random(f"{seed} {number} {'/'.join(path)}")
    settings = parameter.settings
    kind = parameter.distribution.removeprefix("q_")
    if kind == "constant":
        return settings["value"]
    if kind in ("categorical", "categorical_w_probabilities"):
        return rng.choices(settings["values"], settings.get("probabilities"))[0]
    if kind == "int_uniform":
        return rng.randint(settings["min"], settings["max"])
    if kind == "uniform":
        value = rng.uniform(settings["min"], settings["max"])
    elif kind == "log_uniform_values":
        value = math.exp(rng.uniform(math.log(settings["min"]), math.log(settings["max"])))
    elif kind == "inv_log_uniform_values":
        # As W&B computes it, which is log-uniform again: the inverse of a log-uniform value between the inverse bounds.
        value = 1 / math.exp(rng.uniform(-math.log(settings["max"]), -math.log(settings["min"])))
    elif kind == "normal":
        value = rng.normalvariate(settings["mu"], settings["sigma"])
    elif kind == "log_normal":
        value = rng.lognormvariate(settings["mu"], settings["sigma"])
    else:
        value = rng.betavariate(settings["a"], settings["b"])
    if not parameter.distribution.startswith("q_"):
        return value
    q = settings["q"]
    steps = round(value / q)
    return steps * q if isinstance(q, int) else _clean(steps * q)


def _clean(value: float) -> float:
    """0.3 instead of 0.30000000000000004: it names a run."""
    return value if isinstance(value, int) else float(f"{value:.12g}")


# -------------------------------------------------------------------------------------------------------------------- bayes


class Bayes:
    """Suggestions of Optuna's TPE from the points that have been measured.

    Raises:
        InputError: Optuna is not installed, or a parameter has a distribution that Optuna has not.
    """

    def __init__(self, sweep: Sweep, seed: int) -> None:
        try:
            optuna: Any = importlib.import_module("optuna")
        except ModuleNotFoundError:
            raise InputError(
                f"{sweep.file}: method bayes needs Optuna: pip install optuna (or crosslight[search]); or use method: random."
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._sweep = sweep
        self._seed = seed
        self._space = {
            "/".join(path): _optuna_distribution(optuna, sweep, path, parameter)
            for path, parameter in leaves(sweep.parameters)
            if parameter.distribution != "constant"
        }

    def suggest(self, points: Sequence[Point], values: Sequence[float | None]) -> Point:
        """The next point, a pure function of the points so far. `values` are the metric's; None: not measured (yet)."""
        optuna = self._optuna
        sampler = optuna.samplers.TPESampler(seed=self._seed + len(points), constant_liar=True)
        study = optuna.create_study(direction=self._sweep.goal, sampler=sampler)
        kinds = optuna.trial.TrialState
        for point, value in zip(points, values, strict=True):
            state = kinds.RUNNING if value is None else kinds.COMPLETE
            given = {name: _to_optuna(self._space[name], _at(point, name)) for name in self._space}
            study.add_trial(optuna.trial.create_trial(state=state, params=given, distributions=self._space, value=value))
        asked = study.ask(self._space).params
        chosen = {
            path: parameter.settings["value"]
            if parameter.distribution == "constant"
            else _from_optuna(parameter, asked["/".join(path)])
            for path, parameter in leaves(self._sweep.parameters)
        }
        return nested(chosen)


def _optuna_distribution(optuna: Any, sweep: Sweep, path: Path, parameter: Parameter) -> Any:
    settings, kinds = parameter.settings, optuna.distributions
    if parameter.distribution == "categorical":
        return kinds.CategoricalDistribution([json.dumps(value) for value in settings["values"]])
    if parameter.distribution == "int_uniform":
        return kinds.IntDistribution(settings["min"], settings["max"])
    if parameter.distribution == "uniform":
        return kinds.FloatDistribution(settings["min"], settings["max"])
    if parameter.distribution in ("log_uniform_values", "inv_log_uniform_values"):
        return kinds.FloatDistribution(settings["min"], settings["max"], log=True)
    if parameter.distribution == "q_uniform":
        q = settings["q"]
        low, high = (_clean(math.floor(settings[end] / q + 0.5) * q) for end in ("min", "max"))
        return kinds.FloatDistribution(low, high, step=q)
    raise InputError(
        f"{sweep.file}: {'.'.join(path)}: bayes takes values, uniform, int_uniform, q_uniform and log_uniform_values, and not "
        f"{parameter.distribution}; use one of them, or method: random."
    )


def _to_optuna(distribution: Any, value: Any) -> Any:
    return json.dumps(value) if type(distribution).__name__ == "CategoricalDistribution" else value


def _from_optuna(parameter: Parameter, value: Any) -> Any:
    if parameter.distribution == "categorical":
        return json.loads(value)
    if parameter.distribution == "q_uniform":
        return round(value) if isinstance(parameter.settings["q"], int) else _clean(value)
    return value


def _at(point: Point, name: str) -> Any:
    value: Any = point
    for part in name.split("/"):
        value = value[part]
    return value


# ---------------------------------------------------------------------------------------------------------------- hyperband


def hopeless(
    stopping: Hyperband, maximize: bool, histories: Mapping[str, Sequence[float]], running: Sequence[str]
) -> dict[str, str]:
    """Which running runs to stop, and why.

    Args:
        stopping: Bands and share.
        maximize: Whether more is better.
        histories: The metric of every run so far, a value a validation.
        running: Those that can be stopped.
    """
    sign = -1.0 if maximize else 1.0
    losses = {run: [sign * value for value in history if math.isfinite(value)] for run, history in histories.items()}
    verdicts = {}
    for run in running:
        ours = losses.get(run, [])
        reached = [band for band in stopping.bands if band <= len(ours)]
        if not reached:
            continue
        band = reached[-1]
        at_band = sorted(history[band - 1] for history in losses.values() if len(history) >= band)
        threshold = at_band[int(len(at_band) / stopping.eta)]
        loss = ours[band - 1] if stopping.strict else min(ours)
        if loss > threshold:
            verdicts[run] = (
                f"hyperband: {sign * loss:.6g} after {band} validations; the best 1/{stopping.eta:g} of {len(at_band)} runs "
                f"begin at {sign * threshold:.6g}"
            )
    return verdicts
