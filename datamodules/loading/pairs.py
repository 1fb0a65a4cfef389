"""Pairs of pixels and text: for networks that compare an image with a caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from datamodules.inputs import Inputs
from datamodules.loading.collate import require_ids, shown_batch, text_batch
from datamodules.loading.evaluation import EvaluationImages, EvaluationTexts
from datamodules.loading.images import Augmentation, SplitImages
from datamodules.loading.loader import BatchDataset
from datamodules.loading.order import CAPTION, PIXELS, BatchKeys, GlobalBatches, evaluation_batches, mix
from datamodules.loading.split_captions import SplitCaptions
from datamodules.loading.splits import Splits
from datamodules.loading.task import Batching, BatchRows, PixelTask, Split
from datamodules.loading.tokens import Tokenizer
from datamodules.records import ImageRecord, PairBatch

TrainUnit = Literal["pair", "image"]


class Pairs(PixelTask):
    """`PairBatch` to train on; images once and captions once, sorted by length, to evaluate on.

    Args:
        splits: What the networks see of the data set.
        augmentation: Of training images.
        cache: Keep resized images in memory.
        unit: See `TrainPairs`.
    """

    def __init__(self, splits: Splits, augmentation: Augmentation, cache: bool, unit: TrainUnit) -> None:
        super().__init__(splits, augmentation, cache)
        self.unit = unit

    def takes(self, inputs: Inputs | None) -> bool:
        return inputs is None or (
            inputs.image is not None and inputs.text is not None and not inputs.captions and not inputs.ranking
        )

    def connect(self, inputs: Inputs) -> None:
        super().connect(inputs)
        assert inputs.text is not None
        self.tokenizer = Tokenizer(inputs.text, self.splits.file_ids)

    def training(self, split: Split, batching: Batching) -> tuple[BatchDataset, GlobalBatches]:
        images = self.pixels.training(split.name, split.records)
        pairs = TrainPairs(split.records, images, self.tokenizer, self.unit, batching.seed)
        return pairs, GlobalBatches(len(pairs), batching.size, batching.seed, batching.rank, batching.world_size)

    def evaluation(self, split: Split, batching: Batching) -> list[tuple[BatchDataset, BatchRows]]:
        texts = EvaluationTexts(split.records, self.tokenizer)
        images = EvaluationImages(split.records, self.pixels.evaluation(split.name, split.records))
        return [
            (images, evaluation_batches(len(images), *batching.share)),
            (texts, evaluation_batches(len(texts), *batching.share, lengths=texts.lengths())),
        ]

    def order_options(self, batching: Batching) -> dict[str, Any]:
        return {"train_unit": self.unit}


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
        self.captions = SplitCaptions(records)
        require_ids(self.captions, tokenizer)

    def __len__(self) -> int:
        return len(self.records) if self.unit == "image" else len(self.captions)

    def choose(self, epoch: int, sample: int) -> tuple[int, int]:
        """The image row and the caption row of a sample."""
        if self.unit == "pair":
            return self.captions.image_of(sample), sample
        first, last = self.captions.first[sample : sample + 2].tolist()
        return sample, first + mix(self.seed, epoch, CAPTION, sample) % (last - first)

    def make(self, keys: BatchKeys) -> PairBatch:
        chosen = [self.choose(keys.epoch, sample) for sample in keys.samples]
        seeds = [mix(self.seed, keys.epoch, PIXELS, sample) for sample in keys.samples]
        image_rows = [image for image, _ in chosen]
        captions = [self.captions[row] for _, row in chosen]
        return PairBatch(
            images=shown_batch(self.records, self.images, image_rows, seeds),
            texts=text_batch(captions, [row for _, row in chosen], image_rows, self.tokenizer),
        )
