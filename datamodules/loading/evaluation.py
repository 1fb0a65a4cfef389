"""What an evaluation sees: each image once, each caption once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodules.formats.columns import Integers
from datamodules.loading.collate import image_batch, region_names, require_ids, shown_batch, text_batch, words_of
from datamodules.loading.features import FeatureFile
from datamodules.loading.images import SplitImages
from datamodules.loading.loader import BatchDataset
from datamodules.loading.region_files import RegionReader
from datamodules.loading.regions import padded
from datamodules.loading.split_captions import SplitCaptions
from datamodules.loading.tokens import Tokenizer
from datamodules.records import ImageBatch, ImageRecord, TextBatch


class EvaluationImages(BatchDataset):
    """Images by row: their pixels, or the features that a frozen tower made of them."""

    def __init__(self, records: Sequence[ImageRecord], images: SplitImages | FeatureFile) -> None:
        self.records, self.images = records, images

    def __len__(self) -> int:
        return len(self.records)

    def make(self, keys: Sequence[int]) -> ImageBatch:
        return shown_batch(self.records, self.images, keys, [0] * len(keys))


class EvaluationRegions(BatchDataset):
    """Images by row, as regions. All records have a name in the reader's databases."""

    def __init__(self, records: Sequence[ImageRecord], reader: RegionReader) -> None:
        self.records, self.reader = records, reader

    def __len__(self) -> int:
        return len(self.records)

    def lengths(self) -> list[int]:
        """Regions of each image, to sort by."""
        return [self.reader.most_regions(name) for name in region_names(self.records, range(len(self.records)))]

    def make(self, keys: Sequence[int]) -> ImageBatch:
        return image_batch(self.records, keys, regions=padded(self.reader, region_names(self.records, keys)))


class EvaluationTexts(BatchDataset):
    """Captions by row, counted over the split in the records' order."""

    def __init__(self, records: Sequence[ImageRecord], tokenizer: Tokenizer) -> None:
        self.captions = SplitCaptions(records)
        self.tokenizer = tokenizer
        require_ids(self.captions, tokenizer)

    def __len__(self) -> int:
        return len(self.captions)

    def lengths(self) -> Integers:
        """Characters of each caption (token ids where it has those): close enough to its tokens to sort by."""
        characters = np.array([len(text) for texts in self.captions.texts() for text in texts], np.int64)
        counts = self.captions.token_counts()
        return characters if counts is None else np.where(counts < 0, characters, counts)

    def words(self) -> Integers:
        """Tokens of each caption without special ones, before any cut."""
        return words_of(self.captions, self.tokenizer)

    def make(self, keys: Sequence[int]) -> TextBatch:
        images = [self.captions.image_of(row) for row in keys]
        return text_batch([self.captions[row] for row in keys], keys, images, self.tokenizer)
