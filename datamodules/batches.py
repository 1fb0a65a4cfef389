"""From records to batches: which samples form which batch, and the loaders that make them.

Everything random is a pure function of (seed, epoch, sample): `mix` hashes them. So the batches do not depend on the number of
workers or processes, and a run can start in the middle of an epoch. A sampler yields whole batches of keys and a data set
turns one key list into one typed batch (PyTorch's `batch_size=None` mode): no collate function, and nothing for Lightning to
rebuild.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from datamodules.errors import InputError
from datamodules.features import FeatureFile
from datamodules.images import SplitImages
from datamodules.records import Caption, ImageBatch, ImageRecord, PairBatch, Regions, TextBatch
from datamodules.regions import RegionReader
from datamodules.tokens import Tokeniser

TrainUnit = Literal["pair", "image"]

_ORDER, _CAPTION, _PIXELS = 1, 2, 3  # what a random draw is for, so that no two purposes share a stream
_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 63-bit hash of integers by SplitMix64 (Steele, Lea and Flood 2014, figure 17): the seed of one random draw."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


@dataclass(frozen=True, slots=True)
class BatchKeys:
    """The samples of one process's part of a training batch, and the epoch they are drawn in."""

    epoch: int
    samples: tuple[int, ...]


class GlobalBatches(Sampler[BatchKeys]):
    """Training order: one permutation an epoch, cut into global batches, of which each process takes its contiguous slice.

    The last incomplete global batch is dropped. `len()` is the whole epoch's number of batches, also when it starts later.

    Args:
        samples: Number of samples in an epoch.
        batch_size: Samples in one batch over all processes.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.

    Raises:
        InputError: the batch does not divide among the processes, or an epoch has too few samples for one batch.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give at least 1.")
        if batch_size % world_size:
            near = max(world_size, round(batch_size / world_size) * world_size)
            raise InputError(
                f"batch_size {batch_size} counts the pairs of all devices and does not divide by {world_size} devices; "
                f"{near} would."
            )
        if samples < batch_size:
            raise InputError(
                f"an epoch has {samples} training samples, fewer than one batch of {batch_size} (the last incomplete batch is "
                "dropped): lower batch_size or raise limits.train."
            )
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration (Lightning calls this)."""
        self.epoch = epoch

    def order(self, epoch: int, *stream: int) -> Tensor:
        """The epoch's permutation, int64 [samples]; another for each `stream`, where samples are drawn several times."""
        return torch.randperm(self.samples, generator=torch.Generator().manual_seed(mix(self.seed, epoch, _ORDER, *stream)))

    def __len__(self) -> int:
        return self.samples // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        # Not a generator function: Lightning makes the iterator of a resumed run before it calls set_epoch, so epoch and start
        # are those of this call, however late the first batch is fetched.
        return self._batches(self.epoch, self.start)

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        order = self.order(epoch)
        for mine in self.slices(start):
            yield BatchKeys(epoch, tuple(order[mine].tolist()))

    def slices(self, start: int) -> Iterator[slice]:
        """This process's part of each global batch, as places in the order."""
        share = self.batch_size // self.world_size
        for batch in range(start, len(self)):
            first = batch * self.batch_size + self.rank * share
            yield slice(first, first + share)


@dataclass(frozen=True, slots=True)
class _Failure:
    """An `InputError` on its way out of a worker: PyTorch would wrap the message into the worker's traceback."""

    message: str


class BatchDataset(Dataset[Any]):
    """Turns a list of keys into a batch; in a worker, an `InputError` travels as `_Failure`."""

    def make(self, keys: Any) -> Any:
        raise NotImplementedError

    def __getitem__(self, keys: Any) -> Any:
        if get_worker_info() is None:
            return self.make(keys)
        try:
            return self.make(keys)
        except InputError as error:
            return _Failure(str(error))


class BatchLoader(DataLoader[Any]):
    """A DataLoader that raises a worker's `InputError` with its own message, in the process that reads the batches."""

    def __iter__(self) -> Any:
        return _Unwrapped(super().__iter__(), self)

    def _took_batch(self) -> None:
        """Called for each batch handed out."""


class _Unwrapped(Iterator[Any]):
    def __init__(self, batches: Iterator[Any], loader: BatchLoader) -> None:
        self._batches, self._loader = batches, loader

    def __next__(self) -> Any:
        batch = next(self._batches)
        if isinstance(batch, _Failure):
            # Now, while everything is in place: left to the garbage collector, each worker takes five seconds to notice.
            self._batches._shutdown_workers()  # type: ignore[attr-defined]
            self._loader._iterator = None
            raise InputError(batch.message)
        self._loader._took_batch()
        return batch


class TrainLoader(BatchLoader):
    """Training batches that can start in the middle of an epoch.

    It counts the batches it hands out, not those its workers prefetch. `state_dict` is the position of the next batch;
    `load_state_dict` moves there. Lightning sees both methods and so knows that the loader resumes; but it restores a loader
    only when a checkpoint was taken in mid-epoch, and makes the iterator before it sets the epoch, so the data module's own
    `load_state_dict` sets the position first.
    """

    # (batches handed out that the Trainer has not finished, batches it uses of an epoch); set under a Trainer.
    progress: Callable[[], tuple[int, float]] | None = None
    _epoch = 0
    _batch = 0

    @property
    def order(self) -> GlobalBatches:
        assert isinstance(self.sampler, GlobalBatches)
        return self.sampler

    def __iter__(self) -> Any:
        self._epoch, self._batch = self.order.epoch, self.order.start
        batches = super().__iter__()
        # A start counts once. (Not in the sampler: a DataLoader with workers iterates it twice before the first batch.)
        self.order.start = 0
        return batches

    def _took_batch(self) -> None:
        self._batch += 1

    def state_dict(self) -> dict[str, int]:
        """`epoch` and `batch` (global batches already trained on in it) of the next batch."""
        unfinished, length = (0, len(self)) if self.progress is None else self.progress()
        batch = self._batch - unfinished
        if batch >= length:
            return {"epoch": self._epoch + 1, "batch": 0}
        return {"epoch": self._epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.order.epoch, self.order.start = state["epoch"], state["batch"]


class TrainPairs(BatchDataset):
    """Pairs of an image and one of its captions.

    Args:
        records: The training split.
        images: Its pixels.
        tokeniser: Of the network.
        unit: "pair": a sample is a caption, so each caption comes once an epoch; "image": a sample is an image with one
            of its captions, drawn anew each epoch.
        seed: Seed of caption choice and augmentation.
    """

    def __init__(
        self, records: Sequence[ImageRecord], images: SplitImages, tokeniser: Tokeniser, unit: TrainUnit, seed: int
    ) -> None:
        self.records, self.images, self.tokeniser, self.unit, self.seed = records, images, tokeniser, unit, seed
        counts = torch.tensor([len(record.captions) for record in records])
        self.first_caption = (counts.cumsum(0) - counts).tolist()  # the row of each image's first caption in the split
        self.image_of_caption = torch.repeat_interleave(torch.arange(len(records)), counts)
        require_ids(records, tokeniser)

    def __len__(self) -> int:
        return len(self.records) if self.unit == "image" else len(self.image_of_caption)

    def choose(self, epoch: int, sample: int) -> tuple[int, int]:
        """The image row and the caption row of a sample."""
        if self.unit == "pair":
            return int(self.image_of_caption[sample]), sample
        captions = len(self.records[sample].captions)
        return sample, self.first_caption[sample] + mix(self.seed, epoch, _CAPTION, sample) % captions

    def make(self, keys: BatchKeys) -> PairBatch:
        chosen = [self.choose(keys.epoch, sample) for sample in keys.samples]
        seeds = [mix(self.seed, keys.epoch, _PIXELS, sample) for sample in keys.samples]
        image_rows = [image for image, _ in chosen]
        captions = [self.records[image].captions[row - self.first_caption[image]] for image, row in chosen]
        return PairBatch(
            images=image_batch(self.records, image_rows, self.images.pixels(image_rows, seeds)),
            texts=text_batch(captions, [row for _, row in chosen], image_rows, self.tokeniser),
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

    def __init__(self, records: Sequence[ImageRecord], tokeniser: Tokeniser) -> None:
        self.rows = [(image, caption) for image, record in enumerate(records) for caption in record.captions]
        self.tokeniser = tokeniser
        require_ids(records, tokeniser)

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> list[int]:
        """Characters of each caption (token ids where it has those): close enough to its tokens to sort by."""
        return [len(caption.text) if caption.token_ids is None else len(caption.token_ids) for _, caption in self.rows]

    def words(self) -> list[int]:
        """Tokens of each caption without special ones, before any cut."""
        return words_of([caption for _, caption in self.rows], self.tokeniser)

    def make(self, keys: Sequence[int]) -> TextBatch:
        images = [self.rows[row][0] for row in keys]
        return text_batch([self.rows[row][1] for row in keys], keys, images, self.tokeniser)


def require_ids(records: Sequence[ImageRecord], tokeniser: Tokeniser) -> None:
    """Before the first batch: the captions' token ids, if they have any, are the tokeniser's; texts need a tokeniser."""
    largest = [max(caption.token_ids) for record in records for caption in record.captions if caption.token_ids]
    if largest:
        tokeniser.require_ids(max(largest))
    else:
        tokeniser.require_tokenizer()


def words_of(captions: Sequence[Caption], tokeniser: Tokeniser, enough: int = 0) -> list[int]:
    """Tokens of each caption without special ones; of captions whose characters are not more than `enough`, those (no tokeniser
    makes more tokens than bytes)."""
    words = [len(caption.text.encode()) if caption.token_ids is None else len(caption.token_ids) for caption in captions]
    unsure = [row for row, caption in enumerate(captions) if caption.token_ids is None and words[row] > enough]
    for first in range(0, len(unsure), 1000):
        rows = unsure[first : first + 1000]
        for row, ids in zip(rows, tokeniser.ids([captions[row].text for row in rows]), strict=True):
            words[row] = len(ids)
    return words


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
    return image_batch(records, rows, images.pixels(rows, seeds))


def image_batch(
    records: Sequence[ImageRecord],
    rows: Sequence[int],
    pixels_B3HW: Tensor | None = None,
    regions: Regions | None = None,
    tokens_BVD: Tensor | None = None,
) -> ImageBatch:
    """The images at `rows` of a split, with these pixels, regions or visual tokens."""
    chosen = [records[row] for row in rows]
    domains = tuple(record.domain for record in chosen)
    return ImageBatch(
        image_ids=tuple(record.image_id for record in chosen),
        index_B=torch.tensor(rows, dtype=torch.int64),
        pixels_B3HW=pixels_B3HW,
        regions=regions,
        domains=domains if any(domain is not None for domain in domains) else None,
        tokens_BVD=tokens_BVD,
    )


def text_batch(captions: Sequence[Caption], rows: Sequence[int], image_rows: Sequence[int], tokeniser: Tokeniser) -> TextBatch:
    """These captions at `rows` of a split, describing the images at `image_rows`."""
    texts = tuple(caption.text for caption in captions)
    ids = [caption.token_ids for caption in captions if caption.token_ids is not None]
    assert len(ids) in (0, len(captions)), "a split has captions as text or as token ids, not both"
    tokens_BT, mask_BT = tokeniser.from_ids(ids) if ids else tokeniser(texts)
    return TextBatch(
        caption_ids=tuple(caption.caption_id for caption in captions),
        texts=texts,
        index_B=torch.tensor(rows, dtype=torch.int64),
        image_index_B=torch.tensor(image_rows, dtype=torch.int64),
        tokens_BT=tokens_BT,
        mask_BT=mask_BT,
        phrases=tuple(caption.phrases for caption in captions) if any(caption.phrases for caption in captions) else None,
    )


def evaluation_batches(
    rows: int, batch_size: int, rank: int = 0, world_size: int = 1, lengths: Sequence[int] | None = None
) -> list[list[int]]:
    """This process's rows (`rank::world_size`: nothing is padded), as batches of nearly equal size.

    Every process gets the same number of batches, because PyTorch's DDP synchronises buffers in each forward and would wait
    for ever for a process that has no more. (Impossible only where a process has fewer rows than batches: then it has fewer.)
    `lengths`, one a row, sorts the rows so that a batch needs little padding.
    """
    mine = list(range(rank, rows, world_size))
    if lengths is not None:
        mine.sort(key=lambda row: lengths[row])
    most = -(-rows // world_size)
    batches = min(-(-most // batch_size), len(mine))
    edges = [len(mine) * batch // batches for batch in range(batches + 1)] if batches else [0]
    return [mine[start:stop] for start, stop in pairwise(edges)]
