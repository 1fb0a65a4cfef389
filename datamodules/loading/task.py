"""What networks of one kind are fed from a data set: the contract of the tasks in pairs.py, ranking.py and captions.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.inputs import Inputs
from datamodules.loading.collate import cut_of
from datamodules.loading.evaluation import EvaluationImages
from datamodules.loading.images import Augmentation, Pixels, SplitImages
from datamodules.loading.loader import BatchDataset
from datamodules.loading.order import GlobalBatches
from datamodules.loading.split_captions import SplitCaptions
from datamodules.loading.splits import Splits
from datamodules.loading.tokens import Tokenizer
from datamodules.records import ImageRecord

BatchRows = list[list[int]]
"""The rows of each batch of an evaluation, on this process."""


@dataclass(frozen=True)
class Split:
    """A split after limits: its name among train, val and test, what messages call it, and its records."""

    name: str
    label: str
    records: Sequence[ImageRecord]


@dataclass(frozen=True)
class Batching:
    """How many samples come together, and which are this process's.

    Args:
        size: Of a training batch over all processes.
        evaluation_size: Of an evaluation batch of one process.
        seed: Of everything random.
        rank: This process.
        world_size: Number of processes.
    """

    size: int
    evaluation_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def share(self) -> tuple[int, int, int]:
        """What `evaluation_batches` takes after the number of rows."""
        return self.evaluation_size, self.rank, self.world_size


class Task(ABC):
    """Batches of one data set for the networks that it takes. It is made with the data module, which asks it for batches after
    `connect`.

    Args:
        splits: What such networks see of the data set.
    """

    tokenizer: Tokenizer
    """Of the network, after `connect`."""

    def __init__(self, splits: Splits) -> None:
        self.splits = splits

    @abstractmethod
    def takes(self, inputs: Inputs | None) -> bool:
        """Whether the batches are for a network that wants these; None: no network is known yet, only the options."""

    @abstractmethod
    def connect(self, inputs: Inputs) -> None:
        """Take a network's transform and tokenizer, in place of those of the one before.

        Raises:
            InputError: they do not fit the data.
        """

    @abstractmethod
    def training(self, split: Split, batching: Batching) -> tuple[BatchDataset, GlobalBatches]:
        """What makes the batches of training, and which samples are in each.

        Raises:
            InputError: there are too few of them, or they do not fit the network.
        """

    @abstractmethod
    def evaluation(self, split: Split, batching: Batching) -> list[tuple[BatchDataset, BatchRows]]:
        """What makes the batches of each loader of an evaluation, and the rows in each: images, each once, first."""

    @abstractmethod
    def order_options(self, batching: Batching) -> dict[str, Any]:
        """The task's own options that decide what is in the rest of an epoch."""

    def cut_captions(self, split: Split, batching: Batching) -> int:
        """How many texts of a split the network's max_tokens cuts."""
        return cut_of(SplitCaptions(split.records), self.tokenizer)

    def unknown_words(self, split: Split) -> dict[str, int]:
        """Words of the texts of a split that the network's tokenizer does not know, and how often they come."""
        captions = SplitCaptions(split.records)
        counts, texts = captions.token_counts(), (text for texts in captions.texts() for text in texts)
        return self.tokenizer.unknown_words(texts if counts is None else compress(texts, counts < 0))

    def foresee(self, split: Callable[[str], Split]) -> None:  # noqa: B027 - most tests bring nothing new
        """Before a fit begins: raise what would come up only in the test behind it."""

    # --------------------------------------------------------------------------------------------- images and their features

    def images(self, records: Sequence[ImageRecord]) -> EvaluationImages:
        """Images by row, as pixels of the network's evaluation transform; nothing is kept in memory.

        Raises:
            InputError: the network takes no pixels.
        """
        raise InputError("the network takes region features; there are no pixels to show it.")

    def require_fixed_images(self) -> None:  # noqa: B027 - regions are fixed
        """See that training images look the same each time, so that features of them can be kept.

        Raises:
            InputError: they do not.
        """

    def use_features(self, folders: Mapping[str, Path], split: Callable[[str], Split]) -> None:
        """See `ImageTextDataModule.use_features`."""
        raise InputError("visual features in place of pixels are for networks that write captions.")


class PixelTask(Task):
    """A task of networks that take pixels.

    Args:
        splits: What such networks see of the data set.
        augmentation: Of training images.
        cache: Keep resized images in memory, see `SplitImages`.
    """

    def __init__(self, splits: Splits, augmentation: Augmentation, cache: bool) -> None:
        super().__init__(splits)
        self.augmentation, self.cache = augmentation, cache

    def connect(self, inputs: Inputs) -> None:
        assert inputs.image is not None
        self.pixels = Pixels(inputs.image, self.augmentation, self.cache)

    def images(self, records: Sequence[ImageRecord]) -> EvaluationImages:
        return EvaluationImages(records, SplitImages(records, self.pixels.spec))

    def require_fixed_images(self) -> None:
        if self.augmentation.kind != "none":
            raise InputError(
                f"augment is {self.augmentation.kind}, and a random crop has no visual features that could be kept: set the "
                "data's augment to none, or the model's features to null."
            )
