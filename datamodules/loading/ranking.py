"""Training batches for margin ranking with hard negatives: positive pairs, each with random candidates to mine from.

Released code: ItmRankDatasetHardNegFromText and ...FromImage of ChenRocks/UNITER data/itm.py. There a positive and its candidates
are one sample; here a batch has every image and caption once, and `Candidates` are rows into it. Two separate data sets of COCO
(train and restval) whose negatives never meet are not rebuilt: all of the training split is one pool.

Legend: P positives, N candidates of each, X a positive and its candidates (1 + N).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from datamodules.errors import InputError
from datamodules.formats.columns import Integers as Rows
from datamodules.inputs import Inputs
from datamodules.loading.collate import image_batch, region_names, require_ids, shown_batch, text_batch, words_of
from datamodules.loading.evaluation import EvaluationImages, EvaluationRegions, EvaluationTexts
from datamodules.loading.images import Augmentation, SplitImages
from datamodules.loading.loader import BatchDataset
from datamodules.loading.order import PIXELS, GlobalBatches, evaluation_batches, mix
from datamodules.loading.region_files import RegionReader
from datamodules.loading.regions import padded
from datamodules.loading.split_captions import SplitCaptions
from datamodules.loading.splits import RegionSplits, Splits
from datamodules.loading.task import Batching, BatchRows, PixelTask, Split, Task
from datamodules.loading.tokens import Tokenizer
from datamodules.records import Candidates, ImageBatch, ImageRecord, RankingBatch

_CANDIDATES = 4  # what the draws are for: 1 to 3 are those of order.py
_TEXTS, _IMAGES = 0, 1  # the sides, as streams of random numbers


@dataclass(frozen=True)
class Ranking:
    """What a training batch of positives and candidates for hard negatives consists of.

    Args:
        candidates: Random candidates for each positive, of which the network keeps the hardest (released: 399). They are drawn
            without repetition, anew in each epoch, and never describe, or show, what the positive does.
        sides: "both" draws positives twice, in independent orders: images with candidate captions (hard texts) and captions with
            candidate images (hard images); or only one of the two.
        caption_pool: "all" draws candidate captions from the whole training split, so that any number of processes sees the same
            batches; "rank" from every world-size-th caption, as the released code does: this process's shard. Images are always
            drawn from all.
        max_words: Leave out captions of more word pieces than these (special ones not counted) in training; null keeps all.
            Evaluation always keeps all.
    """

    candidates: int = 399
    sides: Literal["both", "hard_texts", "hard_images"] = "both"
    caption_pool: Literal["all", "rank"] = "all"
    max_words: int | None = 60

    def __post_init__(self) -> None:
        for name, value in (("candidates", self.candidates), ("max_words", self.max_words)):
            if value is not None and value < 1:
                raise InputError(f"ranking.{name} is {value}; give at least 1.")


class RegionRanking(Task):
    """`RankingBatch` to train on; images by their number of regions and captions by their number of tokens to evaluate on.

    Args:
        splits: What networks that take regions see of the data set.
        ranking: What a training batch consists of.
    """

    splits: RegionSplits

    def __init__(self, splits: RegionSplits, ranking: Ranking) -> None:
        super().__init__(splits)
        self.ranking = ranking

    @property
    def reader(self) -> RegionReader:
        """The region features of the data set's images.

        Raises:
            InputError: the option `regions` is not set, or a database is missing or damaged.
        """
        return self.splits.reader

    def takes(self, inputs: Inputs | None) -> bool:
        if inputs is None:
            return self.splits.is_set
        wants_pairs = inputs.text is not None and not (inputs.captions or inputs.masked)
        return inputs.image is None and inputs.regions is not None and wants_pairs

    def connect(self, inputs: Inputs) -> None:
        assert inputs.regions is not None
        assert inputs.text is not None
        self.reader.require_width(inputs.regions.feature_width)
        self.tokenizer = Tokenizer(inputs.text, self.splits.file_ids)

    def training(self, split: Split, batching: Batching) -> tuple[BatchDataset, GlobalBatches]:
        place = (batching.seed, batching.rank, batching.world_size)
        samples = TrainRanking(split.records, self.reader, self.tokenizer, self.ranking, *place)
        return samples, RankingBatches(self.ranking.sides, len(samples), batching.size, *place)

    def evaluation(self, split: Split, batching: Batching) -> list[tuple[BatchDataset, BatchRows]]:
        texts = EvaluationTexts(split.records, self.tokenizer)
        images = EvaluationRegions(split.records, self.reader)
        return [
            (images, evaluation_batches(len(images), *batching.share, lengths=images.lengths())),
            (texts, evaluation_batches(len(texts), *batching.share, lengths=_words(split, texts))),
        ]

    def order_options(self, batching: Batching) -> dict[str, Any]:
        return _order_options(self.ranking, batching)


class PixelRanking(PixelTask):
    """As `RegionRanking`, of pixels: for networks that look at patches and a caption together.

    Args:
        splits: What networks that take pixels see of the data set.
        augmentation: Of training images. An image of a batch looks the same in all of its pairs.
        cache: Keep resized images in memory.
        ranking: What a training batch consists of.
    """

    def __init__(self, splits: Splits, augmentation: Augmentation, cache: bool, ranking: Ranking) -> None:
        super().__init__(splits, augmentation, cache)
        self.ranking = ranking

    def takes(self, inputs: Inputs | None) -> bool:
        return inputs is not None and inputs.ranking and inputs.image is not None and inputs.text is not None

    def connect(self, inputs: Inputs) -> None:
        super().connect(inputs)
        assert inputs.text is not None
        self.tokenizer = Tokenizer(inputs.text, self.splits.file_ids)

    def training(self, split: Split, batching: Batching) -> tuple[BatchDataset, GlobalBatches]:
        place = (batching.seed, batching.rank, batching.world_size)
        images = self.pixels.training(split.name, split.records)
        samples = TrainRanking(split.records, images, self.tokenizer, self.ranking, *place)
        return samples, RankingBatches(self.ranking.sides, len(samples), batching.size, *place)

    def evaluation(self, split: Split, batching: Batching) -> list[tuple[BatchDataset, BatchRows]]:
        texts = EvaluationTexts(split.records, self.tokenizer)
        images = EvaluationImages(split.records, self.pixels.evaluation(split.name, split.records))
        return [
            (images, evaluation_batches(len(images), *batching.share)),
            (texts, evaluation_batches(len(texts), *batching.share, lengths=_words(split, texts))),
        ]

    def order_options(self, batching: Batching) -> dict[str, Any]:
        return _order_options(self.ranking, batching)


def _words(split: Split, texts: EvaluationTexts) -> Rows:
    """Tokens of each caption; says so if some are cut, which may change a result."""
    words, tokenizer = texts.words(), texts.tokenizer
    if cut := int((words > tokenizer.room).sum()):
        warnings.warn(
            f"{split.label}: {cut:,} of {len(words):,} captions have more than the network's max_tokens "
            f"{tokenizer.max_tokens} and are cut.",
            stacklevel=3,
        )
    return words


def _order_options(ranking: Ranking, batching: Batching) -> dict[str, Any]:
    options = {f"ranking.{name}": value for name, value in asdict(ranking).items()}
    return options | ({"world_size": batching.world_size} if ranking.caption_pool == "rank" else {})


@dataclass(frozen=True, slots=True)
class RankingKeys:
    """The positives of one process's part of a training batch, as samples; None: the side is not trained."""

    epoch: int
    hard_texts: tuple[int, ...] | None
    hard_images: tuple[int, ...] | None


class RankingBatches(GlobalBatches):
    """`GlobalBatches` with an order of its own for each side; `batch_size` counts the positives of one side.

    Args:
        sides: See `Ranking`.
        samples: As the others, of `GlobalBatches`.
    """

    def __init__(self, sides: str, samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(samples, batch_size, seed, rank, world_size)
        self.sides = sides

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        texts = self.order(epoch, _TEXTS) if self.sides != "hard_images" else None
        images = self.order(epoch, _IMAGES) if self.sides != "hard_texts" else None
        for mine in self.slices(start):
            of_sides = (None if order is None else tuple(order[mine].tolist()) for order in (texts, images))
            yield RankingKeys(epoch, *of_sides)


class TrainRanking(BatchDataset):
    """Positives with candidates. A sample is a caption of the training split that is short enough, with its image.

    Args:
        records: The training split; where images are regions, all have a name in the reader's databases.
        images: What they are shown as: regions of databases, or pixels.
        tokenizer: Of the network.
        ranking: Candidates, pools and the longest caption.
        seed: Seed of the candidates.
        rank: This process, for the pool "rank".
        world_size: Number of processes.

    Raises:
        InputError: a pool has too few candidates.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        images: RegionReader | SplitImages,
        tokenizer: Tokenizer,
        ranking: Ranking,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.records, self.images, self.tokenizer, self.ranking, self.seed = records, images, tokenizer, ranking, seed
        self.captions = SplitCaptions(records)
        self.image_of_caption = self.captions.images()
        require_ids(self.captions, tokenizer)
        self.kept: Rows = np.arange(len(self.captions))
        if ranking.max_words is not None:
            self.kept = np.flatnonzero(words_of(self.captions, tokenizer, enough=ranking.max_words) <= ranking.max_words)
        self.pool = self.kept[rank::world_size] if ranking.caption_pool == "rank" else self.kept
        self._require_candidates()

    def _require_candidates(self) -> None:
        of_one = np.bincount(self.image_of_caption[self.pool], minlength=1).max() if len(self.pool) else 0
        sizes = {
            "hard_texts": (len(self.pool) - int(of_one), f"captions (a pool of {len(self.pool)}, up to {of_one} of one image)"),
            "hard_images": (len(self.records) - 1, "other images"),
        }
        for side, (size, what) in sizes.items():
            if self.ranking.sides in ("both", side) and size < self.ranking.candidates:
                raise InputError(
                    f"ranking.candidates is {self.ranking.candidates}, but a training sample has only {size} candidate {what}: "
                    f"set ranking.candidates to at most {max(size, 1)}, or train on more images (limits.train)."
                )

    def __len__(self) -> int:
        return len(self.kept)

    def _draw(self, among: int, *key: int) -> Rows:
        """`candidates` different numbers below `among`. (numpy takes time by the number drawn, not by `among`.)"""
        generator = np.random.default_rng(mix(self.seed, *key))
        return generator.choice(among, self.ranking.candidates, replace=False)

    def other_captions(self, epoch: int, caption: int) -> Rows:
        """Candidate captions [N] for the image of a caption: rows of the split, none of the image's own."""
        image = self.image_of_caption[caption]
        # The image's captions are neighbours in the pool: draw from the rest, then step over them.
        start, stop = np.searchsorted(self.pool, self.captions.first[image : image + 2])
        drawn = self._draw(len(self.pool) - (stop - start), epoch, _CANDIDATES, _TEXTS, caption)
        return self.pool[drawn + (drawn >= start) * (stop - start)]

    def other_images(self, epoch: int, caption: int) -> Rows:
        """Candidate images [N] for a caption: rows of the split, not its own image."""
        drawn = self._draw(len(self.records) - 1, epoch, _CANDIDATES, _IMAGES, caption)
        return drawn + (drawn >= self.image_of_caption[caption])

    def make(self, keys: RankingKeys) -> RankingBatch:
        images: list[Rows] = []
        captions: list[Rows] = []
        sides: list[tuple[Rows, Rows] | None] = [None, None]
        if keys.hard_texts is not None:
            positive_P = self.kept[list(keys.hard_texts)]
            caption_PX = np.stack([np.append(row, self.other_captions(keys.epoch, row)) for row in positive_P.tolist()])
            sides[0] = np.broadcast_to(self.image_of_caption[positive_P, None], caption_PX.shape), caption_PX
        if keys.hard_images is not None:
            positive_P = self.kept[list(keys.hard_images)]
            image_P = self.image_of_caption[positive_P]
            others = [self.other_images(keys.epoch, row) for row in positive_P.tolist()]
            image_PX = np.stack([np.append(own, other) for own, other in zip(image_P, others, strict=True)])
            sides[1] = image_PX, np.broadcast_to(positive_P[:, None], image_PX.shape)
        for side in sides:
            if side is not None:
                images.append(side[0].ravel())
                captions.append(side[1].ravel())
        image_rows, caption_rows = np.unique(np.concatenate(images)), np.unique(np.concatenate(captions))

        def places(side: tuple[Rows, Rows] | None) -> Candidates | None:
            if side is None:
                return None
            image_PX, text_PX = np.searchsorted(image_rows, side[0]), np.searchsorted(caption_rows, side[1])
            return Candidates(torch.from_numpy(image_PX), torch.from_numpy(text_PX))

        owners = self.image_of_caption[caption_rows]
        texts = [self.captions[row] for row in caption_rows.tolist()]
        return RankingBatch(
            images=self._shown(image_rows.tolist(), keys.epoch),
            texts=text_batch(texts, caption_rows.tolist(), owners.tolist(), self.tokenizer),
            hard_texts=places(sides[0]),
            hard_images=places(sides[1]),
        )

    def _shown(self, rows: list[int], epoch: int) -> ImageBatch:
        if isinstance(self.images, SplitImages):
            seeds = [mix(self.seed, epoch, PIXELS, row) for row in rows]
            return shown_batch(self.records, self.images, rows, seeds)
        return image_batch(self.records, rows, regions=padded(self.images, region_names(self.records, rows)))
