"""Batches for training captioners: each image once, with all its captions of the batch.

An epoch is an order of captions in which those of one image stand together, cut into batches of so many captions. So a batch
counts pairs exactly, as other training batches do, and an image is encoded once for its five captions; only where a batch (or a
process's share of it) ends within an image is that image in two of them. Evaluation sees images once, with their references in
the records: `EvaluationImages`.

Legend: I images of the split, C captions of the split, S samples (texts of an epoch), J captions joined in one text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.formats.columns import Integers
from datamodules.inputs import Inputs, TextInput
from datamodules.loading.collate import cut_texts, image_batch, shown_batch, text_batch
from datamodules.loading.evaluation import EvaluationImages
from datamodules.loading.features import FeatureFile
from datamodules.loading.fingerprint import image_fingerprint
from datamodules.loading.images import Augmentation, SplitImages
from datamodules.loading.loader import BatchDataset
from datamodules.loading.order import GlobalBatches, evaluation_batches, mix
from datamodules.loading.split_captions import SplitCaptions
from datamodules.loading.splits import Splits
from datamodules.loading.task import Batching, BatchRows, PixelTask, Split
from datamodules.loading.tokens import Tokenizer
from datamodules.records import Caption, CaptionBatch, ImageRecord

_IMAGES, _CAPTIONS, _PIXELS = 5, 6, 7  # what the draws are for: 1 to 4 are those of order.py and ranking.py
_NONE = -1  # no caption: the text at the end of an image joins fewer than the others


@dataclass(frozen=True)
class Captioning:
    """Which captions a captioner trains on, and in what batches.

    Args:
        captions_per_image: Texts of one image in an epoch, drawn anew each epoch without repetition; null takes all. For images
            with dozens of short phrases, such as Visual Genome's.
        join: Captions that make one text, with ". " between them; 1 leaves each by itself. Other than 1 it is for phrases, too.
        group: "image" keeps the captions of an image together, so that a batch encodes it once for all of them; "none" shuffles
            captions freely, so that nearly every caption has its image encoded for itself.
    """

    captions_per_image: int | None = None
    join: int = 1
    group: Literal["image", "none"] = "image"

    def __post_init__(self) -> None:
        for name, value in (("captions_per_image", self.captions_per_image), ("join", self.join)):
            if value is not None and value < 1:
                raise InputError(f"captioning.{name} is {value}; give at least 1.")


class ImageCaptions(PixelTask):
    """`CaptionBatch` to train on, and images alone to evaluate on, with the references in the records. Images may come as
    features that a frozen tower made of them, see `use_features`.

    Args:
        splits: What the networks see of the data set.
        augmentation: Of training images.
        cache: Keep resized images in memory.
        captioning: Which captions make a training batch.
    """

    tokenizer: CaptionTokenizer

    def __init__(self, splits: Splits, augmentation: Augmentation, cache: bool, captioning: Captioning) -> None:
        super().__init__(splits, augmentation, cache)
        self.captioning = captioning
        self._features: dict[str, FeatureFile] = {}

    def takes(self, inputs: Inputs | None) -> bool:
        return inputs is not None and inputs.captions and inputs.text is not None

    def connect(self, inputs: Inputs) -> None:
        if inputs.image is None:
            raise InputError("captioning takes pixels: the network writes captions, but its inputs name no image transform.")
        super().connect(inputs)
        assert inputs.text is not None
        self.tokenizer = CaptionTokenizer(inputs.text)
        self._features = {}

    def training(self, split: Split, batching: Batching) -> tuple[BatchDataset, GlobalBatches]:
        images = self._features.get(split.name) or self.pixels.training(split.name, split.records)
        captions = TrainCaptions(split.records, images, self.tokenizer, batching.seed)
        place = (batching.size, batching.seed, batching.rank, batching.world_size)
        return captions, CaptionBatches(captions.counts, self.captioning, *place)

    def evaluation(self, split: Split, batching: Batching) -> list[tuple[BatchDataset, BatchRows]]:
        shown = self._features.get(split.name) or self.pixels.evaluation(split.name, split.records)
        images = EvaluationImages(split.records, shown)
        return [(images, evaluation_batches(len(images), *batching.share))]

    def cut_captions(self, split: Split, batching: Batching) -> int:
        """Of the texts of the first epoch; those of an evaluation are references, which the network does not read."""
        if split.name != "train":
            return 0
        texts = TrainCaptions(split.records, None, self.tokenizer, batching.seed)
        order = CaptionBatches(texts.counts, self.captioning, 1, batching.seed)
        captions = (texts.joined([row for row in text if row != _NONE]) for text in order.texts(0).tolist())
        return cut_texts((self.tokenizer.before + caption.text for caption in captions), self.tokenizer)

    def unknown_words(self, split: Split) -> dict[str, int]:
        """Of what the network reads: captions to train on, and no references."""
        return super().unknown_words(split) if split.name == "train" else {}

    def order_options(self, batching: Batching) -> dict[str, Any]:
        return {f"captioning.{name}": value for name, value in asdict(self.captioning).items()}

    def use_features(self, folders: Mapping[str, Path], split: Callable[[str], Split]) -> None:
        if "train" in folders:
            self.require_fixed_images()
        files = {name: FeatureFile(folder) for name, folder in folders.items()}
        transform = json.loads(json.dumps(asdict(self.pixels.spec)))
        for name, file in files.items():
            facts = {"photographs": image_fingerprint(split(name).records), "image_input": transform}
            for fact, value in facts.items():
                if file.about.get(fact) != value:
                    place = f"{self.splits.source.name} {name}"
                    raise InputError(f"{file.folder} holds features of other images than {place}: {fact} differ(s).")
            if missing := int((~file.done()).sum()):
                raise InputError(f"{file.folder} lacks the features of {missing:,} of {file.shape[0]:,} images.")
        self._features = files


class CaptionTokenizer(Tokenizer):
    """Captions for a language model: the ids of the words and the end token; no begin token, which a network that wants one puts
    before them itself. `max_tokens` counts the end token, which a longer caption keeps.

    Args:
        spec: What the network names.

    Raises:
        InputError: as `Tokenizer`; the network names no tokenizer, or one without an end token; there is no room for a word.
    """

    def __init__(self, spec: TextInput) -> None:
        if not isinstance(spec.tokenizer, str):
            raise InputError("the network writes captions and names no tokenizer: set that of its language model.")
        super().__init__(spec)
        end = self._tokenizer.eos_token_id
        end = end if end is not None else self._tokenizer.sep_token_id
        if end is None:
            raise InputError(f"tokenizer {self.name} has no end token (eos_token or sep_token) for captions: give it one.")
        self.end: int = end
        self.before = spec.before

    @property
    def room(self) -> int:
        return self.max_tokens - 1

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (int64) and mask (bool, True = real token), both [B, T], T the longest of the batch."""
        rows = [[*ids[: self.room], self.end] for ids in self.ids([self.before + text for text in texts])]
        longest = max(map(len, rows))
        padding = self._tokenizer.pad_token_id
        tokens_BT = torch.tensor([row + [padding] * (longest - len(row)) for row in rows], dtype=torch.int64)
        return tokens_BT, torch.arange(longest) < torch.tensor([[len(row)] for row in rows])


@dataclass(frozen=True, slots=True)
class CaptionKeys:
    """One process's part of a training batch: of each text, the rows of its captions in the split."""

    epoch: int
    texts: tuple[tuple[int, ...], ...]


class CaptionBatches(GlobalBatches):
    """`GlobalBatches` over the texts of an epoch, the captions of an image next to each other.

    Args:
        counts: Captions of each image of the split.
        captioning: How many of them, joined and grouped how.
        batch_size: Texts in one batch over all processes.
        seed: Seed of the order and of the choice of captions.
        rank: This process.
        world_size: Number of processes.

    Raises:
        InputError: as `GlobalBatches`.
    """

    def __init__(
        self,
        counts: Sequence[int] | Integers,
        captioning: Captioning,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.counts_I = torch.tensor(counts, dtype=torch.int64)
        self.captioning = captioning
        most = captioning.captions_per_image
        self.drawn_I = self.counts_I if most is None else self.counts_I.clamp(max=most * captioning.join)
        self.texts_I = -(-self.drawn_I // captioning.join)
        super().__init__(int(self.texts_I.sum()), batch_size, seed, rank, world_size)

    def texts(self, epoch: int) -> Tensor:
        """The epoch's texts in their order, int64 [S, J]: rows of captions in the split, -1 where a text has fewer than J."""
        join = self.captioning.join
        captions = int(self.counts_I.sum())
        # Shuffled within each image: a random order of all, sorted by image without changing the order inside.
        image_C = torch.repeat_interleave(torch.arange(len(self.counts_I)), self.counts_I)
        random_C = self._permutation(captions, epoch, _CAPTIONS)
        rows_C = random_C[image_C[random_C].argsort(stable=True)]
        place_C = torch.arange(captions) - _starts(self.counts_I)[image_C]
        drawn_C = place_C < self.drawn_I[image_C]
        rows_C, place_C, image_C = rows_C[drawn_C], place_C[drawn_C], image_C[drawn_C]
        first_I = _starts(self.texts_I)
        texts_SJ = torch.full((self.samples, join), _NONE)
        texts_SJ[first_I[image_C] + place_C // join, place_C % join] = rows_C
        if self.captioning.group == "none":
            return texts_SJ[self._permutation(self.samples, epoch, _IMAGES)]
        images_I = self._permutation(len(self.counts_I), epoch, _IMAGES)
        lengths_I = self.texts_I[images_I]
        offsets_S = torch.repeat_interleave(first_I[images_I] - _starts(lengths_I), lengths_I)
        return texts_SJ[offsets_S + torch.arange(self.samples)]

    def _permutation(self, length: int, epoch: int, purpose: int) -> Tensor:
        return torch.randperm(length, generator=torch.Generator().manual_seed(mix(self.seed, epoch, purpose)))

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        texts_SJ = self.texts(epoch)
        for mine in self.slices(start):
            rows = texts_SJ[mine].tolist()
            yield CaptionKeys(epoch, tuple(tuple(row for row in text if row != _NONE) for text in rows))


def _starts(lengths: Tensor) -> Tensor:
    """Where each of consecutive stretches of these lengths begins."""
    return lengths.cumsum(0) - lengths


class TrainCaptions(BatchDataset):
    """`CaptionKeys` to `CaptionBatch`. Images of a batch are in the order of their first caption; random crops and flips are
    drawn once an image and epoch, so that an image has one look in both batches that may share it.

    Args:
        records: The training split.
        images: Its pixels, or the features that a frozen tower made of them; None = captions alone.
        tokenizer: Of the network.
        seed: Seed of the augmentation.

    Raises:
        InputError: captions are token ids in place of words.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        images: SplitImages | FeatureFile | None,
        tokenizer: CaptionTokenizer,
        seed: int,
    ) -> None:
        self.records, self.images, self.tokenizer, self.seed = records, images, tokenizer, seed
        self.captions = SplitCaptions(records)
        self.counts = np.diff(self.captions.first)
        first = self.captions[0] if len(self.captions) else None
        if first is not None and first.token_ids is not None:
            raise InputError(
                f"caption {first.caption_id} is token ids of another tokenizer, and the network writes words: read the captions "
                "as text (captions: karpathy)."
            )

    def __len__(self) -> int:
        return len(self.captions)

    def joined(self, rows: Sequence[int]) -> Caption:
        """Captions of one image, by their rows, as one text."""
        return joined([self.captions[row] for row in rows])

    def make(self, keys: CaptionKeys) -> CaptionBatch:
        captions, image_rows = [], []
        for text in keys.texts:
            captions.append(self.joined(text))
            image_rows.append(self.captions.image_of(text[0]))
        place = {image: place for place, image in enumerate(dict.fromkeys(image_rows))}
        rows = list(place)
        seeds = [mix(self.seed, keys.epoch, _PIXELS, row) for row in rows]
        shown = image_batch(self.records, rows) if self.images is None else shown_batch(self.records, self.images, rows, seeds)
        return CaptionBatch(
            images=shown,
            texts=text_batch(captions, [text[0] for text in keys.texts], image_rows, self.tokenizer),
            image_row_B=torch.tensor([place[image] for image in image_rows], dtype=torch.int64),
        )


def joined(captions: Sequence[Caption]) -> Caption:
    """Captions of one image as one, and white space of any kind as single spaces: a language model would learn to write it."""
    texts = [" ".join(caption.text.split()) for caption in captions]
    if len(texts) == 1:
        return replace(captions[0], text=texts[0])
    return Caption("+".join(caption.caption_id for caption in captions), ". ".join(text.rstrip(" .") for text in texts))
