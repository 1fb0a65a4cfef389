"""Ranking by regions or patches, evaluated also on pairs whose caption and image show the same things: what ISDa looks at.

Legend: B pairs, K annotated boxes of an image, N objects of a caption, T tokens, R regions or patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.formats.flickr_entities import NOT_VISUAL, Annotation, word_pieces
from datamodules.formats.uniter.text_database import TextDatabase
from datamodules.loading.collate import image_batch, region_names, shown_batch, text_batch
from datamodules.loading.images import Augmentation, SplitImages, covered_area
from datamodules.loading.loader import BatchDataset
from datamodules.loading.order import GlobalBatches, evaluation_batches
from datamodules.loading.ranking import PixelRanking, Ranking, RegionRanking
from datamodules.loading.region_files import RegionReader
from datamodules.loading.regions import padded
from datamodules.loading.splits import RegionSplits, Splits
from datamodules.loading.task import Batching, BatchRows, Split
from datamodules.loading.tokens import Tokenizer
from datamodules.records import Box, Caption, ImageBatch, ImageRecord, Objects, PairBatch, Phrase, Regions

PhraseRegions = Literal["gt", "iou"]

_PIXELS_OFF = 1.5  # one for the two ways to count an edge, and what fp16 loses of a fraction of a photograph


class ObjectRanking(RegionRanking):
    """`RegionRanking` of a data set whose captions say where their phrases are: evaluation has a third loader, of `PairBatch`
    with `objects`. Text databases are compared with those captions, and must have the same word pieces.

    Args:
        splits: What networks that take regions see of the data set.
        ranking: What a training batch consists of.
        annotation: The annotation of an image id.
        phrase_regions: Which regions show a phrase. "gt": the annotated boxes themselves, in file order; "iou": those with an IoU
            of at least 0.5 with one of the phrase's boxes, or else the one with the largest.
        most_pairs: Of an evaluation split: the first so many; None is all.
    """

    def __init__(
        self,
        splits: RegionSplits,
        ranking: Ranking,
        annotation: Callable[[str], Annotation],
        phrase_regions: PhraseRegions,
        most_pairs: int | None,
    ) -> None:
        super().__init__(splits, ranking)
        self.annotation, self.phrase_regions, self.most_pairs = annotation, phrase_regions, most_pairs
        self._compared: set[str] = set()

    def training(self, split: Split, batching: Batching) -> tuple[BatchDataset, GlobalBatches]:
        self._compare_texts(split)
        return super().training(split, batching)

    def evaluation(self, split: Split, batching: Batching) -> list[tuple[BatchDataset, BatchRows]]:
        loaders = super().evaluation(split, batching)
        self._compare_texts(split)
        pairs = ObjectPairs(split.records, self.annotation, self.reader, self.tokenizer, self.phrase_regions, self.most_pairs)
        return [*loaders, (pairs, evaluation_batches(len(pairs), *batching.share, lengths=pairs.lengths()))]

    def foresee(self, split: Callable[[str], Split]) -> None:
        if "test" in self.splits.text_databases:
            self._compare_texts(split("test"))

    def _compare_texts(self, split: Split) -> None:
        """See that the word pieces of text databases, if there are any, are those of the captions' words.

        Raises:
            InputError: names the first caption whose pieces none of its image's texts has.
        """
        databases = [TextDatabase(path) for paths in self.splits.text_databases.values() for path in paths]
        if not databases or split.name in self._compared:
            return
        texts_of = {name: (database, ids) for database in databases for name, ids in database.image_texts.items()}
        tokenize_word = _word_by_word(self.tokenizer)
        records = [record for record in split.records if record.regions in texts_of]
        if not records:
            raise InputError(
                f"regions.text_db: {', '.join(str(database.path) for database in databases)} have none of the images of "
                f"{self.splits.source.name} {split.name}, such as {split.records[0].regions}; give those of Flickr30k, or null."
            )
        for record in records:
            database, text_ids = texts_of[str(record.regions)]
            stored = {database.read(text_id).input_ids for text_id in text_ids}
            for caption in record.captions:
                pieces = word_pieces(caption.text, (), tokenize_word).input_ids
                if pieces not in stored:
                    raise InputError(
                        f"caption {caption.caption_id} ({caption.text!r}) has the word pieces {list(pieces)} by the network's "
                        f"tokenizer, which none of the texts of {record.regions} in {database.path} has: that is of another "
                        "tokenizer or of other captions. Build it again (`crosslight data text-db`), or set regions.text_db to "
                        "null: Entities' own words serve as well."
                    )
        self._compared.add(split.name)


class PatchObjectRanking(PixelRanking):
    """`PixelRanking` of a data set whose captions say where their phrases are, as `ObjectRanking` is of regions. What shows a
    phrase are the patches under its boxes (`patches_under`).

    Args:
        splits: What networks that take pixels see of the data set.
        augmentation: Of training images.
        cache: Keep resized images in memory.
        ranking: What a training batch consists of.
        annotation: The annotation of an image id.
        most_pairs: Of an evaluation split: the first so many; None is all.
    """

    def __init__(
        self,
        splits: Splits,
        augmentation: Augmentation,
        cache: bool,
        ranking: Ranking,
        annotation: Callable[[str], Annotation],
        most_pairs: int | None,
    ) -> None:
        super().__init__(splits, augmentation, cache, ranking)
        self.annotation, self.most_pairs = annotation, most_pairs

    def evaluation(self, split: Split, batching: Batching) -> list[tuple[BatchDataset, BatchRows]]:
        loaders = super().evaluation(split, batching)
        if self.pixels.spec.patch is None:  # nothing of the network says where a phrase is
            return loaders
        images = self.pixels.evaluation(split.name, split.records)
        pairs = ObjectPairs(split.records, self.annotation, images, self.tokenizer, "gt", self.most_pairs)
        return [*loaders, (pairs, evaluation_batches(len(pairs), *batching.share, lengths=pairs.lengths()))]


# ---------------------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True, slots=True)
class _Pair:
    """A caption and its image (rows of the split), and the objects that it names: their chains, and the positions of their words
    among the word pieces `pieces`."""

    image: int
    caption: int
    chains: tuple[str, ...]
    words: tuple[tuple[int, ...], ...]
    pieces: tuple[int, ...]


class ObjectPairs(BatchDataset):
    """Every caption with its image and the things that both show, as `PairBatch` with `objects`.

    A thing is a chain with at least one box; phrases of one chain in a caption are one thing. Chain 0 (not visual), the scene and
    chains that are not to be seen have none. Captions with fewer than two things, as far as the network reads them, have no
    relations and are left out.

    Args:
        records: The split; captions are text, and where images are regions, all have a name in the reader's databases.
        annotation: The annotation of an image id.
        images: What they are shown as: regions of databases, or pixels.
        tokenizer: Of the network.
        phrase_regions: Of regions, see `ObjectRanking`.
        most: The first so many pairs; None is all.

    Raises:
        InputError: an annotation is missing or malformed. When a batch is made: the tokenizer looks across words; "gt", and the
            regions are not the annotation's boxes.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        annotation: Callable[[str], Annotation],
        images: RegionReader | SplitImages,
        tokenizer: Tokenizer,
        phrase_regions: PhraseRegions,
        most: int | None = None,
    ) -> None:
        self.records, self.images, self.tokenizer, self.phrase_regions = records, images, tokenizer, phrase_regions
        self.pairs: list[_Pair] = []
        self.first_caption: list[int] = []
        self.annotations: dict[int, Annotation] = {}
        for pair in self._all_pairs():
            if most is not None and len(self.pairs) >= most:
                break
            if pair.image not in self.annotations:
                self.annotations[pair.image] = annotation(records[pair.image].image_id)
            self.pairs.append(pair)

    def _all_pairs(self) -> Iterator[_Pair]:
        tokenize_word = _word_by_word(self.tokenizer)
        row = 0
        for image, record in enumerate(self.records):
            self.first_caption.append(row)
            for caption in record.captions:
                chains, words, pieces = _objects(caption, tokenize_word, self.tokenizer.max_tokens - 2)
                if len(chains) >= 2:
                    yield _Pair(image, row, chains, words, pieces)
                row += 1

    def __len__(self) -> int:
        return len(self.pairs)

    def lengths(self) -> list[int]:
        """Tokens and regions of each pair, to sort by; of pixels tokens alone."""
        words = [len(pair.pieces) for pair in self.pairs]
        if isinstance(self.images, SplitImages):
            return words
        names = region_names(self.records, [pair.image for pair in self.pairs])
        return [count + self.images.most_regions(name) for count, name in zip(words, names, strict=True)]

    def make(self, keys: Sequence[int]) -> PairBatch:
        pairs = [self.pairs[key] for key in keys]
        image_rows, caption_rows = [pair.image for pair in pairs], [pair.caption for pair in pairs]
        captions = [self.records[pair.image].captions[pair.caption - self.first_caption[pair.image]] for pair in pairs]
        images, shown = self._images_of(pairs)
        texts = text_batch(captions, caption_rows, image_rows, self.tokenizer)
        shape = (len(pairs), max(len(pair.chains) for pair in pairs))
        words_BNT = torch.zeros(*shape, texts.tokens_BT.shape[1], dtype=torch.bool)
        regions_BNR = torch.zeros(*shape, max(shown_NR.shape[1] for shown_NR in shown), dtype=torch.bool)
        mask_BN = torch.zeros(shape, dtype=torch.bool)
        for row, (pair, shown_NR) in enumerate(zip(pairs, shown, strict=True)):
            self._require_pieces(pair, texts.tokens_BT[row], captions[row])
            regions_BNR[row, : len(shown_NR), : shown_NR.shape[1]] = shown_NR
            for number, positions in enumerate(pair.words):
                words_BNT[row, number, torch.tensor(positions) + 1] = True  # after the token that begins the caption
            mask_BN[row, : len(pair.chains)] = True
        return PairBatch(images, texts, Objects(words_BNT, regions_BNR, mask_BN))

    def _images_of(self, pairs: Sequence[_Pair]) -> tuple[ImageBatch, list[Tensor]]:
        """The pairs' images, and which of each one's regions or patches show which of its objects, bool [N, R]."""
        rows = [pair.image for pair in pairs]
        if isinstance(self.images, SplitImages):
            images = shown_batch(self.records, self.images, rows, [0] * len(rows))
            return images, [self._patches(pair, images, row) for row, pair in enumerate(pairs)]
        regions = padded(self.images, region_names(self.records, rows))
        images = image_batch(self.records, rows, regions=regions)
        return images, [self._shown(pair, regions, row) for row, pair in enumerate(pairs)]

    def _patches(self, pair: _Pair, images: ImageBatch, row: int) -> Tensor:
        assert isinstance(self.images, SplitImages)
        assert images.pixels_B3HW is not None
        size = images.pixels_B3HW.shape[2:] if images.sizes_B2 is None else images.sizes_B2[row].tolist()
        annotation, spec = self.annotations[pair.image], self.images.spec
        assert spec.patch is not None
        rows, columns = (side // spec.patch for side in size)
        covered = covered_area(spec, annotation.width, annotation.height)
        return patches_under([annotation.boxes_of(chain) for chain in pair.chains], covered, rows, columns)

    def _require_pieces(self, pair: _Pair, tokens_T: Tensor, caption: Caption) -> None:
        pieces = list(pair.pieces)
        if tokens_T[1 : len(pieces) + 1].tolist() != pieces:
            raise InputError(
                f"caption {caption.caption_id} ({caption.text!r}) has the tokens {tokens_T.tolist()} and, word by word, "
                f"{pieces}. Where phrases are can only be told for a tokenizer that takes each word by itself and begins with "
                f"one special token, as BERT's do; {self.tokenizer.name} does not."
            )

    def _shown(self, pair: _Pair, regions: Regions, row: int) -> Tensor:
        """Which regions show which objects, bool [N, R] (R without padding; "gt": annotated ones only)."""
        assert isinstance(self.images, RegionReader)
        annotation, identity = self.annotations[pair.image], self.records[pair.image].image_id
        boxes_R4 = regions.boxes_BR7[row, regions.mask_BR[row], :4]
        size = (annotation.width, annotation.height)
        if self.phrase_regions == "iou":
            return overlapping_regions(boxes_R4, [annotation.boxes_of(chain) for chain in pair.chains], size)
        annotated_K4 = torch.from_numpy(annotation.fractions_K4())
        fits = len(boxes_R4) >= len(annotated_K4)
        off_K = ((boxes_R4[: len(annotated_K4)] - annotated_K4) * torch.tensor([*size, *size])).abs().amax(1) if fits else None
        if off_K is None or bool((off_K > _PIXELS_OFF).any()):
            what = f"are {len(boxes_R4)}" if off_K is None else f"differ, first region {int((off_K > _PIXELS_OFF).nonzero()[0])}"
            raise InputError(
                f'image {identity}: phrase_regions "gt" takes region k for box k of the {len(annotated_K4)} in {identity}.xml, '
                f"but its regions in {self.images.databases[0].path} {what}. Give features that were extracted from the "
                'annotated boxes, in their order (layout "all"), or set phrase_regions to "iou".'
            )
        return annotated_regions(annotation, pair.chains)


def _word_by_word(tokenizer: Tokenizer) -> Callable[[str], Sequence[int]]:
    @cache
    def tokenize_word(word: str) -> tuple[int, ...]:
        return tuple(tokenizer.ids([word])[0])

    return tokenize_word


def _objects(
    caption: Caption, tokenize_word: Callable[[str], Sequence[int]], most_pieces: int
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Chains in the order of first mention, where their words are among the caption's pieces, and those (all three as far as the
    network reads)."""
    phrases: list[Phrase] = [phrase for phrase in caption.phrases if phrase.boxes and phrase.chain != NOT_VISUAL]
    pieces = word_pieces(caption.text, phrases, tokenize_word)
    words: dict[str, list[int]] = {}
    for phrase, positions in zip(phrases, pieces.phrases, strict=True):
        read = [position for position in positions if position < most_pieces]
        if read:
            words.setdefault(phrase.chain, []).extend(read)
    return tuple(words), tuple(tuple(positions) for positions in words.values()), pieces.input_ids[:most_pieces]


# --------------------------------------------------------------------------------------------- which regions show what


def annotated_regions(annotation: Annotation, chains: Sequence[str]) -> Tensor:
    """Which regions show which chains where the visual sequence is the annotation's boxes, in file order ("gt").

    Returns:
        bool [N, K]; a box that was drawn for several chains serves all of them.
    """
    shown = [[chain in box_chains for box_chains in annotation.box_chains] for chain in chains]
    return torch.tensor(shown, dtype=torch.bool).reshape(len(chains), len(annotation.boxes))


def overlapping_regions(
    regions_R4: Tensor, boxes: Sequence[Sequence[Box]], size: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Which regions of a detector show which objects ("iou"): those whose IoU with any box of the object is at least `threshold`
    (the one of Flickr30k Entities' own evaluation), or else the region of largest IoU.

    Args:
        regions_R4: left, top, right, bottom as fractions of the image; at least one region.
        boxes: the boxes of N objects (one or more each), in pixels.
        size: width and height of the image that these pixels are of.
        threshold: least IoU, 0..1.

    Returns:
        bool [N, R]; a region may serve several objects. An object that no region touches at all has none.
    """
    owner_M = torch.tensor([row for row, its_boxes in enumerate(boxes) for _ in its_boxes], dtype=torch.long)
    pixels_M4 = _box_tensor([box for its_boxes in boxes for box in its_boxes])
    width, height = size
    # IoU does not change when an axis is scaled, so fractions serve as well as pixels.
    from torchvision.ops import box_iou  # where it is used: most of a second

    iou_MR = box_iou(pixels_M4 / torch.tensor([width, height, width, height]), regions_R4.double())
    best_NR = iou_MR.new_zeros(len(boxes), len(regions_R4))
    best_NR.scatter_reduce_(0, owner_M[:, None].expand_as(iou_MR), iou_MR, "amax")
    return _enough_or_largest(best_NR, threshold)


def patches_under(boxes: Sequence[Sequence[Box]], covered: Box, rows: int, columns: int, least: float = 0.5) -> Tensor:
    """Which patches show which objects: those of which at least the share `least` lies under one of the object's boxes, or else
    the patch with the largest share.

    Args:
        boxes: Of N objects (one or more each), in pixels of the image.
        covered: The part of the image under the patches, see `covered_area`.
        rows: Of patches.
        columns: Likewise.
        least: See above.

    Returns:
        bool [N, rows * columns], row by row; an object outside of what is covered has none.
    """
    owner_M = torch.tensor([row for row, its_boxes in enumerate(boxes) for _ in its_boxes], dtype=torch.long)
    boxes_M4 = _box_tensor([box for its_boxes in boxes for box in its_boxes])

    def overlap(low_M: Tensor, high_M: Tensor, start: float, end: float, count: int) -> Tensor:
        """[M, count]: how much of every patch is in the box, along one axis."""
        low_M1, high_M1 = ((side_M[:, None] - start) * count / (end - start) for side_M in (low_M, high_M))
        place_C = torch.arange(count, dtype=torch.float64)
        return (high_M1.minimum(place_C + 1) - low_M1.maximum(place_C)).clamp_min(0)

    down_MR = overlap(boxes_M4[:, 1], boxes_M4[:, 3], covered.top, covered.bottom, rows)
    across_MC = overlap(boxes_M4[:, 0], boxes_M4[:, 2], covered.left, covered.right, columns)
    share_MP = (down_MR[:, :, None] * across_MC[:, None]).flatten(1)
    best_NP = share_MP.new_zeros(len(boxes), rows * columns)
    best_NP.scatter_reduce_(0, owner_M[:, None].expand_as(share_MP), share_MP, "amax")
    return _enough_or_largest(best_NP, least)


def _enough_or_largest(best_NR: Tensor, least: float) -> Tensor:
    """bool [N, R]: those of at least `least`, or where an object has none the largest, if it is anything at all."""
    shown_NR = best_NR >= least
    largest_N1 = best_NR.max(dim=1, keepdim=True)
    alone_NR = torch.zeros_like(shown_NR).scatter_(1, largest_N1.indices, largest_N1.values > 0)
    return torch.where(shown_NR.any(dim=1, keepdim=True), shown_NR, alone_NR)


def _box_tensor(boxes: Sequence[Box]) -> Tensor:
    """[K, 4] float64: left, top, right, bottom."""
    return torch.tensor([(box.left, box.top, box.right, box.bottom) for box in boxes], dtype=torch.float64).reshape(-1, 4)
