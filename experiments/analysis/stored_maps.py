"""Attention maps kept in a run folder, so that a report needs no model."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.files.atomic import whole_file

Array = npt.NDArray[Any]


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
class WordShares:
    """Of words of reference captions that name a thing with boxes: how much of their attention is in them. Shares are 0 to 1.

    Args:
        image_W: Image of each word, a row of the test split.
        inside_W: Attention of the word inside of the boxes.
        area_W: The boxes' part of the image: what attention has that is even over it.
        elsewhere_W: What another word's attention, on another image, has in the same place. If attention always went to where
            things often are, this would be as large as `inside_W`.
        fingerprint: Of the data.
        shown: Layer, head and position in words.
    """

    image_W: Array
    inside_W: Array
    area_W: Array
    elsewhere_W: Array
    fingerprint: str
    shown: str


SHARES_FILE = "shares.npz"
MAPS_FOLDER = "attention_maps"  # in a run folder
MAP_FILES: dict[str, type[AttentionMaps] | type[WordMaps]] = {"relations.npz": AttentionMaps, "words.npz": WordMaps}


def stored(folder: Path) -> list[AttentionMaps | WordMaps]:
    """What `make_maps` has stored in a run folder."""
    return [kind(**_read(file)) for name, kind in MAP_FILES.items() if (file := folder / MAPS_FOLDER / name).is_file()]


def stored_shares(folder: Path) -> WordShares | None:
    """What `make_shares` has stored in a run folder; None where there is none, or a damaged file: it is then measured again."""
    try:
        return WordShares(**_read(folder / MAPS_FOLDER / SHARES_FILE))
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


def store_map(folder: Path, name: str, maps: AttentionMaps | WordMaps | WordShares) -> Path:
    file = folder / MAPS_FOLDER / name
    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as part:
        np.savez_compressed(part, **{each.name: np.asarray(getattr(maps, each.name)) for each in fields(maps)})  # type: ignore[arg-type]
    return file


def _read(file: Path) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as arrays:
        values: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    for name, value in values.items():
        if name in ("words", "covered"):
            values[name] = tuple(value.tolist())
        elif value.ndim == 0:
            values[name] = value.item()
    return values
