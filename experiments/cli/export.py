"""The adapter of a run as safetensors and JSON (a few MB).

Writes the run's best adapter and heads: adapter_model.safetensors, adapter_config.json, README.md. lightning_modules.load(DIR)
gives the model back.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to")


def run(options: argparse.Namespace) -> int:
    import yaml

    import lightning_modules
    from experiments.training.quiet import quiet
    from lightning_modules.checkpoints.adapter_export import export_adapter

    quiet()
    model = lightning_modules.load(options.run)
    config = yaml.safe_load((options.run / "config.yaml").read_text())
    backbone = {"model": config["model"], "seed": config["seed_everything"]}
    export_adapter(model.network, model.adapter, options.folder, backbone=backbone, objective=model.objective)
    size = sum(file.stat().st_size for file in options.folder.iterdir())
    print(f"{options.folder}: {size / 2**20:.2f} MiB")
    return 0
