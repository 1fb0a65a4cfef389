"""A table or figure of each paper on rendered scenes, and the report: four minutes.

Runs a headline exhibit of each paper at miniature scale, two runs at once: what each part of the MultiWay-Adapter brings to a
tiny BEiT-3; a tiny UNITER without IAIS and with both kinds, its distances and attention; captions by ClipCap and I-Tuning between
a tiny vision tower and a tiny GPT-2, and where their words look. Prints the tables and verdicts and ends on the report. Four
minutes on 2 cores; a second demo runs nothing again, nor does `crosslight sweep run` what a demo has run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.cli._parser import Parser, refuse_given

OUT, RUNS, SEEDS = Path("runs/demo"), Path("runs/papers"), [0]
_OF_ALL = "is of the whole demo: `crosslight demo iais` and `captioning` write their runs below --out."


def add_options(parser: Parser) -> None:
    _add_common(parser, OUT, SEEDS)
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help=f"of the whole demo: where the run folders are (default: {RUNS})"
    )
    parser.set_defaults(act=_headlines)
    kinds = parser.add_subparsers(
        title="one method, with settings of its own, one run at a time", metavar="METHOD", prog=parser.prog
    )
    for name, help_text, act in (
        ("iais", "UNITER with hard negatives: without IAIS and with both kinds", _iais),
        ("captioning", "I-Tuning, half of it, and ClipCap between a tiny ViT and a tiny GPT-2", _captioning),
    ):
        method = kinds.add_parser(name, help=help_text, description=help_text)
        _add_common(method, argparse.SUPPRESS, argparse.SUPPRESS)  # those given before the method's name hold
        method.set_defaults(act=act)


def _add_common(parser: argparse.ArgumentParser, out: Any, seeds: Any) -> None:
    parser.add_argument(
        "--out", type=Path, default=out, metavar="DIR", help=f"where the report and a picture of queries go (default: {OUT})"
    )
    parser.add_argument(
        "--seed",
        type=int,
        nargs="+",
        default=seeds,
        metavar="N",
        help=f"seeds of every run (default: {' '.join(map(str, SEEDS))})",
    )


def run(options: argparse.Namespace) -> int:
    return int(options.act(options))


def _headlines(options: argparse.Namespace) -> int:
    from experiments.demo.headlines import run_demo

    return run_demo(options.out, options.runs or RUNS, options.seed)


def _iais(options: argparse.Namespace) -> int:
    refuse_given(options, ["runs"], _OF_ALL)
    from experiments.demo.iais import run_demo

    return run_demo(options.out, options.seed)


def _captioning(options: argparse.Namespace) -> int:
    refuse_given(options, ["runs"], _OF_ALL)
    from experiments.demo.captioning import run_demo

    return run_demo(options.out, options.seed)
