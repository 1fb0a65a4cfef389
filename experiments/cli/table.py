"""Run folders side by side as a Markdown table.

The options in which they differ, the best validation, recalls or caption metrics of the tests (mean and standard deviation over
seeds), tunable parameters, memory, time. Runs that differ in nothing but their seed (configuration, data, code) are one row. The
best validation is first: a choice by the test would make the test's number too good.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli._parser import Parser, require_ours, require_writable


def add_options(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a folder of them")
    parser.add_argument("--data", metavar="NAME", help="the evaluation to show (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the table there too")
    parser.add_argument(
        "--sort", metavar="COLUMN", help='by this column instead: a heading, or a name such as lr, "val rsum", t2i_r1'
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE.csv",
        help="write a row a run there, for pandas: all options that differ, all metrics, as load_runs(...).frame() has them",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    from datamodules.files.atomic import write_atomically
    from experiments.report.table import find_runs, markdown, rows, sort, to_csv

    for name in ("out", "csv"):
        require_writable(getattr(options, name), f"--{name}")
    require_ours(options.out, "--out", "|")
    require_ours(options.csv, "--csv", "run,")
    runs = find_runs(options.runs)
    lines = rows(runs, options.data)
    if options.sort is not None:
        lines = sort(lines, options.sort)
    text = markdown(lines)
    print(text, end="")
    if options.out is not None:
        write_atomically(options.out, text)
    if options.csv is not None:
        write_atomically(options.csv, to_csv(runs, options.data))
    return 0
