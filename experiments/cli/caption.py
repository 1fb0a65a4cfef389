"""What a trained captioner writes about any images; --maps draws where it looks (I-Tuning).

Photographs are as in training and evaluation: upright where their EXIF data say how they were held.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError, printable
from datamodules.formats.caption_results import image_id_of, write_caption_results
from datamodules.formats.problems import is_sound
from experiments.cli._parser import Parser, add_backbone, add_fields, given_fields, number_or
from lightning_modules.networks.decoding import Decoding

if TYPE_CHECKING:
    import torch


def add_options(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder (its best checkpoint) or an adapter export")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image")
    add_backbone(parser)
    option = parser.add_argument
    option(
        "--out", type=Path, metavar="FILE.json",
        help="the captions as coco-caption's results; image_id is a file's name without its ending (of COCO's names the number)",
    )  # fmt: skip
    option("--batch-size", type=int, default=16, metavar="N", help="images at once")
    option("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:N (default: cuda where there is one)")
    option("--seed", type=int, default=0, metavar="N", help="of --sample")
    maps = parser.add_argument_group("where the words look (I-Tuning only)").add_argument
    maps(
        "--maps",
        type=Path,
        metavar="DIR",
        help="a picture for each image, DIR/NAME.png: where each word of its caption looks",
    )
    maps(
        "--layer", type=number_or("last", "mean"), metavar="WHICH",
        help="of the language model, from 0; last (with a module; the default) or mean (of all modules)",
    )  # fmt: skip
    maps("--head", type=number_or("mean"), metavar="WHICH", help="from 0, or mean (the default)")
    maps(
        "--position", choices=("predicts", "reads"),
        help="a token's map is that of the position that wrote it (predicts, the default), or of the next one, which reads it",
    )  # fmt: skip
    add_fields(parser.add_argument_group("decoding; what is not given is as the run has it"), Decoding, joint="-", defaults=False)


def run(options: argparse.Namespace) -> int:
    shown = {name: value for name in ("layer", "head", "position") if (value := getattr(options, name)) is not None}
    if shown and options.maps is None:
        raise InputError(f"--{next(iter(shown))} chooses what --maps shows; give --maps DIR too.")
    if options.batch_size < 1:
        raise InputError(f"--batch-size is {options.batch_size}; give at least 1.")
    _require_files(options.images, options.out, options.maps)

    import lightning_modules
    from experiments.analysis.captions import MapOptions, captioner_of, write_captions
    from experiments.training.quiet import quiet

    quiet()
    map_options = None if options.maps is None else MapOptions(options.maps, **shown)
    model: Any = lightning_modules.load(options.run, backbone=options.backbone, tokenizer=options.tokenizer)
    network = captioner_of(model, options.run, maps=map_options is not None)
    decoding = replace(model.decoding, **given_fields(options, Decoding))
    network.to(_device(options.device))
    captions: dict[str, str] = {}
    for path, caption in write_captions(network, options.images, decoding, map_options, options.batch_size, options.seed):
        print(printable(f"{path}: {caption}"), flush=True)
        captions[image_id_of(path.stem)] = caption
        whole_batch = len(captions) % options.batch_size == 0 or len(captions) == len(options.images)
        if options.out is not None and whole_batch:  # an image that cannot be read ends the command, and loses no other's
            write_caption_results(options.out, captions, list(captions))
    return 0


def _require_files(paths: Sequence[Path], out: Path | None, maps: Path | None) -> None:
    """Before a model is loaded.

    Raises:
        InputError: A file does not exist, two have one name where names are ids, or a name that has to be written is no text.
    """
    if out is not None and out.is_dir():
        raise InputError(f"--out {out} is a folder; give the name of a file.")
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the images in it, such as {path}/*.jpg.")
        if not path.exists():
            raise InputError(f"image {path} does not exist.")
        if out is not None and not is_sound(path.stem):
            raise InputError(
                f"image {path}: its name is not UTF-8, so --out cannot hold it; rename the file, or leave out --out."
            )
    stems = [path.stem for path in paths]
    for option, names in (("--out", map(image_id_of, stems) if out else ()), ("--maps", stems if maps else ())):
        for name, count in Counter(names).most_common(1):
            if count > 1:
                raise InputError(f"{count} images are named {name}, which {option} knows them by; give them one by one.")


def _device(name: str) -> torch.device:
    """Raises InputError where there is no such device."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used ({str(error).splitlines()[0]}); give cpu, cuda or cuda:N.") from error
