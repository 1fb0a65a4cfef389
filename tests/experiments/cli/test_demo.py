"""`crosslight demo`: the whole one, or one method's."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli.main import build_parser, main


def test_options_hold_before_and_behind_the_methods_name() -> None:
    parser = build_parser("demo")
    whole = parser.parse_args([])
    assert (whole.out, whole.runs, whole.seed) == (Path("runs/demo"), None, [0])
    before, behind = parser.parse_args(["--out", "x", "iais"]), parser.parse_args(["iais", "--out", "x", "--seed", "1", "2"])
    assert (before.out, before.seed, behind.out, behind.seed) == (Path("x"), [0], Path("x"), [1, 2])
    assert len({options.act for options in (whole, before, parser.parse_args(["captioning"]))}) == 3


def test_the_demo_of_a_method_has_a_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "iais", "--help"])
    text = capsys.readouterr().out
    assert "crosslight demo iais [-h] [--out DIR] [--seed N [N ...]]" in text
    assert "UNITER" in text
