"""Write a split's embeddings and ids to embeddings.npz in the run folder.

crosslight predict -c RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt --split val

Images [I, D] and texts [T, D] are in the split's order. `crosslight embed` is for any folder of images, or file of texts.
"""

from __future__ import annotations

import argparse

from experiments.cli import _training
from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    _training.add_options(parser, _training.CKPT_PATH + _training.SPLIT)


def run(options: argparse.Namespace) -> int:
    return _training.run("predict", options)
