"""Check this build against recorded outputs of the official implementations.

A FILE.json says what was recorded; its tensors lie beside it as FILE.safetensors. One table: the largest deviation of each group
and where it is. Outputs may deviate by 1e-5 (hidden states, logits: of the tensor's scale), gradients by 1e-4 relative. Exits 1
when anything is off; what cannot be checked is said and counted, and is no failure.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="a recording")
    parser.add_argument(
        "--spm", type=Path, metavar="FILE",
        help="BEiT-3's sentencepiece file beit3.spm, for the tokenizer and the index files (default: $CROSSLIGHT_BEIT3_SPM)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    from experiments.parity.run import check_files, print_reports, status

    variable = os.environ.get("CROSSLIGHT_BEIT3_SPM")
    reports = check_files(options.files, options.spm or (Path(variable) if variable else None))
    print_reports(reports)
    return status(reports)
