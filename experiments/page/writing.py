"""A caption of an image, and where each of its words looks, as pictures of a page."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from datamodules.files.images import read_image
from datamodules.loading.image_files import read_image_files, require_readable
from datamodules.records import Box
from experiments.analysis.captions import captioner_of
from experiments.analysis.draw_maps import COLORS, opacity, peak_in_words
from experiments.analysis.grid import covered_area
from experiments.analysis.word_maps import TokenMaps, token_maps
from experiments.page.folder import data_uri, jpeg
from lightning_modules.base import draw_seed
from lightning_modules.captioning import CaptioningModule
from lightning_modules.networks.captioner import Captioner, Written
from lightning_modules.networks.modes import evaluating

LARGE, _SMALL = 720, 240  # pixels of the longer side: of the image, and of a word's own picture

Which = int | Literal["last", "mean"]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Look:
    """Where a word looks.

    Args:
        text: The word.
        heat: Its map as a picture with transparency, to be laid over the image (data URI).
        picture: The image under the map, small (data URI).
        peak: How high the map rises, in words.
        where: Where it does, in words: for whoever sees no picture.
        times: The peak, in times an even share.
    """

    text: str
    heat: str
    picture: str
    peak: str
    where: str
    times: float


@dataclass(frozen=True)
class Caption:
    """What a captioner writes about an image.

    Args:
        written: Text, tokens, log-probability.
        picture: The image (data URI).
        tall: Whether it is, so that the page makes it narrow.
        looks: Of its words, where there are maps.
        best: Of these the one whose map is the least even.
        shown: Which layer and head the maps are of, in words.
        without: Why there are no maps.
        layers: That have some.
        heads: That each of them has.
    """

    written: Written
    picture: str
    tall: bool
    looks: tuple[Look, ...] = ()
    best: int = 0
    shown: str = ""
    without: str = ""
    layers: tuple[int, ...] = field(default=())
    heads: int = 0


def write_caption(
    model: CaptioningModule, run: str, file: Path, name: str, layer: Which = "last", head: Which = "mean"
) -> Caption:
    """Caption an image file, as a test of the run would.

    Args:
        model: On its device.
        run: What it is called in messages.
        file: The image.
        name: What it is called: of sampled captions the seed.
        layer: Whose maps are shown.
        head: Likewise.

    Raises:
        InputError: The model writes nothing, the image cannot be read, or there is no such layer or head.
    """
    network: Captioner = captioner_of(model, Path(run), maps=False)
    spec = network.vision.image_input
    image = read_image(file)
    batch = require_readable(next(read_image_files([file], spec)))
    with evaluating(model), torch.no_grad():
        features = network.encode_images(batch.to(next(network.parameters()).device))
        written = network.write(features, model.decoding, [draw_seed((0, Path(name).stem))])[0]
        large = data_uri(jpeg(image, LARGE))
        if network.i_tuning is None or network.visual == "pooled":
            return Caption(
                written,
                large,
                is_tall(image),
                without="This captioner sees an image as a whole, so its words look at no place in it.",
            )
        maps = token_maps(network, features, [written.ids], layer=layer, head="mean" if head == "last" else head)[0]
    covered = covered_area(spec, *image.size)
    looks = _looks(image, maps, covered)
    best = max(range(len(looks)), key=lambda row: looks[row].times, default=0)
    modules = network.i_tuning
    return Caption(written, large, is_tall(image), looks, best, maps.shown, layers=tuple(modules.layers), heads=modules.num_heads)


def _looks(image: Image.Image, maps: TokenMaps, covered: Box) -> tuple[Look, ...]:
    looks = []
    for word, map_YX, special_S in zip(maps.words, maps.word_maps(), maps.word_special(), strict=True):
        row, column = np.unravel_index(int(map_YX.argmax()), map_YX.shape)
        peak = ((column + 0.5) / map_YX.shape[1], (row + 0.5) / map_YX.shape[0])
        heat = heat_picture(map_YX, covered, image.size)
        looks.append(look_of(word.text, image, heat, map_YX, special_S, peak))
    return tuple(looks)


def look_of(text: str, image: Image.Image, heat: Image.Image, map_: Array, special_S: Array, peak: tuple[float, float]) -> Look:
    """A word's look.

    Args:
        text: The word.
        image: What is looked at.
        heat: The map over it.
        map_: The map, of patches or regions.
        special_S: Attention to special tokens.
        peak: Where the map is highest: from the left and from the top, in parts of the image.
    """
    small = image.copy()
    small.thumbnail((_SMALL, _SMALL))
    under = Image.alpha_composite(small.convert("RGBA"), heat.resize(small.size)).convert("RGB")
    total = float(map_.sum())
    times = float(map_.max()) * map_.size / total if total else 0.0
    pictures = data_uri(_webp(heat), "webp"), data_uri(jpeg(under, _SMALL))
    return Look(text, *pictures, peak_in_words(map_, special_S), _place(*peak), times)


def is_tall(image: Image.Image) -> bool:
    """Whether an image would fill a page if it were as wide as others."""
    return image.height > 1.2 * image.width


def heat_picture(map_YX: Array, covered: Box, size: tuple[int, int], side: int = 320) -> Image.Image:
    """A map in the colors of `draw_maps`, from nothing to its own peak, transparent where the network saw nothing of the image.

    Args:
        map_YX: Attention to the patches.
        covered: The part of the image under the map, in its pixels.
        size: Width and height of the image.
        side: Of the picture, the longer one.
    """
    from matplotlib import colormaps

    scale = side / max(size)
    of_peak = Image.fromarray((map_YX / (float(map_YX.max()) or 1.0)).astype(np.float32))
    wide, high = (max(1, round(length * scale)) for length in (covered.right - covered.left, covered.bottom - covered.top))
    smooth_HW = np.asarray(of_peak.resize((wide, high), Image.Resampling.BILINEAR)).clip(0, 1)
    colors_HW4 = colormaps[COLORS](smooth_HW)
    colors_HW4[..., 3] = opacity(smooth_HW)
    picture = Image.new("RGBA", (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))
    picture.paste(Image.fromarray((colors_HW4 * 255).astype(np.uint8)), (round(covered.left * scale), round(covered.top * scale)))
    return picture


def _webp(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=80)
    return stream.getvalue()


def _place(wide: float, high: float) -> str:
    """A place in an image, given in parts of it, in words: thirds."""
    row = ("top", "middle", "bottom")[min(2, int(3 * high))]
    column = ("left", "center", "right")[min(2, int(3 * wide))]
    return "center" if (row, column) == ("middle", "center") else f"{row} {column}"
