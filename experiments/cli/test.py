"""Evaluate a checkpoint on the test split, and on that of each data module of --evaluate.

crosslight test -c RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
"""

from __future__ import annotations

import argparse

from experiments.cli import _training
from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    _training.add_options(parser, _training.CKPT_PATH + _training.EVALUATE)


def run(options: argparse.Namespace) -> int:
    return _training.run("test", options)
