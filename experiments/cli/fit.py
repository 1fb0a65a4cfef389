"""Train and validate; resumes when --run_dir holds an interrupted run.

--ckpt_path RUN/checkpoints/last.ckpt in a new --run_dir goes on with a finished run, for more epochs;
--model.init_args.init_from=RUN starts new training from its weights, with any options.
"""

from __future__ import annotations

import argparse

from experiments.cli import _training
from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    _training.add_options(parser, _training.CKPT_PATH)


def run(options: argparse.Namespace) -> int:
    return _training.run("fit", options)
