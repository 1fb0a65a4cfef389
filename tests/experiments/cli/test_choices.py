"""Choices that a parser names, since their types live in files that import torch, are those types' own."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from datamodules.formats.uniter.layout import Layout
from datamodules.miniworld.scenes import Style
from experiments.analysis.word_maps import Position
from experiments.cli._parser import with_subcommands
from experiments.cli.main import build_parser
from experiments.papers.schema import STYLES
from lightning_modules.metrics.captions.evaluation import Frequencies, Tokenizer
from lightning_modules.metrics.captions.install import Program


@pytest.mark.parametrize(
    ("prog", "option", "kind"),
    [
        ("crosslight caption", "--position", Position),
        ("crosslight score", "--frequencies", Frequencies),
        ("crosslight score", "--install", Program),
        ("crosslight data regions", "--layout", get_type_hints(Layout)["kind"]),
    ],
)
def test_choices_are_those_of_the_type(prog: str, option: str, kind: Any) -> None:
    parsers = with_subcommands(build_parser(prog.split()[1]))
    (action,) = (parser._option_string_actions[option] for parser in parsers if parser.prog == prog)
    assert set(action.choices or ()) == set(get_args(kind))


def test_other_choices() -> None:
    assert get_args(Style) == STYLES
    assert set(build_parser("score")._option_string_actions["--tokenizer"].choices or ()) == set(get_args(Tokenizer)) - {"none"}
