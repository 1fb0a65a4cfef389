"""A trained adapter as safetensors and JSON (a few MB), which any machine with the same backbone loads.

Writes the run's best adapter and heads, its tokenizer and its configuration, without a path of this machine, and a model card
with what was measured: the folder is a complete repository of the Hugging Face Hub, and `crosslight push` puts it there.
lightning_modules.load(DIR) gives the model back; weights of the backbone are not in it, but named by their checksums. After full
tuning all weights go in.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from experiments.cli._parser import Parser, add_backbone


def add_options(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to")
    parser.add_argument(
        "--license", type=_license, metavar="ID", help="for the card, as the Hub writes it, such as apache-2.0 or cc-by-4.0"
    )
    parser.add_argument(
        "--alpha", type=_alpha, metavar="X|picked",
        help="write the weights at alpha of what was learnt, from 0 (the start) to 1 (as trained), or at the alpha that "
        "`crosslight dial` picked (default: as trained)",
    )  # fmt: skip
    parser.add_argument(
        "--merge",
        action="store_true",
        help="fold LoRA (or another method of peft) into the weights: the export has these in its place, and needs no peft",
    )
    add_backbone(parser)


def run(options: argparse.Namespace) -> int:
    from experiments.report.origins import origins_of
    from experiments.runs.sizes import readable_bytes
    from experiments.training.quiet import quiet
    from lightning_modules.exporting import export_run, require_run

    quiet()
    require_run(options.run)
    dialled = _dialled(options)
    origins = origins_of(options.run, options.license, dialled)
    written: dict[str, Any] = {"origins": origins, "dialled": dialled, "merge": options.merge}
    folder = export_run(options.run, options.folder, options.backbone, options.tokenizer, **written)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{options.folder}: {readable_bytes(size)}")
    return 0


def _dialled(options: argparse.Namespace) -> Any:
    """Where on the dial the weights shall be; None = as trained, without a word of a dial."""
    from experiments.runs.dial import require_picked
    from lightning_modules.checkpoints.dial import Dialled

    if options.alpha != "picked":
        return None if options.alpha is None else Dialled(options.alpha)
    dialling, alpha = require_picked(options.run)
    print(f"alpha {alpha:g}, picked by {dialling.picked_by}")
    return Dialled(alpha, dialling.picked_by)


def _alpha(text: str) -> float | str:
    if text == "picked":
        return text
    try:
        alpha = float(text)
    except ValueError:
        alpha = -1.0
    if not 0 <= alpha <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 0 to 1 nor picked")
    return alpha


def _license(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no license as the Hub writes them, such as apache-2.0")
    return text
