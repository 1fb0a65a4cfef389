"""Attention maps kept in a run folder, so that a report needs no model."""

from __future__ import annotations

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


MAPS_FOLDER = "attention_maps"  # in a run folder
MAP_FILES: dict[str, type[AttentionMaps] | type[WordMaps]] = {"relations.npz": AttentionMaps, "words.npz": WordMaps}


def stored(folder: Path) -> list[AttentionMaps | WordMaps]:
    """What `make_maps` has stored in a run folder."""
    return [_read(file, kind) for name, kind in MAP_FILES.items() if (file := folder / MAPS_FOLDER / name).is_file()]


def store_map(folder: Path, name: str, maps: AttentionMaps | WordMaps) -> Path:
    file = folder / MAPS_FOLDER / name
    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as part:
        np.savez_compressed(part, **{each.name: np.asarray(getattr(maps, each.name)) for each in fields(maps)})  # type: ignore[arg-type]
    return file


def _read(file: Path, kind: type[AttentionMaps] | type[WordMaps]) -> AttentionMaps | WordMaps:
    with np.load(file, allow_pickle=False) as arrays:
        values: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    for name, value in values.items():
        if name in ("words", "covered"):
            values[name] = tuple(value.tolist())
        elif value.ndim == 0:
            values[name] = value.item()
    return kind(**values)
