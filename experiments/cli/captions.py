"""What runs wrote about the photographs of their test, side by side as a picture.

Photographs spread evenly over the test, with what each run wrote about them, its CIDEr-D (times 100) and a reference.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli._parser import Parser, require_picture


def add_options(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder of a captioner")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture")
    parser.add_argument("--data", metavar="NAME", help="the evaluation to show (default: the runs' first)")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="how many photographs")


def run(options: argparse.Namespace) -> int:
    from experiments.analysis.retrieved import draw_captions

    require_picture(options.out, "--out")
    print(draw_captions(options.runs, options.out, options.data, options.images))
    return 0
