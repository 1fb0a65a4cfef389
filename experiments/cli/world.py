"""Render the embedded world to a folder.

COCO and Flickr30k files in their real formats, with real JPEGs of rendered scenes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli._parser import Parser
from experiments.papers.schema import STYLES


def add_options(parser: Parser) -> None:
    parser.add_argument("root", type=Path, metavar="DIR", help="where to")
    parser.add_argument("--scenes", type=int, default=2000, metavar="N", help="how many images")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the scenes")
    parser.add_argument("--style", choices=STYLES, default="source", help="of what there is in them")
    parser.add_argument("--image-size", type=int, default=96, metavar="PX", help="a side of each image")


def run(options: argparse.Namespace) -> int:
    from datamodules.miniworld.write import write_world

    root = write_world(options.root, scenes=options.scenes, seed=options.seed, style=options.style, image_size=options.image_size)
    print(root)
    return 0
