"""From records to the tensors of one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from datamodules.loading.features import FeatureFile
from datamodules.loading.images import SplitImages
from datamodules.loading.tokens import Tokenizer
from datamodules.records import Caption, ImageBatch, ImageRecord, Regions, TextBatch


def require_ids(records: Sequence[ImageRecord], tokenizer: Tokenizer) -> None:
    """Before the first batch: the captions' token ids, if they have any, are the tokenizer's; texts need a tokenizer."""
    largest = [max(caption.token_ids) for record in records for caption in record.captions if caption.token_ids]
    if largest:
        tokenizer.require_ids(max(largest))
    else:
        tokenizer.require_tokenizer()


def words_of(captions: Sequence[Caption], tokenizer: Tokenizer, enough: int = 0) -> list[int]:
    """Tokens of each caption without special ones; of captions whose characters are not more than `enough`, those (no tokenizer
    makes more tokens than bytes)."""
    words = [
        len(tokenizer.as_read(caption.text).encode()) if caption.token_ids is None else len(caption.token_ids)
        for caption in captions
    ]
    unsure = [row for row, caption in enumerate(captions) if caption.token_ids is None and words[row] > enough]
    for first in range(0, len(unsure), 1000):
        rows = unsure[first : first + 1000]
        for row, ids in zip(rows, tokenizer.ids([captions[row].text for row in rows]), strict=True):
            words[row] = len(ids)
    return words


def cut_of(captions: Sequence[Caption], tokenizer: Tokenizer) -> int:
    """How many captions are longer than the tokenizer takes. An ASCII letter is a token at most, and a text may have one more in
    front; short texts of other letters are looked at, too, since some become several."""
    long = [
        caption for caption in captions
        if caption.token_ids is not None
        or len(text := tokenizer.as_read(caption.text)) >= tokenizer.room
        or not text.isascii()
    ]  # fmt: skip
    return sum(words > tokenizer.room for words in words_of(long, tokenizer))


def region_names(records: Sequence[ImageRecord], rows: Iterable[int]) -> list[str]:
    """The names of the images at `rows` in their databases of region features."""
    names = [records[row].regions for row in rows]
    assert None not in names, "a record has no name in a database of region features"
    return cast("list[str]", names)


def shown_batch(
    records: Sequence[ImageRecord], images: SplitImages | FeatureFile, rows: Sequence[int], seeds: Sequence[int]
) -> ImageBatch:
    """The images at `rows` of a split with their pixels (`seeds` as of `SplitImages.pixels`), or visual tokens as stored."""
    if isinstance(images, FeatureFile):
        return image_batch(records, rows, tokens_BVD=torch.from_numpy(images.read(rows)))
    pixels_B3HW, sizes_B2 = images.batch(rows, seeds)
    return image_batch(records, rows, pixels_B3HW, sizes_B2=sizes_B2)


def image_batch(
    records: Sequence[ImageRecord],
    rows: Sequence[int],
    pixels_B3HW: Tensor | None = None,
    regions: Regions | None = None,
    tokens_BVD: Tensor | None = None,
    sizes_B2: Tensor | None = None,
) -> ImageBatch:
    """The images at `rows` of a split, with these pixels (and their sizes), regions or visual tokens."""
    chosen = [records[row] for row in rows]
    domains = tuple(record.domain for record in chosen)
    return ImageBatch(
        image_ids=tuple(record.image_id for record in chosen),
        index_B=torch.tensor(rows, dtype=torch.int64),
        pixels_B3HW=pixels_B3HW,
        regions=regions,
        domains=domains if any(domain is not None for domain in domains) else None,
        tokens_BVD=tokens_BVD,
        sizes_B2=sizes_B2,
    )


def text_batch(captions: Sequence[Caption], rows: Sequence[int], image_rows: Sequence[int], tokenizer: Tokenizer) -> TextBatch:
    """These captions at `rows` of a split, describing the images at `image_rows`."""
    texts = tuple(caption.text for caption in captions)
    ids = [caption.token_ids for caption in captions if caption.token_ids is not None]
    assert len(ids) in (0, len(captions)), "a split has captions as text or as token ids, not both"
    tokens_BT, mask_BT = tokenizer.from_ids(ids) if ids else tokenizer(texts)
    return TextBatch(
        caption_ids=tuple(caption.caption_id for caption in captions),
        texts=texts,
        index_B=torch.tensor(rows, dtype=torch.int64),
        image_index_B=torch.tensor(image_rows, dtype=torch.int64),
        tokens_BT=tokens_BT,
        mask_BT=mask_BT,
        phrases=tuple(caption.phrases for caption in captions) if any(caption.phrases for caption in captions) else None,
    )
