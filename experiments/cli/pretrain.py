"""Make the pre-trained miniatures of the package anew: run what is not finished, then pack.

Renders the world that they are trained on, runs each pre-training (two at once), and when all have finished writes
NAME.safetensors (matrices as fp16), a model card NAME.md, and SHA256SUMS. Hours on two cores; Ctrl-C stops it in order, and the
same command goes on. The runs are those of `crosslight sweep run`, in the same folder: what has finished is not run again.
Whatever names `miniature:NAME` as its weights reads what is in the package's folder, the default of --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datamodules.errors import InputError
from experiments.cli._parser import Parser, require_writable

RUNS = Path("runs/papers")


def add_options(parser: Parser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="beit3_base, vision ... (default: all)")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help="where the run folders and worlds are")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the weights go (default: into the package)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at once")
    parser.add_argument(
        "--trial", type=int, nargs=2, metavar=("SCENES", "STEPS"),
        help="all of it in minutes, for weights that are good for nothing: so many scenes (60 or more) and steps; give --out",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    from experiments.pretraining.pretrain import Trial, pretrain
    from lightning_modules.checkpoints import miniatures

    out = options.out or miniatures.FOLDER
    trial = None if options.trial is None else Trial(*options.trial)
    if trial is not None and out.resolve() == miniatures.FOLDER.resolve():
        raise InputError(f"--trial: its weights are good for nothing, and {out} is the package's folder: give another --out.")
    require_writable(out / miniatures.SUMS_FILE, "--out")
    status, packed = pretrain(options.names, options.runs, out, options.jobs, trial)
    for each in packed:
        print(f"{each.name:<16} {each.parameters:>10,} parameters {each.file.stat().st_size / 1e6:6.2f} MB  {each.chosen_by}")
    if packed:
        print(f"weights, cards and {miniatures.SUMS_FILE}: {out}")
    return status
