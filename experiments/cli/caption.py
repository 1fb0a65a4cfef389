"""`crosslight caption`: what a trained captioner writes about any images."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import torch

import lightning_modules
from datamodules.errors import InputError
from datamodules.formats.caption_results import write_caption_results
from experiments.analysis.captions import MapOptions, captioner_of, write_captions
from experiments.analysis.word_maps import Position
from experiments.training.quiet import quiet
from lightning_modules.networks.language_model import Decoding


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See crosslight caption --help.")


def main(arguments: Sequence[str]) -> int:
    """Exit status of `crosslight caption`: 0.

    Raises:
        InputError: Arguments, a run or images that cannot be used.
    """
    parser = _Parser(prog="crosslight caption", allow_abbrev=False, add_help=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--maps", type=Path)
    parser.add_argument("--layer", type=_number_or("last", "mean"))
    parser.add_argument("--head", type=_number_or("mean"))
    parser.add_argument("--position", choices=get_args(Position))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    kinds = get_type_hints(Decoding)
    for name, kind in kinds.items():  # --max-new-tokens and so on; what is not given stays as the run has it
        how: dict[str, Any] = {"choices": get_args(kind)} if get_args(kind) else {"type": kind}
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, **how)
    options = parser.parse_args(list(arguments))
    shown = {name: value for name in ("layer", "head", "position") if (value := getattr(options, name)) is not None}
    if shown and options.maps is None:
        raise InputError(f"--{next(iter(shown))} chooses what --maps shows; give --maps DIR too.")
    maps = None if options.maps is None else MapOptions(options.maps, **shown)
    if options.batch_size < 1:
        raise InputError(f"--batch-size is {options.batch_size}; give at least 1.")
    _require_files(options.images, stems_matter=options.out is not None or maps is not None)

    quiet()
    model: Any = lightning_modules.load(options.run)
    network = captioner_of(model, options.run, maps=maps is not None)
    decoding = replace(model.decoding, **{name: value for name in kinds if (value := getattr(options, name)) is not None})
    network.to(_device(options.device))
    torch.manual_seed(options.seed)
    captions = {}
    for path, caption in write_captions(network, options.images, decoding, maps, options.batch_size):
        print(f"{path}: {caption}", flush=True)
        captions[path.stem] = caption
    if options.out is not None:
        write_caption_results(options.out, captions, list(captions))
    return 0


def _require_files(paths: Sequence[Path], stems_matter: bool) -> None:
    """Before a model is loaded.

    Raises:
        InputError: A file does not exist, or two have one name where names are ids.
    """
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the images in it, such as {path}/*.jpg.")
        if not path.exists():
            raise InputError(f"image {path} does not exist.")
    stem, count = Counter(path.stem for path in paths).most_common(1)[0]
    if stems_matter and count > 1:
        raise InputError(f"{count} images are named {stem}, which --out and --maps know them by; give them one by one.")


def _number_or(*words: str) -> Any:
    def parse(text: str) -> int | str:
        if text in words:
            return text
        if not text.isdecimal():
            raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 0 nor {' or '.join(words)}")
        return int(text)

    return parse


def _device(name: str) -> torch.device:
    """Raises InputError where there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used ({str(error).splitlines()[0]}); give cpu, cuda or cuda:N.") from error
