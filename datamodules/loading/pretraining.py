"""Batches of masked pre-training on pairs of captions and regions: words are hidden, or regions, or images are exchanged.

Released code: ChenRocks/UNITER `data/mlm.py`, `data/mrm.py`, `data/itm.py`, `data/loader.py`. A batch is of one task, drawn by
the tasks' ratios, and only one thing is corrupted in it: words are guessed beside all regions, regions beside all words
("conditional masking"). There each task goes through all captions in an order of its own; here one order is shared out among the
tasks, so that a sample comes once an epoch. What is hidden is a function of (seed, epoch, sample) alone, the task one of (seed,
epoch, batch).

Legend: B pairs, T tokens, R regions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from datamodules.errors import InputError
from datamodules.inputs import Inputs
from datamodules.loading.collate import image_batch, region_names, require_ids, text_batch, words_of
from datamodules.loading.loader import BatchDataset
from datamodules.loading.order import CAPTION, GlobalBatches, evaluation_batches, mix
from datamodules.loading.pairs import TrainUnit
from datamodules.loading.region_files import RegionReader
from datamodules.loading.regions import padded
from datamodules.loading.split_captions import SplitCaptions
from datamodules.loading.splits import Splits
from datamodules.loading.task import Batching, BatchRows, Split, Task
from datamodules.loading.tokens import Tokenizer
from datamodules.records import ImageRecord, MaskedBatch

Hides = Literal["words", "regions", "images"]

_TASK, _WORDS, _REGIONS, _EXCHANGE = 8, 9, 10, 11  # what the draws are for: 1 to 7 are those of order.py, ranking.py, captions.py
_AS_MASK, _AS_OTHER = 0.8, 0.9  # of the words that are hidden: up to here [MASK], up to there another word, and the rest stays


@dataclass(frozen=True)
class MaskedTask:
    """A task of pre-training, as far as the data go.

    Args:
        hides: What is corrupted. "words": 80 % of those that are drawn become [MASK], 10 % another word, 10 % stay. "regions":
            the features of those that are drawn. "images": the image of some captions is exchanged for another one.
        ratio: How often the task is drawn, beside the other tasks' ratios.
    """

    hides: Hides
    ratio: int = 1

    def __post_init__(self) -> None:
        if self.ratio < 1:
            raise InputError(f"a pre-training task has ratio {self.ratio}; give at least 1, or leave the task out.")


RELEASED = {"itm": MaskedTask("images", 2), "mlm": MaskedTask("words", 2), "mrfr": MaskedTask("regions", 1)}
"""UNITER's tasks and ratios, without that of region classes (mrckl, ratio 1), which needs databases that have them."""


@dataclass(frozen=True)
class Pretraining:
    """What is hidden in pre-training, and how often. The defaults are UNITER's.

    Args:
        tasks: By the names of the model's `objectives`, each with what it hides and its ratio. Null: itm (images, 2), mlm (words,
            2), mrfr (regions, 1).
        probability: Of each word, or region, to be hidden. At least one is: the first word, or any region.
        exchanged: Probability of each caption to get another image in a task that exchanges them.
        consecutive: Batches in a row that are of one task; with `trainer.accumulate_grad_batches` give that number, as released.
        max_words: Leave out captions of more word pieces than these (special ones not counted) in training; null keeps all.
    """

    tasks: dict[str, MaskedTask] | None = None
    probability: float = 0.15
    exchanged: float = 0.5
    consecutive: int = 1
    max_words: int | None = 60

    def __post_init__(self) -> None:
        if not self.mixture:
            raise InputError("pretraining.tasks is empty; give at least one, for example {mlm: {hides: words}}.")
        for name, share in (("probability", self.probability), ("exchanged", self.exchanged)):
            if not 0 < share < 1:
                raise InputError(f"pretraining.{name} is {share}; give a number between 0 and 1.")
        for name, value in (("consecutive", self.consecutive), ("max_words", self.max_words)):
            if value is not None and value < 1:
                raise InputError(f"pretraining.{name} is {value}; give at least 1.")

    @property
    def mixture(self) -> dict[str, MaskedTask]:
        """The tasks."""
        return RELEASED if self.tasks is None else self.tasks

    def task_of(self, seed: int, epoch: int, batch: int) -> str:
        """The task of a batch of an epoch: the same on every process."""
        pool = [name for name, task in self.mixture.items() for _ in range(task.ratio)]
        return pool[mix(seed, epoch, _TASK, batch // self.consecutive) % len(pool)]


class RegionPretraining(Task):
    """`MaskedBatch` to train on; to evaluate on, each task's batches over all captions, always hidden alike.

    Args:
        splits: What networks that take regions see of the data set; it has a `reader`.
        pretraining: What is hidden.
        unit: "pair": a sample is a caption; "image": an image with one of its captions, drawn anew each epoch.
    """

    def __init__(self, splits: Splits, pretraining: Pretraining, unit: TrainUnit) -> None:
        super().__init__(splits)
        self.pretraining, self.unit = pretraining, unit
        self._classes: int | None = None

    @property
    def reader(self) -> RegionReader:
        """The region features of the data set's images."""
        untyped: Any = self.splits
        reader: RegionReader = untyped.reader
        return reader

    def takes(self, inputs: Inputs | None) -> bool:
        return inputs is not None and inputs.masked and inputs.regions is not None and inputs.text is not None

    def connect(self, inputs: Inputs) -> None:
        assert inputs.regions is not None
        assert inputs.text is not None
        self.reader.require_width(inputs.regions.feature_width)
        self.tokenizer = Tokenizer(inputs.text, self.splits.file_ids)
        self._classes = inputs.regions.classes
        if any(task.hides == "words" for task in self.pretraining.mixture.values()):
            self.tokenizer.require_mask()

    def training(self, split: Split, batching: Batching) -> tuple[BatchDataset, GlobalBatches]:
        samples = MaskedPairs(
            split.records, self.reader, self.tokenizer, self.pretraining, self.unit, batching.seed, self._classes
        )
        order = PretrainingBatches(
            self.pretraining, len(samples), batching.size, batching.seed, batching.rank, batching.world_size
        )
        return samples, order

    def evaluation(self, split: Split, batching: Batching) -> list[tuple[BatchDataset, BatchRows]]:
        parts: list[tuple[BatchDataset, BatchRows]] = []
        for name in self.pretraining.mixture:
            pairs = EvaluationPairs(split.records, self.reader, self.tokenizer, self.pretraining, name, self._classes)
            parts.append((pairs, evaluation_batches(len(pairs), *batching.share, lengths=pairs.lengths())))
        return parts

    def order_options(self, batching: Batching) -> dict[str, Any]:
        options = {f"pretraining.{name}": value for name, value in asdict(self.pretraining).items()}
        return {**options, "train_unit": self.unit}


@dataclass(frozen=True, slots=True)
class PretrainingKeys:
    """The samples of one process's part of a training batch, the epoch that they are drawn in, and their task."""

    epoch: int
    task: str
    samples: tuple[int, ...]


class PretrainingBatches(GlobalBatches):
    """`GlobalBatches` of one task each.

    Args:
        pretraining: The tasks.
        rest: See `GlobalBatches`.
    """

    def __init__(self, pretraining: Pretraining, *rest: int) -> None:
        super().__init__(*rest)
        self.pretraining = pretraining

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        order = self.order(epoch)
        for batch, mine in enumerate(self.slices(start), start):
            yield PretrainingKeys(epoch, self.pretraining.task_of(self.seed, epoch, batch), tuple(order[mine].tolist()))


class MaskedPairs(BatchDataset):
    """Pairs of a caption and an image in which something is hidden.

    Args:
        records: The split; all have a name in the reader's databases.
        reader: Of the regions.
        tokenizer: Of the network.
        pretraining: What is hidden.
        unit: See `RegionPretraining`.
        seed: Of all draws.
        classes: Region classes whose probabilities the network wants; None: none.

    Raises:
        InputError: Images are to be exchanged, and there is only one.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        reader: RegionReader,
        tokenizer: Tokenizer,
        pretraining: Pretraining,
        unit: TrainUnit,
        seed: int,
        classes: int | None = None,
    ) -> None:
        self.records, self.reader, self.tokenizer, self.pretraining = records, reader, tokenizer, pretraining
        self.unit, self.seed, self.classes = unit, seed, classes
        if len(records) < 2 and any(task.hides == "images" for task in pretraining.mixture.values()):
            raise InputError("a pre-training task exchanges images, and the split has only one: take more (limits).")
        self.captions = SplitCaptions(records)
        require_ids(self.captions, tokenizer)
        self._kept: npt.NDArray[np.int64] | None = None  # caption rows, where a sample is a caption
        if unit == "pair":
            self._kept = np.arange(len(self.captions))
            if pretraining.max_words is not None:
                words = words_of(self.captions, tokenizer, enough=pretraining.max_words)
                self._kept = np.flatnonzero(words <= pretraining.max_words)

    def __len__(self) -> int:
        return len(self.records) if self._kept is None else len(self._kept)

    def choose(self, epoch: int, sample: int) -> tuple[int, int]:
        """The image row and the caption row of a sample. An image whose captions are all too long has the one that is drawn."""
        if self._kept is not None:
            row = int(self._kept[sample])
            return self.captions.image_of(row), row
        captions, first = self.records[sample].captions, int(self.captions.first[sample])
        drawn = mix(self.seed, epoch, CAPTION, sample) % len(captions)
        for step in range(len(captions)):
            place = (drawn + step) % len(captions)
            most = self.pretraining.max_words
            if most is None or words_of([captions[place]], self.tokenizer, enough=most)[0] <= most:
                return sample, first + place
        return sample, first + drawn

    def make(self, keys: Any) -> MaskedBatch:
        """Of `PretrainingKeys`."""
        chosen = [self.choose(keys.epoch, sample) for sample in keys.samples]
        draws = [(keys.epoch, sample) for sample in keys.samples]
        return self._masked(keys.task, [image for image, _ in chosen], [row for _, row in chosen], draws)

    def _masked(self, task: str, images: list[int], rows: list[int], draws: list[tuple[int, int]]) -> MaskedBatch:
        """The pairs of these rows; `draws` are the epoch and sample that each one's draws are a function of."""
        hides = self.pretraining.mixture[task].hides
        shown, matched_B = images, None
        if hides == "images":
            pairs = [self.exchange(image, *draw) for image, draw in zip(images, draws, strict=True)]
            shown, matched_B = [image for image, _ in pairs], torch.tensor([same for _, same in pairs])
        texts = text_batch([self.captions[row] for row in rows], rows, images, self.tokenizer)
        wants_classes = self.classes if hides == "regions" else None
        regions = padded(self.reader, region_names(self.records, shown), wants_classes)
        batch = MaskedBatch(image_batch(self.records, shown, regions=regions), texts, task, matched_B=matched_B)
        if hides == "words":
            return self._with_hidden_words(batch, draws)
        if hides == "regions":
            hidden_BR = torch.zeros_like(regions.mask_BR)
            for row, (count, draw) in enumerate(zip(regions.mask_BR.sum(1).tolist(), draws, strict=True)):
                hidden_BR[row, :count] = torch.from_numpy(self.hidden_regions(count, *draw))
            return batch.replaced(hidden_BR=hidden_BR)
        return batch

    def _with_hidden_words(self, batch: MaskedBatch, draws: list[tuple[int, int]]) -> MaskedBatch:
        tokens_BT = batch.texts.tokens_BT.clone()
        labels_BT = torch.full_like(tokens_BT, -1)
        for row, draw in enumerate(draws):
            words = int(batch.texts.mask_BT[row].sum()) - 2  # between the token that begins and the one that ends
            ids = tokens_BT[row, 1 : words + 1].numpy()
            read, labels = self.hide_words(ids, *draw)
            labels_BT[row, 1 : words + 1] = torch.from_numpy(labels)
            tokens_BT[row, 1 : words + 1] = torch.from_numpy(read)
        return batch.replaced(texts=batch.texts.with_tokens(tokens_BT), labels_BT=labels_BT)

    def hide_words(
        self, ids: npt.NDArray[np.int64], epoch: int, sample: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What the network reads in place of these ids, and the ids that it is to guess, -1 where it is not."""
        generator = np.random.default_rng(mix(self.seed, epoch, _WORDS, sample))
        share = generator.random(len(ids)) / self.pretraining.probability  # below 1: hidden; where below 1 says how
        others = self.tokenizer.word_ids[generator.integers(len(self.tokenizer.word_ids), size=len(ids))]
        hidden = share < 1
        if len(ids) and not hidden.any():
            hidden[0], share[0] = True, 0.0  # as released: the first, and always as [MASK]
        read = np.where(share < _AS_MASK, self.tokenizer.mask_id, np.where(share < _AS_OTHER, others, ids))
        return np.where(hidden, read, ids), np.where(hidden, ids, -1)

    def hidden_regions(self, count: int, epoch: int, sample: int) -> npt.NDArray[np.bool_]:
        """Which of an image's regions are hidden [count]."""
        generator = np.random.default_rng(mix(self.seed, epoch, _REGIONS, sample))
        hidden = generator.random(count) < self.pretraining.probability
        if not hidden.any():
            hidden[generator.integers(count)] = True
        return hidden

    def exchange(self, image: int, epoch: int, sample: int) -> tuple[int, bool]:
        """The image that a caption is shown with, and whether it is its own."""
        generator = np.random.default_rng(mix(self.seed, epoch, _EXCHANGE, sample))
        if generator.random() >= self.pretraining.exchanged:
            return image, True
        other = int(generator.integers(len(self.records) - 1))
        return other + (other >= image), False


class EvaluationPairs(MaskedPairs):
    """All captions of a split in one task. What is hidden depends on nothing but the caption's row: every validation of every run
    sees the same.

    Args:
        task: Its name.
        given: The others are those of `MaskedPairs`.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        reader: RegionReader,
        tokenizer: Tokenizer,
        pretraining: Pretraining,
        task: str,
        classes: int | None,
    ) -> None:
        super().__init__(records, reader, tokenizer, pretraining, "image", 0, classes)
        self.task = task
        self.image_of_caption = self.captions.images()

    def __len__(self) -> int:
        return len(self.image_of_caption)

    def lengths(self) -> list[int]:
        """Regions of each caption's image, to sort by."""
        names = region_names(self.records, range(len(self.records)))
        counts = [self.reader.most_regions(name) for name in names]
        return [counts[image] for image in self.image_of_caption]

    def make(self, keys: Any) -> MaskedBatch:
        """Of these rows of captions."""
        images = [int(self.image_of_caption[row]) for row in keys]
        return self._masked(self.task, images, list(keys), [(0, row) for row in keys])
