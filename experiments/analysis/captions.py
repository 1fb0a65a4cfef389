"""`crosslight caption`: what a trained captioner writes about any photographs, and where it looks while it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps

from datamodules.errors import InputError
from datamodules.files.images import open_image
from datamodules.loading.images import evaluation_transform, normalize
from datamodules.records import ImageBatch, ImageRecord
from experiments.analysis.draw_maps import draw_maps
from experiments.analysis.grid import covered_area, find_grid
from experiments.analysis.word_maps import Position, token_maps
from lightning_modules.networks.captioner import Captioner
from lightning_modules.networks.language_model import Decoding


@dataclass(frozen=True)
class Look:
    """Which maps are drawn, and where to: arguments of `token_maps`, and a folder."""

    folder: Path
    layer: int | Literal["last", "mean"] = "last"
    head: int | Literal["mean"] = "mean"
    position: Position = "predicts"


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
        pixels_B3HW = normalize(torch.stack([transform(photograph) for photograph in photographs]), spec).to(device)
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
