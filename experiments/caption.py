"""`crosslight caption`: what a trained captioner writes about any photographs, and where it looks while it does."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_type_hints

import torch
from PIL import Image, ImageOps

import lightning_modules
from datamodules.errors import InputError
from datamodules.formats.caption_results import write_caption_results
from datamodules.images import evaluation_transform, normalise, open_image
from datamodules.records import ImageBatch, ImageRecord
from experiments.attention_maps import Position, covered_area, draw_maps, find_grid, token_maps
from experiments.training import quiet
from lightning_modules.networks.captioner import Captioner
from lightning_modules.networks.language_model import Decoding


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See crosslight caption --help.")


@dataclass(frozen=True)
class Look:
    """Which maps are drawn, and where to: arguments of `token_maps`, and a folder."""

    folder: Path
    layer: int | Literal["last", "mean"] = "last"
    head: int | Literal["mean"] = "mean"
    position: Position = "predicts"


def main(arguments: Sequence[str]) -> int:
    """Exit status of `crosslight caption`: 0.

    Raises:
        InputError: Arguments, a run or photographs that cannot be used.
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
    look = None if options.maps is None else Look(options.maps, **shown)
    if options.batch_size < 1:
        raise InputError(f"--batch-size is {options.batch_size}; give at least 1.")
    _require_files(options.images, stems_matter=options.out is not None or look is not None)

    quiet()
    model: Any = lightning_modules.load(options.run)
    network = captioner_of(model, options.run, maps=look is not None)
    decoding = replace(model.decoding, **{name: value for name in kinds if (value := getattr(options, name)) is not None})
    network.to(_device(options.device))
    torch.manual_seed(options.seed)
    captions = {}
    for path, caption in write_captions(network, options.images, decoding, look, options.batch_size):
        print(f"{path}: {caption}", flush=True)
        captions[path.stem] = caption
    if options.out is not None:
        write_caption_results(options.out, captions, list(captions))
    return 0


def captioner_of(model: Any, run: Path, maps: bool) -> Captioner:
    """The captioner of a loaded run.

    Raises:
        InputError: It is another network, one that sees no image, or (with `maps`) one without I-Tuning modules.
    """
    network = model.network
    if not isinstance(network, Captioner):
        raise InputError(f"{run} is a run of {type(network).__name__}, which writes no captions; give one of a Captioner.")
    if network.i_tuning is None and network.prefix is None:
        raise InputError(
            f"{run} has a language model without an adapter, which sees no image; give a run with I-Tuning or ClipCap."
        )
    if maps and network.i_tuning is None:
        raise InputError(
            f"{run} is ClipCap's, which sees the whole image as one vector: there are no attention maps. Leave out --maps, or "
            "give a run with I-Tuning."
        )
    return network


def write_captions(
    network: Captioner, paths: Sequence[Path], decoding: Decoding, look: Look | None = None, batch_size: int = 16
) -> Iterator[tuple[Path, str]]:
    """Each photograph with its caption, in order; with `look` a picture of its maps is there by then, `look.folder`/stem.png.

    Photographs are as evaluation sees them, but turned upright where their EXIF data say how they were held.

    Raises:
        InputError: A photograph cannot be read, or what `token_maps` and the language model refuse.
    """
    spec = network.vision.image_input
    transform = evaluation_transform(spec)
    device = next(network.parameters()).device
    grid = find_grid(network) if look is not None else None
    for first in range(0, len(paths), batch_size):
        chosen = paths[first : first + batch_size]
        photographs = [open_photograph(path) for path in chosen]
        pixels_B3HW = normalise(torch.stack([transform(photograph) for photograph in photographs]), spec).to(device)
        batch = ImageBatch(tuple(path.stem for path in chosen), torch.arange(len(chosen), device=device), pixels_B3HW)
        with torch.no_grad():
            seen = network.see(batch)
        ids = network.generate_ids(seen, decoding)
        captions = network.language.decode(ids)
        if look is not None:
            found = token_maps(network, seen, ids, grid=grid, layer=look.layer, head=look.head, position=look.position)
            for path, photograph, maps in zip(chosen, photographs, found, strict=True):
                draw_maps(look.folder / f"{path.stem}.png", photograph, maps, covered_area(spec, *photograph.size))
        yield from zip(chosen, captions, strict=True)


def open_photograph(path: Path) -> Image.Image:
    """As RGB, upright.

    Raises:
        InputError: It is missing, truncated, or no image.
    """
    return ImageOps.exif_transpose(open_image(ImageRecord(path.stem, path, ())))


def _require_files(paths: Sequence[Path], stems_matter: bool) -> None:
    """Before a model is loaded.

    Raises:
        InputError: A file does not exist, or two have one name where names are ids.
    """
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the photographs in it, such as {path}/*.jpg.")
        if not path.exists():
            raise InputError(f"photograph {path} does not exist.")
    stem, count = Counter(path.stem for path in paths).most_common(1)[0]
    if stems_matter and count > 1:
        raise InputError(f"{count} photographs are named {stem}, which --out and --maps know them by; give them one by one.")


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
