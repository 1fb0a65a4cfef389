"""Points of a sweep: all of a grid, draws, Optuna's; and whom hyperband stops."""

from __future__ import annotations

import math
import sys
from itertools import islice
from pathlib import Path

import pytest
from sweeps import BAYES, sweep_of

from datamodules.errors import InputError
from experiments.sweep.points import points_of
from experiments.sweep.search import Bayes, draws, grid, hopeless
from experiments.sweep.sweep_file import Hyperband


def test_a_grid_is_every_combination_once_in_wandbs_order(tmp_path: Path) -> None:
    parameters = {
        "b": {"values": ["x", "y"]}, "a": {"min": 1, "max": 2}, "z": {"value": True},
        "n": {"parameters": {"q": {"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": 0.2}, "p": {"values": [3, 3.0]}}},
    }  # fmt: skip
    points = list(grid(sweep_of(tmp_path, parameters=parameters)))
    assert points == [
        {"a": a, "b": b, "n": {"p": 3, "q": q}, "z": True} for a in (1, 2) for b in ("x", "y") for q in (0.1, 0.3)
    ]  # 3 and 3.0 are one value; 0.5 is not reached
    assert points_of(sweep_of(tmp_path, parameters=parameters, run_cap=3), None, 0) == points[:3]
    assert points_of(sweep_of(tmp_path, parameters=parameters, run_cap=3), 5, 0) == points[:5]


def test_draws_follow_their_distributions_and_go_on_where_they_ended(tmp_path: Path) -> None:
    between = {"min": 0.01, "max": 100.0}
    parameters = {
        "u": {"min": 2.0, "max": 4.0}, "l": {"distribution": "log_uniform_values", **between},
        "il": {"distribution": "inv_log_uniform_values", **between}, "i": {"min": 1, "max": 3},
        "q": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.1}, "w": {"distribution": "q_normal", "q": 2, "mu": 10},
        "n": {"distribution": "normal", "mu": 5, "sigma": 2}, "ln": {"distribution": "log_normal", "mu": 1},
        "b": {"distribution": "beta", "a": 2, "b": 2}, "p": {"values": ["x", "y"], "probabilities": [0.2, 0.8]},
    }  # fmt: skip
    sweep = sweep_of(tmp_path, method="random", parameters=parameters)
    points = list(islice(draws(sweep, 1), 400))
    columns = {name: [point[name] for point in points] for name in parameters}

    def middle(name: str) -> float:
        return sorted(columns[name])[200]

    assert (middle("u"), middle("n"), middle("b")) == pytest.approx((3.0, 5.0, 0.5), abs=0.3)
    assert [math.log10(middle(name)) for name in ("l", "il")] == pytest.approx([0.0, 0.0], abs=0.4)
    assert math.log(middle("ln")) == pytest.approx(1.0, abs=0.2)
    assert all(2 <= value <= 4 for value in columns["u"])
    assert all(0.01 <= value <= 100 for value in columns["l"] + columns["il"])
    assert set(columns["i"]) == {1, 2, 3}
    assert {str(value) for value in columns["q"]} == {str(step / 10) for step in range(11)}  # no 0.30000000000000004
    assert all(isinstance(value, int) and value % 2 == 0 for value in columns["w"])
    assert columns["p"].count("y") == pytest.approx(320, abs=30)
    assert points_of(sweep, 7, 1) == points[:7]  # a larger count goes on
    assert points_of(sweep, 7, 2) != points[:7]
    few = sweep_of(tmp_path, method="random", parameters={"x": {"values": [1, 2]}})
    assert sorted(point["x"] for point in points_of(few, 5, 0)) == [1, 2]  # equal configurations run once
    with pytest.raises(InputError, match="--count"):
        points_of(few, None, 0)


def test_bayes_without_optuna_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="pip install optuna"):
        Bayes(sweep_of(tmp_path, **BAYES), 0)


def test_hyperband_stops_whom_wandb_stops() -> None:
    """The example in the documentation of sweeps 0.3.0's hyperband_stopping.py, and the same upside down."""
    runs = {"a": [10, 9], "b": [10, 10], "c": [10, 8, 8], "d": [10, 7, 7], "e": [10, 6, 6]}
    bands = Hyperband((1, 2), 2.0, True)
    assert set(hopeless(bands, False, runs, ["b", "c", "d"])) == {"b"}
    assert set(hopeless(bands, True, {run: [-each for each in values] for run, values in runs.items()}, ["b", "c"])) == {"b"}
    assert hopeless(Hyperband((4,), 3.0, True), False, runs, list(runs)) == {}
    assert hopeless(bands, False, {"a": [1.0, math.nan], "b": [2.0]}, ["b"]) == {}
    strict, kind = (Hyperband((2,), 2.0, how) for how in (True, False))
    later = {"a": [5, 5], "b": [5, 5], "c": [3, 9]}
    assert set(hopeless(strict, False, later, ["c"])) == {"c"}
    assert hopeless(kind, False, later, ["c"]) == {}  # its best is below
