"""`crosslight caption`: what a trained captioner writes about any images, and what it attends to while it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from datamodules.errors import InputError
from datamodules.files.images import read_image
from datamodules.loading.images import evaluation_transform, normalize
from datamodules.records import ImageBatch
from experiments.analysis.draw_maps import draw_maps
from experiments.analysis.grid import covered_area, find_grid
from experiments.analysis.word_maps import Position, token_maps
from lightning_modules.base import draw_seed
from lightning_modules.networks.captioner import Captioner
from lightning_modules.networks.language_model import Decoding


@dataclass(frozen=True)
class MapOptions:
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
    network: Captioner,
    paths: Sequence[Path],
    decoding: Decoding,
    maps: MapOptions | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Iterator[tuple[Path, str]]:
    """Each image with its caption, in order; with `maps` a picture of them is there by then, `maps.folder`/stem.png. Where tokens
    are sampled, a caption depends on `seed` and the image's name alone.

    Images are as evaluation sees them.

    Raises:
        InputError: An image cannot be read, or what `token_maps` and the language model refuse.
    """
    spec = network.vision.image_input
    transform = evaluation_transform(spec)
    device = next(network.parameters()).device
    grid = find_grid(network) if maps is not None else None
    for first in range(0, len(paths), batch_size):
        chosen = paths[first : first + batch_size]
        opened = [read_image(path) for path in chosen]
        pixels_B3HW = normalize(torch.stack([transform(image) for image in opened]), spec).to(device)
        batch = ImageBatch(tuple(path.stem for path in chosen), torch.arange(len(chosen), device=device), pixels_B3HW)
        with torch.no_grad():
            features = network.encode_images(batch)
        ids = network.generate_ids(features, decoding, [draw_seed((seed, path.stem)) for path in chosen])
        captions = network.language.decode(ids)
        if maps is not None:
            found = token_maps(network, features, ids, grid=grid, layer=maps.layer, head=maps.head, position=maps.position)
            for path, image, drawn in zip(chosen, opened, found, strict=True):
                draw_maps(maps.folder / f"{path.stem}.png", image, drawn, covered_area(spec, *image.size))
        yield from zip(chosen, captions, strict=True)
