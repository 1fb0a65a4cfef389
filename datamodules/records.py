"""What readers yield and what batches carry: frozen, typed, shapes and units in the docstrings.

Nothing here imports torch when it runs: whoever only reads files (`crosslight data check`, `score`) does without.

Legend of the shape letters, here and in every file that suffixes names with them:
B batch, T tokens, H/W pixels, R regions, V visual tokens, D feature width, N objects, P positives, X a positive and its
candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# ------------------------------------------------------------------------------------------ records (on disk)


@dataclass(frozen=True, slots=True)
class Box:
    """A box in pixels of the image upright: left, top, right, bottom (right and bottom exclusive)."""

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

    `token_ids` come from files that hold ids of a tokenizer (without begin and end token) in place of words, such as BEiT-3's
    index or UNITER's text databases: the text is "" then, and only a network with that tokenizer can read them.
    """

    caption_id: str
    text: str
    phrases: tuple[Phrase, ...] = ()
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a split with all its captions (any number). `image_id` is unique in its data set; `path` is absolute, and None
    where a data set gives region features only; `regions` is the image's name in its database of region features. `captions` are
    a tuple; of a large data set a sequence that makes them when they are asked for."""

    image_id: str
    path: Path | None
    captions: Sequence[Caption]
    domain: str | None = None
    regions: str | None = None


@dataclass(frozen=True)
class FileIds:
    """Which vocabulary the token ids in a data set's files are of.

    Args:
        maker: The tokenizer that made them, for messages.
        begin: id that begins a caption.
        padding: id that pads one.
        end: id that ends one.
        unknown: id of what the vocabulary lacks.
        size: Number of ids; None where the files do not say.
        mask: id of a hidden word; None where the files do not say.
        first_word: The first id that is a word's and not special; None likewise.
    """

    maker: str
    begin: int
    padding: int
    end: int
    unknown: int
    size: int | None = None
    mask: int | None = None
    first_word: int | None = None

    def __str__(self) -> str:
        size = "" if self.size is None else f", {self.size:,} ids"
        return f"{self.maker}: begin {self.begin}, padding {self.padding}, end {self.end}, unknown {self.unknown}{size}"


# ---------------------------------------------------------------------------------------- batches (in memory)


@dataclass(frozen=True)
class _Batch:
    """Moves with `.to(device)` and `.pin_memory()`, which is all that Lightning and the DataLoader ask of a batch type."""

    def _map(self, function: Any) -> Self:
        changes = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if hasattr(value, "pin_memory"):  # a tensor, or a batch in this one
                changes[field.name] = function(value)
        return replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda value: value.pin_memory())


@dataclass(frozen=True)
class Regions(_Batch):
    """Regions, padded to the longest image: features [B, R, D] (fp16 where stored so: networks cast), boxes [B, R, 7] (left, top,
    right, bottom, width, height, area as fractions of the image), confidences [B, R], mask [B, R] (True = a region; real regions
    come first). Where they were asked for, probabilities of the detector's classes [B, R, C], class 0 the background."""

    features_BRD: Tensor
    boxes_BR7: Tensor
    confidences_BR: Tensor
    mask_BR: Tensor
    classes_BRC: Tensor | None = None


@dataclass(frozen=True)
class ImageBatch(_Batch):
    """Images, each once. `index_B` (int64) is the image's row in its split, the row used by relevance maps. `tokens_BVD` are
    visual tokens as a frozen tower made them, in place of pixels (fp16 where stored so: networks cast). `sizes_B2` (int64): where
    images of several sizes share `pixels_B3HW`, the height and width of each, which is top left; the rest is 0. None = all
    fill it."""

    image_ids: tuple[str, ...]
    index_B: Tensor
    pixels_B3HW: Tensor | None = None
    regions: Regions | None = None
    domains: tuple[str | None, ...] | None = None
    tokens_BVD: Tensor | None = None
    sizes_B2: Tensor | None = None

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

    def with_tokens(self, tokens_BT: Tensor) -> Self:
        """The captions read otherwise, such as with hidden words."""
        return replace(self, tokens_BT=tokens_BT)


@dataclass(frozen=True)
class Objects(_Batch):
    """Things that the caption and the image of a pair both show (chains of Flickr30k Entities), in the order of first mention.

    Where they are: `words_BNT` bool [B, N, T] among the caption's tokens (the columns of `tokens_BT`; never [CLS], [SEP] or
    padding), `regions_BNR` bool [B, N, R] among the image's regions. `mask_BN` bool: True = an object. A token or region may
    belong to several objects.
    """

    words_BNT: Tensor
    regions_BNR: Tensor
    mask_BN: Tensor


@dataclass(frozen=True)
class PairBatch(_Batch):
    """Pairs: caption row i describes image row i (`images.index_B == texts.image_index_B`)."""

    images: ImageBatch
    texts: TextBatch
    objects: Objects | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Positives(_Batch):
    """Which captions and images of a split match by somebody's word, where a query may have several right answers: pairs of rows
    of the split, int64. Only what is here is asked.

    Of image queries `i2t_image_P` and their right captions `i2t_text_P`; of caption queries `t2i_text_P` and their right images
    `t2i_image_P`. The two directions may have different queries.
    """

    i2t_image_P: Tensor
    i2t_text_P: Tensor
    t2i_text_P: Tensor
    t2i_image_P: Tensor


@dataclass(frozen=True)
class Candidates(_Batch):
    """Positive pairs with the candidates for their hard negatives, as rows of a batch's images and texts, int64 [P, 1 + N].

    Column 0 is the positive. On the hard-text side `image_PX` is the same image along a row, on the hard-image side `text_PX` is
    the same caption. No candidate is a positive: its caption does not describe its image.
    """

    image_PX: Tensor
    text_PX: Tensor


@dataclass(frozen=True)
class RankingBatch(_Batch):
    """What hard negatives are mined from: each image and each caption once, and which pairs of them to look at.

    `hard_texts`: images with their caption and captions of other images. `hard_images`: captions with their image and other
    images; another sample of positives (the two come from independently shuffled orders). A side that is not trained is None.
    """

    images: ImageBatch
    texts: TextBatch
    hard_texts: Candidates | None
    hard_images: Candidates | None

    def __len__(self) -> int:
        return sum(len(side.image_PX) for side in (self.hard_texts, self.hard_images) if side is not None)


@dataclass(frozen=True)
class MaskedBatch(_Batch):
    """Pairs for one task of masked pre-training: caption row i is shown with image row i. Of these three one is given:

    `labels_BT` int64: the token that was there where a word is hidden, -1 elsewhere (`texts.tokens_BT` has what is read instead);
    `hidden_BR` bool: True = the network must not see this region's feature (`images.regions` has it, to compare with);
    `matched_B` bool: False = the image is exchanged, and not the one that the caption describes.
    """

    images: ImageBatch
    texts: TextBatch
    task: str
    labels_BT: Tensor | None = None
    hidden_BR: Tensor | None = None
    matched_B: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def replaced(self, **fields: Any) -> Self:
        """The batch with other values of these fields."""
        return replace(self, **fields)


@dataclass(frozen=True)
class CaptionBatch(_Batch):
    """Images, each once, with the captions to be learned.

    `image_row_B` (int64 [B]) is the row in `images` of each caption's image: caption i describes image `image_row_B[i]`, so
    `images.index_B[image_row_B] == texts.image_index_B`. The tokens of `texts` have no begin token and end in the end token (also
    where a caption is cut); `mask_BT` covers it. A joined text has the ids of its captions, with "+" between them, and the row of
    the first one. `len()` counts captions.
    """

    images: ImageBatch
    texts: TextBatch
    image_row_B: Tensor

    def __len__(self) -> int:
        return len(self.texts)
