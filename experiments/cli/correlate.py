"""Pearson's r of two metrics over the checkpoints of runs (ISDa against Meta-Sum: Figure 3 of IAIS).

Over the validations of each run, and of all runs together; any column of metrics.csv can be named.
"""

from __future__ import annotations

import argparse

from experiments.cli._parser import Parser
from experiments.runs.metrics_csv import ISDA, META_SUM


def add_options(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a folder of them")
    parser.add_argument("--x", default=ISDA, metavar="METRIC", help="a column of metrics.csv")
    parser.add_argument("--y", default=META_SUM, metavar="METRIC", help="another one")


def run(options: argparse.Namespace) -> int:
    from experiments.report.correlation import report

    print("\n".join(report(options.runs, options.x, options.y)))
    return 0
