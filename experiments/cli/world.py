"""Render the embedded world to a folder.

COCO and Flickr30k files in their real formats, with real JPEGs of rendered scenes. With --miniature it is, to the byte, the world
of the style that the miniature runs of `crosslight sweep run` and `crosslight pretrain` read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datamodules.errors import InputError
from experiments.cli._parser import Parser
from experiments.papers.schema import STYLES


def add_options(parser: Parser) -> None:
    parser.add_argument("root", type=Path, metavar="DIR", help="where to")
    parser.add_argument("--scenes", type=int, metavar="N", help="how many images (default: 2000)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the scenes (default: 0)")
    parser.add_argument("--style", choices=STYLES, default="source", help="of what there is in them")
    parser.add_argument("--image-size", type=int, metavar="PX", help="a side of each image (default: 96)")
    parser.add_argument(
        "--miniature", action="store_true",
        help="as miniature runs read it: source and target of 4,000 scenes; web of 40,000, on which the weights that come with "
        "the package were trained",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    from datamodules.miniworld.write import write_world
    from experiments.papers.worlds import write_miniature_world

    given = {name: getattr(options, name) for name in ("scenes", "seed", "image_size") if getattr(options, name) is not None}
    if not options.miniature:
        root = write_world(options.root, style=options.style, **given)
    elif given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"--miniature decides what {names} would: leave either out.")
    else:
        root = write_miniature_world(options.root.absolute(), options.style)
    print(root)
    return 0
