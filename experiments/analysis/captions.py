"""`crosslight caption`: what a trained captioner writes about any images, and what it attends to while it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from datamodules.errors import InputError
from datamodules.files.images import read_image
from datamodules.loading.image_files import read_image_files
from experiments.analysis.draw_maps import draw_maps
from experiments.analysis.grid import covered_area, find_grid
from experiments.analysis.word_maps import Position, token_maps
from lightning_modules.base import draw_seed
from lightning_modules.networks.captioner import Captioner, Written
from lightning_modules.networks.language_model import Decoding

_IMAGE, _SHOWN = "crosslight image", "crosslight maps"  # keys of a PNG's texts


@dataclass(frozen=True)
class MapOptions:
    """Which maps are drawn, and where to: arguments of `token_maps`, and a folder."""

    folder: Path
    layer: int | Literal["last", "mean"] = "last"
    head: int | Literal["mean"] = "mean"
    position: Position = "predicts"

    @property
    def shown(self) -> str:
        """What a picture says of itself (see `said_of`)."""
        return f"layer {self.layer}, head {self.head}, position {self.position}"

    def file_of(self, image: Path) -> Path:
        return self.folder / f"{image.stem}.png"


def said_of(picture: Path) -> tuple[str, str] | None:
    """Of which image file a picture of maps is, and what it shows of it; None of any other file."""
    try:
        with Image.open(picture) as opened:
            return str(opened.info[_IMAGE]), str(opened.info[_SHOWN])
    except (OSError, KeyError, ValueError):
        return None


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


@dataclass(frozen=True)
class Captioned:
    """A batch of image files: their captions, in order, and what is wrong with those that cannot be read, by file."""

    captions: tuple[tuple[Path, Written], ...]
    broken: dict[Path, str]


@torch.no_grad()
def write_captions(
    network: Captioner,
    paths: Sequence[Path],
    decoding: Decoding,
    maps: MapOptions | None = None,
    batch_size: int = 16,
    seed: int = 0,
    workers: int = 0,
) -> Iterator[Captioned]:
    """Captions of image files, a batch at a time; with `maps` a picture of each is there by then, `maps.folder`/stem.png. Where
    tokens are sampled, a caption depends on `seed` and the image's name alone.

    Images are as evaluation sees them.

    Raises:
        InputError: What `token_maps` and the language model refuse.
    """
    spec = network.vision.image_input
    device = next(network.parameters()).device
    grid = find_grid(network) if maps is not None else None
    for read in read_image_files(paths, spec, batch_size, workers):
        broken = {paths[row]: reason for row, reason in read.broken.items()}
        if read.images is None:
            yield Captioned((), broken)
            continue
        chosen = [paths[row] for row in read.images.index_B.tolist()]
        features = network.encode_images(read.images.to(device))
        written = network.write(features, decoding, [draw_seed((seed, path.stem)) for path in chosen])
        if maps is not None:
            ids = [each.ids for each in written]
            found = token_maps(network, features, ids, grid=grid, layer=maps.layer, head=maps.head, position=maps.position)
            for path, drawn in zip(chosen, found, strict=True):
                image = read_image(path)
                about = {_IMAGE: str(path), _SHOWN: maps.shown}
                draw_maps(maps.file_of(path), image, drawn, covered_area(spec, *image.size), about=about)
        yield Captioned(tuple(zip(chosen, written, strict=True)), broken)
