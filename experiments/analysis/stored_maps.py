"""Attention maps kept in a run folder, so that a report needs no model."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file
from experiments.runs.per_query import read_arrays

Array = npt.NDArray[Any]
By = Literal["attention", "gradient"]
"""What the maps of words are made of."""


@dataclass(frozen=True)
class AttentionMaps:
    """Self-attention within both modalities of one pair, averaged over heads, a softmax over each modality.

    Args:
        words: The caption's word pieces.
        words_WW: Words among words.
        regions_RR: Regions among regions.
        caption: The caption.
        layer: 0-based.
        singular: Both anchors' IAIS losses of this pair, and ...
        distributed: ... of the other kind.
    """

    words: tuple[str, ...]
    words_WW: Array
    regions_RR: Array
    caption: str
    layer: int
    singular: float
    distributed: float


@dataclass(frozen=True)
class WordMaps:
    """What each word of a caption attends to.

    Args:
        words: Of the caption.
        maps_KYX: Attention of each word to the patches.
        image_YX3: uint8, at most 320 px a side.
        covered: Part of the image under the maps: left, top, right, bottom in its pixels.
        caption: What the model wrote.
        shown: Layer, head and position in words.
    """

    words: tuple[str, ...]
    maps_KYX: Array
    image_YX3: Array
    covered: tuple[float, float, float, float]
    caption: str
    shown: str


@dataclass(frozen=True)
class BoxedMaps:
    """What the words of a reference caption attend to that name a thing with boxes.

    Args:
        words: The phrases with boxes.
        maps_KYX: Attention of the last word of each to the patches.
        inside_K: How much of it is in the boxes, 0 to 1.
        area_K: The boxes' part of the image.
        word_B: Whose each box is.
        boxes_B4: Left, top, right, bottom in pixels of `image_YX3`.
        image_YX3: uint8, at most 320 px a side.
        covered: Part of the image under the maps, likewise.
        caption: What a person wrote.
        shown: Layer, head and position in words.
    """

    words: tuple[str, ...]
    maps_KYX: Array
    inside_K: Array
    area_K: Array
    word_B: Array
    boxes_B4: Array
    image_YX3: Array
    covered: tuple[float, float, float, float]
    caption: str
    shown: str


@dataclass(frozen=True)
class WordShares:
    """Of words of reference captions that name a thing with boxes: how much of their attention is in them, or of what else their
    maps are made of (gradient x input, which has one layer). Shares are 0 to 1, and of the last layer but where it says so.

    Args:
        image_W: Image of each word, a row of the test split.
        layers_L: Layers with a module, 0-based.
        inside_LW: Attention of the word inside of the boxes, in each of them.
        area_W: The boxes' part of the image: what attention has that is even over it.
        elsewhere_W: What another word's attention, on another image, has in the same place. If attention always went to where
            things often are, this would be as large as `inside_W`.
        patches_W: Over how many patches the map is spread: exp of its entropy; 1 is a map of one patch.
        peak_W: Number of the patch with most of it.
        fingerprint: Of the data.
        shown: Patches, heads and position in words.
        pointed_W: 1 where the middle of the patch with most of it is in a box (the pointing game), else 0; None in a file of an
            earlier version.
        pointed_even_W: What a random patch would have of it.
        data: The data's name; empty in a file of an earlier version.
    """

    image_W: Array
    layers_L: Array
    inside_LW: Array
    area_W: Array
    elsewhere_W: Array
    patches_W: Array
    peak_W: Array
    fingerprint: str
    shown: str
    pointed_W: Array | None = None
    pointed_even_W: Array | None = None
    data: str = ""

    @property
    def inside_W(self) -> Array:
        """In the last layer."""
        return self.inside_LW[-1]


SHARES_FILE = "shares.npz"
SHARES_FILES: dict[By, str] = {"attention": SHARES_FILE, "gradient": "gradient.npz"}
MAPS_FOLDER = "attention_maps"  # in a run folder
_REMEDY = "Delete it: `report --maps` makes it again."
MAP_FILES: dict[str, type[AttentionMaps] | type[WordMaps]] = {"relations.npz": AttentionMaps, "words.npz": WordMaps}
BOXED_FILES = ("boxed-0.npz", "boxed-1.npz", "boxed-2.npz")
Maps = AttentionMaps | WordMaps | BoxedMaps

# dimensions and kinds of number of each array; words of an empty caption are floats
_DIMENSIONS: dict[Any, dict[str, tuple[int, str]]] = {
    AttentionMaps: {
        "words": (1, "Uf"), "words_WW": (2, "f"), "regions_RR": (2, "f"), "caption": (0, "U"), "layer": (0, "i"),
        "singular": (0, "f"), "distributed": (0, "f"),
    },
    WordMaps: {
        "words": (1, "Uf"), "maps_KYX": (3, "f"), "image_YX3": (3, "u"), "covered": (1, "fi"), "caption": (0, "U"),
        "shown": (0, "U"),
    },
    BoxedMaps: {
        "words": (1, "U"), "maps_KYX": (3, "f"), "inside_K": (1, "f"), "area_K": (1, "f"), "word_B": (1, "iu"),
        "boxes_B4": (2, "f"), "image_YX3": (3, "u"), "covered": (1, "fi"), "caption": (0, "U"), "shown": (0, "U"),
    },
    WordShares: {
        "image_W": (1, "iu"), "layers_L": (1, "iu"), "inside_LW": (2, "f"), "area_W": (1, "f"), "elsewhere_W": (1, "f"),
        "patches_W": (1, "f"), "peak_W": (1, "iu"), "fingerprint": (0, "U"), "shown": (0, "U"),
        "pointed_W": (1, "f"), "pointed_even_W": (1, "f"), "data": (0, "U"),
    },
}  # fmt: skip
_POINTED = ("pointed_W", "pointed_even_W")
_LATER = {*_POINTED, "data"}  # a file of an earlier version has none


def stored(folder: Path) -> list[Maps]:
    """What `make_maps` and `make_shares` have stored in a run folder to be drawn.

    Raises:
        InputError: A file cannot be read.
    """
    kinds: dict[str, type[Maps]] = {**MAP_FILES, **dict.fromkeys(BOXED_FILES, BoxedMaps)}
    files = [(folder / MAPS_FOLDER / name, kind) for name, kind in kinds.items()]
    return [kind(**_read(file, kind)) for file, kind in files if os.path.lexists(file)]


def stored_shares(folder: Path, by: By = "attention") -> WordShares | None:
    """What `make_shares` has stored in a run folder; None where there is none.

    Raises:
        InputError: The file cannot be read.
    """
    file = folder / MAPS_FOLDER / SHARES_FILES[by]
    return WordShares(**_read(file, WordShares)) if os.path.lexists(file) else None


def store_map(folder: Path, name: str, maps: Maps | WordShares) -> Path:
    file = folder / MAPS_FOLDER / name
    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as part:
        values = {each.name: getattr(maps, each.name) for each in fields(maps)}
        np.savez_compressed(part, **{name: np.asarray(value) for name, value in values.items() if value is not None})  # type: ignore[arg-type]
    return file


def _is_finite(array: Array) -> bool:
    return array.dtype.kind == "U" or bool(np.isfinite(array).all())


def _read(file: Path, kind: type[Any]) -> dict[str, Any]:
    values: dict[str, Any] = read_arrays(file, "attention maps of a run", _REMEDY)
    right = _DIMENSIONS[kind].keys() - _LATER <= values.keys() <= _DIMENSIONS[kind].keys() and all(
        values[name].ndim == dimensions and values[name].dtype.kind in kinds and _is_finite(values[name])
        for name, (dimensions, kinds) in _DIMENSIONS[kind].items()
        if name in values
    )
    shapes = {name: value.shape for name, value in values.items()}
    words = shapes.get("words", ())
    wanted = {"words_WW": words * 2, "regions_RR": shapes.get("regions_RR", ())[:1] * 2, "covered": (4,)}
    wanted |= dict.fromkeys(("inside_K", "area_K"), words) | {"boxes_B4": (*shapes.get("word_B", ()), 4)}
    wanted |= dict.fromkeys(("area_W", "elsewhere_W", "patches_W", "peak_W", *_POINTED), shapes.get("image_W", ()))
    wanted |= {"inside_LW": shapes.get("layers_L", ()) + shapes.get("image_W", ())}
    wanted |= {"maps_KYX": words + shapes.get("maps_KYX", ())[1:], "image_YX3": (*shapes.get("image_YX3", ())[:2], 3)}
    right = right and bool(np.isin(values.get("word_B", ()), np.arange(len(values.get("words", ())))).all())
    if not right or any(shapes[name] != shape or 0 in shape for name, shape in wanted.items() if name in shapes):
        raise InputError(f"{file} does not hold what this version stores there. {_REMEDY}")
    for name, value in values.items():
        if name in ("words", "covered"):
            values[name] = tuple(value.tolist())
        elif value.ndim == 0:
            values[name] = value.item()
    return values
