"""Flickr30k Entities (Plummer et al. 2015): Flickr30k with phrases tied to boxes, and the pairs that ISDa looks at.

Legend: B pairs, N objects, T tokens, R regions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.errors import InputError
from datamodules.formats.flickr_entities import (
    NOT_VISUAL,
    Annotation,
    annotated_regions,
    overlapping_regions,
    read_annotation,
    read_entities,
    read_unrelated,
    word_pieces,
)
from datamodules.formats.karpathy import read_karpathy
from datamodules.formats.parsing import Parsed
from datamodules.formats.uniter.text_database import TextDatabase
from datamodules.image_text import ImageTextDataModule
from datamodules.loading.collate import image_batch, region_names, text_batch
from datamodules.loading.loader import BatchDataset, BatchLoader, TrainLoader
from datamodules.loading.order import evaluation_batches
from datamodules.loading.regions import RegionReader
from datamodules.loading.tokens import BEIT3_IDS, FileIds, Tokenizer
from datamodules.records import Caption, ImageRecord, Objects, PairBatch, Phrase, Regions

PhraseRegions = Literal["gt", "iou"]

_REPOSITORY = "https://github.com/BryanPlummer/flickr30k_entities"
_PIXELS_OFF = 1.5  # one for the two ways to count an edge, and what fp16 loses of a fraction of a photograph


class Flickr30kEntities(ImageTextDataModule):
    """Flickr30k with the captions and phrases of Flickr30k Entities.

    Root holds the photographs in flickr30k-images/ and, in flickr30k_entities/, a copy of the repository with annotations.zip
    unpacked in it: Sentences/ID.txt, Annotations/ID.xml, {train,val,test}.txt, UNRELATED_CAPTIONS. Captions have the ids "ID#0",
    "ID#1", ... in file order.

    With region features, evaluation has a third loader, of pairs with `objects`: what ISDa is measured on. Captions are those of
    Entities then too; text databases (regions.text_db) are compared with them, and must have the same word pieces.

    Args:
        root: Folder of the data set.
        image_dir: Folder of the images, relative to root (or absolute).
        entities_dir: Folder of the annotations, relative to root (or absolute).
        split: "entities" takes the lists of Entities (29,783/1,000/1,000); "karpathy" those of root's dataset_flickr30k.json
            (29,000/1,014/1,000).
        unrelated: "drop" leaves out captions that UNRELATED_CAPTIONS lists (where that file is there) as not describing their
            image, and images that have no others.
        phrase_regions: Which regions show a phrase. "gt": the annotated boxes themselves, for region features that were
            extracted from them in file order; "iou", for a detector's regions: those with an IoU of at least 0.5 with one of the
            phrase's boxes, or else the one with the largest.
        object_pairs: Pairs with objects of an evaluation split: the first so many; null is all.
        loading: Options of all image-text data modules.
    """

    name: ClassVar[str] = "flickr30k_entities"
    region_prefixes: ClassVar[tuple[str, ...]] = ("flickr30k",)

    def __init__(
        self,
        root: str,
        image_dir: str = "flickr30k-images",
        entities_dir: str = "flickr30k_entities",
        split: Literal["entities", "karpathy"] = "entities",
        unrelated: Literal["drop", "keep"] = "drop",
        phrase_regions: PhraseRegions = "gt",
        object_pairs: int | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(root, image_dir, **loading)
        if object_pairs is not None and object_pairs < 1:
            raise InputError(f"object_pairs is {object_pairs}; give at least 1, or null for all.")
        self.entities_dir = self.root / Path(entities_dir).expanduser()
        self.split = split
        self.unrelated = unrelated
        self.phrase_regions: PhraseRegions = phrase_regions
        self.object_pairs = object_pairs
        self._compared: set[str] = set()
        self._contents: bytes | None = None

    # ------------------------------------------------------------------------------------------------------------- reading

    def options(self) -> dict[str, Any]:
        return {"split": self.split, "unrelated": self.unrelated}

    @property
    def needs_annotation_files(self) -> bool:
        """Always: text databases have no phrases."""
        return True

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "objects": {"regions": self.phrase_regions, "pairs": self.object_pairs}}

    def annotation_files(self) -> list[Path]:
        listed = self.entities_dir / "UNRELATED_CAPTIONS"
        unrelated = [listed] if self.unrelated == "drop" and listed.exists() else []
        return [*(self._lists().values() if self.split == "entities" else [self.root / "dataset_flickr30k.json"]), *unrelated]

    def _lists(self) -> dict[str, Path]:
        return {split: self.entities_dir / f"{split}.txt" for split in ("train", "val", "test")}

    def prepare_data(self) -> None:
        """Flickr30k needs a form, so nothing is downloaded: this is `require_files`."""
        self.require_files()

    def require_files(self) -> None:
        """See that everything is there.

        Raises:
            InputError: says which files to put where.
        """
        folders = [self.entities_dir / "Sentences", self.entities_dir / "Annotations"]
        images = [self.image_dir] if self.needs_image_files else []
        missing = [str(path) for path in (*self.annotation_files(), *folders, *images) if not path.exists()]
        if missing:
            raise InputError(
                f"Flickr30k Entities is not complete under {self.root}: missing {', '.join(missing)}. Fetch by hand:\n"
                f"  {self.entities_dir}: a copy of {_REPOSITORY} with annotations.zip unpacked in it\n"
                f"  {self.image_dir}/*.jpg: flickr30k-images.tar.gz, by the form at https://shannon.cs.illinois.edu/DenotationGraph/"
            )

    def parse(self) -> Parsed:
        self.require_files()
        parsed = Parsed(self.entities_dir)
        dropped: frozenset[tuple[str, int]] = frozenset()
        for path in self.annotation_files():
            if path.name == "UNRELATED_CAPTIONS":
                dropped = read_unrelated(path)
        known: set[str] = set()
        for split, identities in self._identities().items():
            records = parsed.splits[split] = []
            for identity in identities:
                if identity in known:
                    parsed.add("duplicated id", f"split {split} repeats image {identity}")
                known.add(identity)
                try:
                    captions = read_entities(self.entities_dir, identity).captions
                except InputError as error:  # tens of thousands of files: say of all what is wrong, not of the first
                    parsed.add("unreadable annotation", str(error))
                    continue
                kept = tuple(caption for place, caption in enumerate(captions) if (identity, place) not in dropped)
                if kept:
                    records.append(ImageRecord(identity, self.image_dir / f"{identity}.jpg", kept))
        return parsed

    def parse_regions(self) -> tuple[Parsed, FileIds]:
        self._region_files().require(self.root)
        return self.parse(), BEIT3_IDS

    def _identities(self) -> dict[str, list[str]]:
        if self.split == "karpathy":
            splits = read_karpathy(self.root / "dataset_flickr30k.json", self.image_dir)
            return {split: [record.image_id for record in records] for split, records in splits.items()}
        return {split: path.read_text(encoding="utf-8").split() for split, path in self._lists().items()}

    def fingerprint(self) -> str:
        """As of all data modules, and over the contents of the Sentences and Annotations files."""
        if self._contents is None:  # 62,000 files, and a run asks after every evaluation
            contents = hashlib.sha256()
            for split in sorted(self.splits()):
                for record in self._read().splits[split][: self.limits.of(split)]:
                    for path in (self._sentences(record.image_id), self._annotation(record.image_id)):
                        contents.update(hashlib.sha256(path.read_bytes()).digest())
            self._contents = contents.digest()
        return hashlib.sha256(super().fingerprint().encode() + self._contents).hexdigest()[:16]

    # ------------------------------------------------------------------------------------------------------------- loaders

    def setup(self, stage: str) -> None:
        super().setup(stage)
        texts = self.regions.text_db if self.regions is not None and self.view == "regions" else None
        if stage == "fit" and texts is not None and "test" in texts:
            self._compare_texts("test")  # `crosslight run` comes to it after the training

    def train_dataloader(self) -> TrainLoader:
        if self.view == "regions":
            self._compare_texts("train")
        return super().train_dataloader()

    def evaluation_loaders(self, split: str) -> list[DataLoader[Any]]:
        """Images and captions; in the regions view also pairs with `objects` (`PairBatch`), each on one process."""
        loaders = super().evaluation_loaders(split)
        if self.view == "pixels":
            return loaders
        self._compare_texts(split)
        connection = self._connected()
        pairs = ObjectPairs(
            self.records(split),
            lambda image_id: read_annotation(self._annotation(image_id)),
            self.region_reader(),
            connection.tokenizer,
            self.phrase_regions,
            self.object_pairs,
        )
        rows = evaluation_batches(
            len(pairs), self.eval_batch_size, connection.rank, connection.world_size, lengths=pairs.lengths()
        )
        return [*loaders, BatchLoader(pairs, batch_size=None, sampler=rows, **self._loading())]

    def _compare_texts(self, split: str) -> None:
        """See that the word pieces of text databases, if there are any, are those of Entities' words.

        Raises:
            InputError: names the first caption whose pieces none of its image's texts has.
        """
        databases = [TextDatabase(path) for paths in self._region_files().text_paths(self.root).values() for path in paths]
        if not databases or split in self._compared:
            return
        texts_of = {name: (database, ids) for database in databases for name, ids in database.image_texts.items()}
        tokenize_word = _word_by_word(self._connected().tokenizer)
        records = [record for record in self.records(split) if record.regions in texts_of]
        if not records:
            raise InputError(
                f"regions.text_db: {', '.join(str(database.path) for database in databases)} have none of the images of "
                f"{self.name} {split}, such as {self.records(split)[0].regions}; give those of Flickr30k, or null."
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
        self._compared.add(split)

    def _sentences(self, image_id: str) -> Path:
        return self.entities_dir / "Sentences" / f"{image_id}.txt"

    def _annotation(self, image_id: str) -> Path:
        return self.entities_dir / "Annotations" / f"{image_id}.xml"


# -------------------------------------------------------------------------------------------------- pairs with objects


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
        records: The split; all have a name in the reader's databases, captions are text.
        annotation: The annotation of an image id.
        reader: Of the regions.
        tokenizer: Of the network.
        phrase_regions: See `Flickr30kEntities`.
        most: The first so many pairs; None is all.

    Raises:
        InputError: an annotation is missing or malformed. When a batch is made: the tokenizer looks across words; "gt", and the
            regions are not the annotation's boxes.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        annotation: Callable[[str], Annotation],
        reader: RegionReader,
        tokenizer: Tokenizer,
        phrase_regions: PhraseRegions,
        most: int | None = None,
    ) -> None:
        self.records, self.reader, self.tokenizer, self.phrase_regions = records, reader, tokenizer, phrase_regions
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
        """Tokens and regions of each pair, to sort by."""
        names = region_names(self.records, [pair.image for pair in self.pairs])
        return [len(pair.pieces) + self.reader.most_regions(name) for pair, name in zip(self.pairs, names, strict=True)]

    def make(self, keys: Sequence[int]) -> PairBatch:
        pairs = [self.pairs[key] for key in keys]
        image_rows, caption_rows = [pair.image for pair in pairs], [pair.caption for pair in pairs]
        captions = [self.records[pair.image].captions[pair.caption - self.first_caption[pair.image]] for pair in pairs]
        regions = self.reader.regions(region_names(self.records, image_rows))
        texts = text_batch(captions, caption_rows, image_rows, self.tokenizer)
        shape = (len(pairs), max(len(pair.chains) for pair in pairs))
        words_BNT = torch.zeros(*shape, texts.tokens_BT.shape[1], dtype=torch.bool)
        regions_BNR = torch.zeros(*shape, regions.mask_BR.shape[1], dtype=torch.bool)
        mask_BN = torch.zeros(shape, dtype=torch.bool)
        for row, pair in enumerate(pairs):
            self._require_pieces(pair, texts.tokens_BT[row], captions[row])
            shown_NR = self._shown(pair, regions, row)
            regions_BNR[row, : len(shown_NR), : shown_NR.shape[1]] = shown_NR
            for number, positions in enumerate(pair.words):
                words_BNT[row, number, torch.tensor(positions) + 1] = True  # after the token that begins the caption
            mask_BN[row, : len(pair.chains)] = True
        return PairBatch(image_batch(self.records, image_rows, regions=regions), texts, Objects(words_BNT, regions_BNR, mask_BN))

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
        annotation, identity = self.annotations[pair.image], self.records[pair.image].image_id
        boxes_R4 = regions.boxes_BR7[row, regions.mask_BR[row], :4]
        size = (annotation.width, annotation.height)
        if self.phrase_regions == "iou":
            return overlapping_regions(boxes_R4, [annotation.boxes_of(chain) for chain in pair.chains], size)
        annotated_K4 = annotation.fractions_K4()
        fits = len(boxes_R4) >= len(annotated_K4)
        off_K = ((boxes_R4[: len(annotated_K4)] - annotated_K4) * torch.tensor([*size, *size])).abs().amax(1) if fits else None
        if off_K is None or bool((off_K > _PIXELS_OFF).any()):
            what = f"are {len(boxes_R4)}" if off_K is None else f"differ, first region {int((off_K > _PIXELS_OFF).nonzero()[0])}"
            raise InputError(
                f'image {identity}: phrase_regions "gt" takes region k for box k of the {len(annotated_K4)} in {identity}.xml, '
                f"but its regions in {self.reader.databases[0].path} {what}. Give features that were extracted from the "
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
