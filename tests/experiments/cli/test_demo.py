"""`crosslight demo`: of all papers, or of some."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import InputError
from experiments.cli.main import build_parser


def test_papers_are_named_or_not() -> None:
    parser = build_parser("demo")
    whole = parser.parse_args([])
    assert (whole.papers, whole.seed, whole.out, whole.runs) == ([], [0], Path("runs/demo"), Path("runs/papers"))
    some = parser.parse_args(["iais", "mwa", "--seed", "1", "2", "--out", "x"])
    assert (some.papers, some.seed, some.out) == (["iais", "mwa"], [1, 2], Path("x"))


@pytest.mark.parametrize(
    ("name", "meant"), [("iias", ". Did you mean iais?"), ("i-tuning", ". Did you mean i_tuning?"), ("captioning", ".")]
)
def test_what_is_no_paper_is_refused(name: str, meant: str) -> None:
    with pytest.raises(InputError) as refused:
        build_parser("demo").parse_args([name])
    assert str(refused.value) == f"argument PAPER: '{name}' is none of mwa, iais, i_tuning{meant} See crosslight demo --help."
