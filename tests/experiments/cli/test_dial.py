"""What `crosslight dial` prints where nothing can be picked."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from experiments.analysis import dial as analysis
from experiments.cli.dial import run
from experiments.runs.dial import Dialling


def test_it_says_that_nothing_is_picked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    dialling = Dialling("", "the output of ITuning", (), "cider", "max", "coco", ("nocaps",), "mean")
    monkeypatch.setattr(analysis, "turn_dial", lambda *_: dialling)
    options = Namespace(run=[Path("runs/mine")], alphas=(0.0, 1.0), evaluate=[], pick=None, backbone=None, tokenizer=None)
    assert run(options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "nothing is picked, because a validation gave no cider; by rule it would be the best mean of the target and of what "
        "is to be retained (cider on the validation split of coco and nocaps)"
    )
