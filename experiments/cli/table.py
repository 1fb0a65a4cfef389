"""Run folders side by side as a Markdown table.

Recalls or caption metrics (mean and standard deviation over seeds), tunable parameters, memory, time. Runs that differ in nothing
but their seed (configuration, data, code) are one row; rows of one name say in what they differ.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli._parser import Parser, require_writable


def add_options(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a folder of them")
    parser.add_argument("--data", metavar="NAME", help="the evaluation to show (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the table there too")
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="write it there as CSV")


def run(options: argparse.Namespace) -> int:
    from datamodules.files.atomic import write_atomically
    from experiments.report.table import find_runs, markdown, rows, to_csv

    for name in ("out", "csv"):
        require_writable(getattr(options, name), f"--{name}")
    lines = rows(find_runs(options.runs), options.data)
    text = markdown(lines)
    print(text, end="")
    if options.out is not None:
        write_atomically(options.out, text)
    if options.csv is not None:
        write_atomically(options.csv, to_csv(lines))
    return 0
