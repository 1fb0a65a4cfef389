"""From records to batches: which samples form which batch, and the loaders that make them.

Everything random is a pure function of (seed, epoch, sample): `mix` hashes them. So the batches do not depend on the number of
workers or processes, and a run can start in the middle of an epoch. A sampler yields whole batches of keys and a data set
turns one key list into one typed batch (PyTorch's `batch_size=None` mode): no collate function, and nothing for Lightning to
rebuild.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from datamodules.loading.collate import (
    image_batch,
    region_names,
    require_ids,
    shown_batch,
    text_batch,
    words_of,
)
from datamodules.loading.features import FeatureFile
from datamodules.loading.images import SplitImages
from datamodules.loading.loader import BatchDataset
from datamodules.loading.order import CAPTION, PIXELS, BatchKeys, mix
from datamodules.loading.regions import RegionReader
from datamodules.loading.tokens import Tokenizer
from datamodules.records import ImageBatch, ImageRecord, PairBatch, TextBatch

TrainUnit = Literal["pair", "image"]


class TrainPairs(BatchDataset):
    """Pairs of an image and one of its captions.

    Args:
        records: The training split.
        images: Its pixels.
        tokenizer: Of the network.
        unit: "pair": a sample is a caption, so each caption comes once an epoch; "image": a sample is an image with one
            of its captions, drawn anew each epoch.
        seed: Seed of caption choice and augmentation.
    """

    def __init__(
        self, records: Sequence[ImageRecord], images: SplitImages, tokenizer: Tokenizer, unit: TrainUnit, seed: int
    ) -> None:
        self.records, self.images, self.tokenizer, self.unit, self.seed = records, images, tokenizer, unit, seed
        counts = torch.tensor([len(record.captions) for record in records])
        self.first_caption = (counts.cumsum(0) - counts).tolist()  # the row of each image's first caption in the split
        self.image_of_caption = torch.repeat_interleave(torch.arange(len(records)), counts)
        require_ids(records, tokenizer)

    def __len__(self) -> int:
        return len(self.records) if self.unit == "image" else len(self.image_of_caption)

    def choose(self, epoch: int, sample: int) -> tuple[int, int]:
        """The image row and the caption row of a sample."""
        if self.unit == "pair":
            return int(self.image_of_caption[sample]), sample
        captions = len(self.records[sample].captions)
        return sample, self.first_caption[sample] + mix(self.seed, epoch, CAPTION, sample) % captions

    def make(self, keys: BatchKeys) -> PairBatch:
        chosen = [self.choose(keys.epoch, sample) for sample in keys.samples]
        seeds = [mix(self.seed, keys.epoch, PIXELS, sample) for sample in keys.samples]
        image_rows = [image for image, _ in chosen]
        captions = [self.records[image].captions[row - self.first_caption[image]] for image, row in chosen]
        return PairBatch(
            images=image_batch(self.records, image_rows, self.images.pixels(image_rows, seeds)),
            texts=text_batch(captions, [row for _, row in chosen], image_rows, self.tokenizer),
        )


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
        return image_batch(self.records, keys, regions=self.reader.regions(region_names(self.records, keys)))


class EvaluationTexts(BatchDataset):
    """Captions by row, counted over the split in the records' order."""

    def __init__(self, records: Sequence[ImageRecord], tokenizer: Tokenizer) -> None:
        self.rows = [(image, caption) for image, record in enumerate(records) for caption in record.captions]
        self.tokenizer = tokenizer
        require_ids(records, tokenizer)

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> list[int]:
        """Characters of each caption (token ids where it has those): close enough to its tokens to sort by."""
        return [len(caption.text) if caption.token_ids is None else len(caption.token_ids) for _, caption in self.rows]

    def words(self) -> list[int]:
        """Tokens of each caption without special ones, before any cut."""
        return words_of([caption for _, caption in self.rows], self.tokenizer)

    def make(self, keys: Sequence[int]) -> TextBatch:
        images = [self.rows[row][0] for row in keys]
        return text_batch([self.rows[row][1] for row in keys], keys, images, self.tokenizer)
