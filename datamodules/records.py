"""What readers yield and what batches carry: frozen, typed, shapes and units in the docstrings.

Legend of the shape letters, here and in every file that suffixes names with them:
B batch, T tokens, H/W pixels, R regions, D feature width, P phrases.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

# ------------------------------------------------------------------------------------------ records (on disk)


@dataclass(frozen=True, slots=True)
class Box:
    """A box in pixels of the stored image: left, top, right, bottom (right and bottom exclusive)."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase of a caption and where it is in the image.

    `start:end` are characters of the caption's text; `chain` joins phrases of several captions that name the same thing;
    `category` is Entities' coarse type ("people", "animals", ...); no box means that the phrase is not visible.
    """

    start: int
    end: int
    chain: str
    category: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence about one image. `caption_id` is unique in its data set.

    `token_ids` come from files that hold ids of BEiT-3's tokeniser (without begin and end token) in place of words: the text is
    "" then, and only a network with that tokeniser can read them.
    """

    caption_id: str
    text: str
    phrases: tuple[Phrase, ...] = ()
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a split with all its captions (any number). `image_id` is unique in its data set; `path` is absolute."""

    image_id: str
    path: Path
    captions: tuple[Caption, ...]
    domain: str | None = None


# ---------------------------------------------------------------------------------------- batches (in memory)


@dataclass(frozen=True)
class _Batch:
    """Moves with `.to(device)` and `.pin_memory()`, which is all that Lightning and the DataLoader ask of a batch type."""

    def _map(self, function: Any) -> Self:
        changes = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (Tensor, _Batch)):
                changes[field.name] = function(value)
        return replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda value: value.pin_memory())


@dataclass(frozen=True)
class Regions(_Batch):
    """Detected regions, padded to the longest image: features [B, R, D], boxes [B, R, 4] (left, top, right, bottom as
    fractions of the image), confidences [B, R], mask [B, R] (True = a region)."""

    features_BRD: Tensor
    boxes_BR4: Tensor
    confidences_BR: Tensor
    mask_BR: Tensor


@dataclass(frozen=True)
class ImageBatch(_Batch):
    """Images, each once. `index_B` (int64) is the image's row in its split, the row used by relevance maps."""

    image_ids: tuple[str, ...]
    index_B: Tensor
    pixels_B3HW: Tensor | None = None
    regions: Regions | None = None
    domains: tuple[str | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class TextBatch(_Batch):
    """Captions, each once.

    `index_B` (int64) is the caption's row in its split and `image_index_B` the row of the image it describes: together over a
    split they are the relevance map. `tokens_BT` int64, `mask_BT` bool with True on real tokens (padding is False).
    """

    caption_ids: tuple[str, ...]
    texts: tuple[str, ...]
    index_B: Tensor
    image_index_B: Tensor
    tokens_BT: Tensor
    mask_BT: Tensor
    phrases: tuple[tuple[Phrase, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.caption_ids)


@dataclass(frozen=True)
class PairBatch(_Batch):
    """Training pairs: caption row i describes image row i (`images.index_B == texts.image_index_B`)."""

    images: ImageBatch
    texts: TextBatch

    def __len__(self) -> int:
        return len(self.texts)
