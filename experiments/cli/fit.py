"""Train and validate; resumes when --run_dir holds an interrupted run.

To start from other weights, give --model.init_args.init_from (not --ckpt_path).
"""

from __future__ import annotations

import argparse

from experiments.cli import _training
from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    _training.add_options(parser, _training.CKPT_PATH)


def run(options: argparse.Namespace) -> int:
    return _training.run("fit", options)
