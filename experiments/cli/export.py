"""A trained adapter as safetensors and JSON (a few MB), which any machine with the same backbone loads.

Writes the run's best adapter and heads, its tokenizer and its configuration, without a path of this machine, and a model card.
lightning_modules.load(DIR) gives the model back; weights of the backbone are not in it, but named by their checksums. After full
tuning all weights go in.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli._parser import Parser, add_backbone


def add_options(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to")
    add_backbone(parser)


def run(options: argparse.Namespace) -> int:
    from experiments.training.quiet import quiet
    from lightning_modules.exporting import export_run

    quiet()
    folder = export_run(options.run, options.folder, options.backbone)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{options.folder}: {size / 2**20:.2f} MiB")
    return 0
