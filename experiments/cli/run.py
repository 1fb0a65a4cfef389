"""Fit, take the best checkpoint by validation, test it: one folder.

It is tested on the test split of the data and of each data module of --evaluate. The same command goes on with a run that was
killed. --ckpt_path RUN/checkpoints/last.ckpt in a new --run_dir goes on with a finished one, for more epochs;
--model.init_args.init_from=RUN starts new training from its weights, with any options.
"""

from __future__ import annotations

import argparse

from experiments.cli import _training
from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    _training.add_options(parser, _training.EVALUATE + _training.GO_ON)


def run(options: argparse.Namespace) -> int:
    return _training.run("run", options)
