"""The captions of a split, by their row: counted over the images in their order. No object is kept for any of them.

Legend: I images, C captions of the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np

from datamodules.formats.columns import Integers
from datamodules.formats.record_table import Records
from datamodules.loading.whole_split import counts_of
from datamodules.records import Caption, ImageRecord

_TOGETHER = 10_000  # texts that are made at once


class SplitCaptions(Sequence[Caption]):
    """Captions by row, and which image each describes.

    Attributes: `first`, int64 [I + 1]: caption rows of image i are those from [i] up to [i + 1].

    Args:
        records: The split.
    """

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self._records = records
        self.first: Integers = np.concatenate([[0], counts_of(records).cumsum()])

    def __len__(self) -> int:
        return int(self.first[-1])

    @overload
    def __getitem__(self, index: int) -> Caption: ...
    @overload
    def __getitem__(self, index: slice) -> list[Caption]: ...
    def __getitem__(self, index: int | slice) -> Caption | list[Caption]:
        rows = range(len(self))[index]
        if not isinstance(rows, int):
            return [self[row] for row in rows]
        image = self.image_of(rows)
        return self._records[image].captions[rows - int(self.first[image])]

    def __iter__(self) -> Iterator[Caption]:
        return (caption for record in self._records for caption in record.captions)

    def image_of(self, row: int) -> int:
        """The image that a caption describes."""
        return int(np.searchsorted(self.first, row, side="right")) - 1

    def images(self) -> Integers:
        """The image of each caption, int64 [C]."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    def texts(self) -> Iterator[list[str]]:
        """All texts in their order, some thousand at a time; of captions that are token ids "" or the words stored with them."""
        if isinstance(self._records, Records):
            yield from self._records.texts()
            return
        texts = (caption.text for caption in self)
        while some := list(islice(texts, _TOGETHER)):
            yield some

    def token_counts(self) -> Integers | None:
        """Token ids of each caption, int64 [C], -1 for one that is text; None where all are."""
        if isinstance(self._records, Records):
            return self._records.token_counts()
        counts = [-1 if caption.token_ids is None else len(caption.token_ids) for caption in self]
        return np.array(counts, dtype=np.int64) if any(count >= 0 for count in counts) else None

    def largest_token(self) -> int | None:
        """The largest of all token ids; None where there are none."""
        if isinstance(self._records, Records):
            return self._records.largest_token()
        return max((max(caption.token_ids) for caption in self if caption.token_ids), default=None)
