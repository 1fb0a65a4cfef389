"""From records to the tensors of one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor

from datamodules.formats.columns import Integers
from datamodules.loading.features import FeatureFile
from datamodules.loading.images import SplitImages
from datamodules.loading.split_captions import SplitCaptions
from datamodules.loading.tokens import Tokenizer
from datamodules.records import Caption, ImageBatch, ImageRecord, Regions, TextBatch

_TOGETHER = 1000  # texts that are tokenized at once


def require_ids(captions: SplitCaptions, tokenizer: Tokenizer) -> None:
    """Before the first batch: the captions' token ids, if they have any, are the tokenizer's; texts need a tokenizer."""
    if (largest := captions.largest_token()) is not None:
        tokenizer.require_ids(largest)
    else:
        tokenizer.require_tokenizer()


def words_of(captions: Sequence[Caption], tokenizer: Tokenizer, enough: int = 0) -> Integers:
    """Tokens of each caption without special ones, int64 [C]; of captions whose bytes are not more than `enough`, those (no
    tokenizer makes more tokens than bytes)."""
    rows = _rows_of(captions)
    counts = rows.token_counts()
    if counts is not None and (counts >= 0).all():
        return counts
    words, start = np.zeros(len(rows), np.int64), 0
    for texts in rows.texts():
        sizes = np.array([len(tokenizer.as_read(text).encode()) for text in texts], np.int64)
        own = np.full(len(texts), -1) if counts is None else counts[start : start + len(texts)]
        here = words[start : start + len(texts)]  # a view
        here[:] = np.where(own < 0, sizes, own)
        unsure = np.flatnonzero((own < 0) & (sizes > enough))
        for some in np.split(unsure, range(_TOGETHER, len(unsure), _TOGETHER)):
            here[some] = _lengths([texts[row] for row in some], tokenizer)
        start += len(texts)
    return words


def cut_of(captions: Sequence[Caption], tokenizer: Tokenizer) -> int:
    """How many captions are longer than the tokenizer takes."""
    rows = _rows_of(captions)
    counts = rows.token_counts()
    if counts is None:
        return cut_texts((text for texts in rows.texts() for text in texts), tokenizer)
    others = (rows[int(row)].text for row in np.flatnonzero(counts < 0))
    return int((counts > tokenizer.room).sum()) + cut_texts(others, tokenizer)


def cut_texts(texts: Iterable[str], tokenizer: Tokenizer) -> int:
    """How many texts are longer than the tokenizer takes. An ASCII letter is a token at most, and a text may have one more in
    front; short texts of other letters are looked at, too, since some become several."""
    long = (
        text for text in texts if len(read := tokenizer.as_read(text)) >= tokenizer.room or not read.isascii()
    )  # fmt: skip
    cut = 0
    while some := list(islice(long, _TOGETHER)):
        cut += sum(length > tokenizer.room for length in _lengths(some, tokenizer))
    return cut


def _rows_of(captions: Sequence[Caption]) -> SplitCaptions:
    return captions if isinstance(captions, SplitCaptions) else SplitCaptions([ImageRecord("", None, captions)])


def _lengths(texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    return [len(ids) for ids in tokenizer.ids(texts)] if texts else []


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
