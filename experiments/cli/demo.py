"""Headline tables and figures of the papers on rendered scenes, and the report: three minutes.

Runs headline exhibits at miniature scale, two runs at once: what each part of the MultiWay-Adapter brings to a tiny BEiT-3; a
tiny UNITER without IAIS and with its singular kind, its recalls, distances and attention; captions by ClipCap and I-Tuning
between a tiny vision tower and a tiny GPT-2, and where their words look. Prints the tables and verdicts and ends on the report.
Three minutes on 2 idle cores; a second demo runs nothing again, nor does `crosslight sweep run` what a demo has run.

A paper that is named is shown with more rows: both kinds of IAIS and a large UNITER, I-Tuning in half of the layers and after
pre-training.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

from experiments.cli._parser import Parser
from experiments.demo.headlines import EXHIBITS


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "papers",
        nargs="*",
        type=_paper,
        metavar="PAPER",
        help=f"only these, with all their rows: {', '.join(EXHIBITS)} (default: all)",
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0], metavar="N", help="seeds of every run (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="where the report and a picture of queries go"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/papers"), metavar="DIR", help="where the run folders are")


def run(options: argparse.Namespace) -> int:
    from experiments.demo.headlines import run_demo

    return run_demo(options.papers, options.out, options.runs, options.seed)


def _paper(text: str) -> str:
    """Not argparse's `choices`, with which no paper at all is refused by some versions of Python."""
    if text not in EXHIBITS:
        close = difflib.get_close_matches(text, EXHIBITS, 1)
        meant = f". Did you mean {close[0]}?" if close else ""
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(EXHIBITS)}{meant}")
    return text
