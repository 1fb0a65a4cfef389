"""What is said before a training's first step and after each validation."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn, tensor

from experiments.training import progress
from experiments.training.progress import Bar, Pace, Progress
from experiments.training.trainer import Trainer


def trainer(**entries: Any) -> Any:
    """A Trainer as far as the progress looks at it: 10 batches an epoch, 4 epochs."""
    known = {
        "estimated_stepping_batches": 40, "num_training_batches": 10, "accumulate_grad_batches": 1, "global_step": 0,
        "current_epoch": 0, "is_global_zero": True, "sanity_checking": False, "callback_metrics": {"val/rsum": tensor(301.25)},
        "state": SimpleNamespace(fn="fit"), "training": True, "loggers": [],
        "progress_bar_metrics": {"train/loss": 2.0, "train/x": 1.0},
    }  # fmt: skip
    return SimpleNamespace(**{**known, **entries})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test may set."""
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "training: 10 steps an epoch, 4 epochs, 40 steps in all; 4 of 6 parameters train"),
        (
            {"accumulate_grad_batches": 3, "estimated_stepping_batches": 10},
            "training: 4 steps an epoch of 3 batches each, 3 epochs, 10 steps in all; 4 of 6 parameters train",
        ),
        ({"global_step": 8}, "40 steps in all; 8 of them are done; 4 of 6 parameters train"),
        ({"estimated_stepping_batches": math.inf}, "training: 10 steps an epoch, no end of its own; "),
        ({"num_training_batches": math.inf}, "training: 40 steps in all; "),
    ],
)
def test_a_training_says_what_it_will_be(
    options: dict[str, Any], says: str, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    Progress("val/rsum", lines=True).on_train_start(trainer(**options), model)  # type: ignore[arg-type]
    assert says in capsys.readouterr().out


def test_after_each_validation_there_is_a_line_where_no_bar_is(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    told = Progress("val/rsum", lines=True)
    running = trainer(global_step=4)
    told.on_train_start(running, nn.Linear(2, 2))  # type: ignore[arg-type]
    capsys.readouterr()
    running.global_step, running.current_epoch, clock[0] = 14, 1, 120.0  # ten steps in 20 s, 26 are left
    told.on_validation_end(running, nn.Linear(2, 2))  # type: ignore[arg-type]
    assert capsys.readouterr().out == "epoch 2 of 4, step 14 of 40: val/rsum 301.2; 52 s left\n"
    clock[0] = 124.0  # five seconds later at the earliest
    told.on_validation_end(running, nn.Linear(2, 2))  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""
    clock[0], running.global_step = 124.9, 40  # but the last one in any case
    told.on_validation_end(running, nn.Linear(2, 2))  # type: ignore[arg-type]
    assert capsys.readouterr().out == "epoch 2 of 4, step 40 of 40: val/rsum 301.2; 0 s left\n"
    clock[0] = 200.0
    for silent in (trainer(sanity_checking=True), trainer(is_global_zero=False), trainer(state=SimpleNamespace(fn="validate"))):
        told.on_validation_end(silent, nn.Linear(2, 2))  # type: ignore[arg-type]
    told.lines = False
    told.on_validation_end(running, nn.Linear(2, 2))  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def test_the_bar_counts_from_one_and_says_how_long_all_of_it_takes(clock: list[float]) -> None:
    bar, running = Bar("val/rsum"), trainer(estimated_stepping_batches=35)
    bar._pace = Pace(running)
    assert bar._get_train_description(1) == "Epoch 2 of 4"  # the fourth one is cut short
    running.global_step, clock[0] = 5, 110.0
    assert bar.get_metrics(running, nn.Linear(2, 2)) == {"loss": 2.0, "val/rsum": "301.2", "all": "60 s left"}  # type: ignore[arg-type]
    bar._pace = Pace(trainer(estimated_stepping_batches=math.inf))
    assert bar._get_train_description(1) == "Epoch 2"


def test_captions_that_are_cut_are_told_before_the_first_step(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    cut = {"train": 3, "val": 1, "test": 2}
    data = SimpleNamespace(name="mine", cut_captions=lambda splits: {split: cut[split] for split in splits})
    Progress("val/rsum", lines=True).on_train_start(trainer(datamodule=data), nn.Linear(2, 2))  # type: ignore[arg-type]
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == ["crosslight: mine train: 3 captions are longer than the network's max_tokens and cut there."]

    noted = Trainer._cut_captions(SimpleNamespace(trained_data="mine"), "mine", data, "test")  # type: ignore[arg-type]
    assert noted == {"cut_captions": cut}
    assert capsys.readouterr().out.splitlines() == [
        "crosslight: mine val: 1 caption is longer than the network's max_tokens and cut there.",
        "crosslight: mine test: 2 captions are longer than the network's max_tokens and cut there.",
    ]
