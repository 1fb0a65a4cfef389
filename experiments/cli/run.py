"""Fit, take the best checkpoint by validation, test it: one folder.

It is tested on the test split of the data and of each data module of --evaluate.
"""

from __future__ import annotations

import argparse

from experiments.cli import _training
from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    _training.add_options(parser, _training.EVALUATE)


def run(options: argparse.Namespace) -> int:
    return _training.run("run", options)
