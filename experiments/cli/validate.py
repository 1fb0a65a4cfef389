"""Evaluate a checkpoint on the validation split.

crosslight validate -c RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
"""

from __future__ import annotations

import argparse

from experiments.cli import _training
from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    _training.add_options(parser, _training.CKPT_PATH)


def run(options: argparse.Namespace) -> int:
    return _training.run("validate", options)
