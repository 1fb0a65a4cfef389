"""Open a page in the browser: search a folder, caption images, see where words look. On this machine alone.

  crosslight page                                       offers every run that lies under runs/
  crosslight page --run runs/f30k-mwa --images photos

A folder is encoded once, and that is kept. Nothing is fetched from outside, and no image leaves this machine.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from datamodules.errors import InputError, printable
from experiments.cli._parser import Parser, add_backbone
from experiments.cli._serving import place_of_model, tell

RUNS = Path("runs")


def add_options(parser: Parser) -> None:
    option = parser.add_argument
    option(
        "--run", nargs="+", action="extend", default=[], metavar="RUN",
        help="a run folder, a folder that holds runs, an export, or OWNER/NAME of the Hub; the page lets one choose among them "
        "(default: all that lies under runs/)",
    )  # fmt: skip
    option(
        "--images",
        type=Path,
        metavar="DIR",
        help="images, in folders of any depth (default: those that each run has its data from)",
    )
    option(
        "--index", type=Path, metavar="FOLDER",
        help="search what `crosslight index` made: its images, by its run (--run says where that lies now)",
    )  # fmt: skip
    option("--port", type=int, default=7860, metavar="N", help="0 takes a free one")
    option("--host", default="127.0.0.1", metavar="NAME", help="127.0.0.1 is this machine alone; 0.0.0.0 all who reach it")
    add_backbone(parser)
    option("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:N (default: cuda where there is one)")


def run(options: argparse.Namespace) -> int:
    if options.images is not None and options.index is not None:
        raise InputError("--index has its images with it; give it or --images, not both.")
    if options.images is not None and not options.images.is_dir():
        raise InputError(f"--images {options.images} is not a folder; give that of the images.")
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port is {options.port}; give 0 to 65535.")
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"the page needs {error.name}: uv pip install 'crosslight[serve]'.") from None
    from experiments.page.server import bound, is_local, serve

    socket = bound(options.host, options.port)  # before anything takes time

    from datamodules.loading.tokens import TextWarning
    from experiments.page.app import make_app
    from experiments.page.offers import find_offers
    from experiments.page.shelf import Loading, Shelf, kept_indexes
    from experiments.serving.index import ImageIndex
    from experiments.serving.models import find_device
    from experiments.training.quiet import quiet

    quiet()
    warnings.simplefilter("ignore", TextWarning)  # the page itself says it
    index = None if options.index is None else ImageIndex(options.index)
    named = options.run or ([] if index is None else [place_of_model(index.label, options)])
    offers = find_offers(named, RUNS)
    images = options.images if index is None else Path(index.label.images)
    loading = Loading(options.backbone, options.tokenizer, find_device(options.device))
    shelf = Shelf(offers, images, index, loading, kept_indexes())
    name, port = socket.getsockname()[:2]
    print(printable(f"{len(offers):,} models to choose from: http://{name}:{port} (Ctrl-C ends it)"), flush=True)
    if not is_local(socket):
        tell(f"crosslight: --host {options.host}: everyone who reaches this machine can see the images and use the models.")
    serve(make_app(shelf, is_local(socket)), socket)
    return 0
