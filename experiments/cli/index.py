"""Index a folder of images, so that `search` finds them by text or image; again, it is brought up to date.

  crosslight index photos --run runs/f30k-mwa
  crosslight search "a dog in the snow"

The model gives each image a vector, once: of a folder that changed only what is new is encoded, and what is gone goes. Stopped
anywhere, the same command goes on. Images that cannot be read are named at the end (exit status 1), and the rest is indexed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from datamodules.errors import InputError, printable
from experiments.cli._parser import Parser
from experiments.cli._serving import add_model_options, load_encoders, place_of_model, tell_broken, tell_others

INDEX = Path("crosslight-index")


def add_options(parser: Parser) -> None:
    option = parser.add_argument
    option("images", nargs="?", type=Path, metavar="DIR", help="images, in folders of any depth (default: those of the index)")
    option(
        "--run",
        metavar="RUN",
        help="a run folder, an export, or OWNER/NAME of the Hub, of two encoders (default: that of the index)",
    )
    option("--index", type=Path, default=INDEX, metavar="FOLDER", help="the index")
    option(
        "--ann", action="store_true",
        help="keep approximate search with it (usearch, of 'crosslight[serve]'): for a million images; it stays once it is there",
    )  # fmt: skip
    add_model_options(parser, batch_size=32)


def run(options: argparse.Namespace) -> int:
    images, folder = options.images, options.run
    if images is None or folder is None:
        if not options.index.exists():
            raise InputError(f"{options.index} does not exist yet: crosslight index DIR --run RUN makes it.")
        from experiments.serving.index import read_label

        label = read_label(options.index)
        images, folder = images or Path(label.images), place_of_model(label, options)
    if not images.is_dir():
        raise InputError(f"{images} is not a folder; give that of the images.")
    if options.ann:
        from experiments.serving.neighbors import require_library

        require_library()

    from experiments.serving.indexing import Encoding, update_index

    how = Encoding(options.batch_size, options.workers, progress=sys.stderr.isatty())
    model = load_encoders(folder, options)
    done = update_index(options.index, images, model, folder, options.ann, how, options.backbone, options.tokenizer)
    counts = f"{done.encoded:,} encoded, {done.kept:,} kept, {done.gone:,} gone"
    print(printable(f"{options.index}: {done.images:,} images of {images} ({counts}) in {done.seconds:.1f} s"))
    tell_others(done.others)
    return tell_broken(done.broken)
