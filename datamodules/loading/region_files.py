"""Region features in place of pixels, as files: which databases a data set's regions are in, and what they call its images.

The databases are UNITER's (formats/uniter). An image database gives regions by image name; text databases, where there are any,
give the captions as word pieces together with the name of the image that each describes. No tensors here: see regions.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datamodules.errors import InputError
from datamodules.files.digests import digests
from datamodules.formats.parsing import Parsed
from datamodules.formats.record_table import RecordTable
from datamodules.formats.uniter.image_database import ImageDatabase, RegionFeatures
from datamodules.formats.uniter.layout import Layout, not_a_folder
from datamodules.formats.uniter.sources import Sources, read_sources
from datamodules.formats.uniter.text_database import TextDatabase
from datamodules.records import Caption, FileIds, ImageRecord

_PADDING = 0  # of every BERT vocabulary; the databases do not name it
_SUFFIX = ".npz"  # of the released image names


@dataclass(frozen=True)
class RegionFiles:
    """Where a data set's region features are, and its captions as word pieces if they come from files as well.

    Args:
        image_db: Folder of the image database, relative to root (or absolute). Several: an image is taken from the first that has
            it (COCO: [img_db/coco_train2014, img_db/coco_val2014]).
        kind: Which layout of it: "threshold" is the released `feat_th0.2_max100_min10`; "fixed" `feat_numbb36`; "all" `all`.
        conf_th: Of "threshold": counted are regions whose confidence is above it.
        max_bb: Of "threshold": at most so many regions an image.
        min_bb: Of "threshold": at least so many, whatever their confidence.
        num_bb: Of "fixed": so many.
        compressed: The layout whose name ends in `_compressed`.
        text_db: Text databases of every split, relative to root (or absolute): {train: [txt_db/itm_flickr30k_train.db], ...}.
            Splits, captions and image names are then theirs and no other file of the data set is needed; null takes captions
            from the data set's own files and finds an image's name in the database from its file name.
    """

    image_db: str | list[str]
    kind: Literal["threshold", "fixed", "all"] = "threshold"
    conf_th: float = 0.2
    max_bb: int = 100
    min_bb: int = 10
    num_bb: int = 36
    compressed: bool = False
    text_db: dict[str, list[str]] | None = None

    def __post_init__(self) -> None:
        if not self.image_db:
            raise InputError("regions.image_db names no image database; give its folder, for example img_db/flickr30k.")
        if self.text_db is not None and not all([self.text_db, *self.text_db.values()]):
            raise InputError(
                f"regions.text_db is {self.text_db}; give each split its text databases, or null for the data set's own captions."
            )
        _ = self.layout  # says what is out of range

    @property
    def layout(self) -> Layout:
        return Layout(self.kind, self.conf_th, self.max_bb, self.min_bb, self.num_bb, self.compressed)

    def image_paths(self, root: Path) -> list[Path]:
        """Folders of the image databases."""
        several = [self.image_db] if isinstance(self.image_db, str) else self.image_db
        return [root / Path(path).expanduser() for path in several]

    def text_paths(self, root: Path) -> dict[str, list[Path]]:
        """Folders of each split's text databases; empty without any."""
        return {split: [root / Path(path).expanduser() for path in paths] for split, paths in (self.text_db or {}).items()}

    def require(self, root: Path) -> None:
        """See that the folders are there.

        Raises:
            InputError: names those that are not, and where they come from.
        """
        texts = [path for paths in self.text_paths(root).values() for path in paths]
        for path in self.image_paths(root):
            if path.is_file():
                raise InputError(f"regions.image_db: {not_a_folder(path)}")
        missing = [path for path in (*self.image_paths(root), *texts) if not path.is_dir()]
        if missing:
            raise InputError(
                f"region databases are missing: {', '.join(map(str, missing))}. Fetch UNITER's (scripts/download_itm.sh of "
                "https://github.com/ChenRocks/UNITER), or make them: `crosslight data regions` writes image databases, "
                "`crosslight data text-db` text databases."
            )

    def describe(self, root: Path) -> dict[str, object]:
        """For results: the names of the databases and the layout (the place of the root does not matter)."""
        texts = {split: [path.name for path in paths] for split, paths in self.text_paths(root).items()}
        return {
            "image_db": [path.name for path in self.image_paths(root)],
            "layout": self.layout.folder,
            "text_db": texts or None,
        }


class RegionReader:
    """Regions by image name, from one image database or several. Goes into data workers: see `ImageDatabase`. As tensors:
    `padded` of regions.py.

    Args:
        paths: Folders of the databases; the first that has an image gives it.
        layout: Of all of them.

    Raises:
        InputError: a database is missing or damaged, or two are of different feature widths.
    """

    def __init__(self, paths: Sequence[Path], layout: Layout) -> None:
        self.databases = [ImageDatabase(path, layout) for path in paths]
        self.feature_width = self.databases[0].feature_width
        self._database_of: dict[str, int] = {}
        self._sources: dict[int, dict[str, Sources]] = {}
        for number, database in enumerate(self.databases):
            if database.feature_width != self.feature_width:
                raise InputError(
                    f"image database {database.folder} has features of width {database.feature_width}, "
                    f"{self.databases[0].folder} of {self.feature_width}: they come from different extractors; give those of one."
                )
            for name in database.names():
                self._database_of.setdefault(name, number)

    def require_width(self, feature_width: int) -> None:
        """See that the features are what a network takes.

        Raises:
            InputError: they are of another width.
        """
        if feature_width != self.feature_width:
            raise InputError(
                f"image database {self.databases[0].folder} has features of width {self.feature_width}, and the network takes "
                f"{feature_width}: they come from another extractor. Give the network's database, or set its feature_width."
            )

    def __contains__(self, name: str) -> bool:
        return name in self._database_of

    def _database(self, name: str) -> ImageDatabase:
        # A name that no database has: the last one's error names what it has instead.
        return self.databases[self._database_of.get(name, -1)]

    def most_regions(self, name: str) -> int:
        """How many regions an image has, or a few more where the database miscounts; quick.

        Raises:
            InputError: no database has the image.
        """
        return self._database(name).most_regions(name)

    def read(self, name: str, classes: int | None = None) -> RegionFeatures:
        """The regions of an image as its database stores them, with the probabilities of so many classes where that is given.

        Raises:
            InputError: no database has the image, its value is damaged, or it has no such probabilities.
        """
        return self._database(name).read(name, as_stored=True, classes=classes)

    def photograph(self, name: str) -> str | None:
        """Digest (`files.digests`) of the photograph that an image's regions were made of, where its database says so."""
        number = self._database_of.get(name, -1)
        if number not in self._sources:
            self._sources[number] = read_sources(self.databases[number].folder)
        return self._sources[number].get(name, (None, None))[0]

    def update(self, digest: hashlib._Hash) -> None:
        """Adds the databases to a fingerprint: their names, and the contents of their files."""
        for database in self.databases:
            name = database.layout.counts_file
            files = [database.folder / "data.mdb", *([database.path / name] if name is not None else [])]
            contents = digests(files)
            digest.update(json.dumps([database.path.name, database.layout.folder, *map(contents.get, files)]).encode())


# ------------------------------------------------------------------------------------------------- records with regions


def named(records: Sequence[ImageRecord], reader: RegionReader, prefixes: Sequence[str], place: str) -> Sequence[ImageRecord]:
    """The records with the names that their images have in the databases.

    A record that has a name keeps it. Otherwise it is, in this order, that of the file (`1000092795.npz` of 1000092795.jpg), or
    the released one, of a prefix and the number at the end of the file's name (`flickr30k_001000092795.npz`).

    Raises:
        InputError: an image has no regions; `place` says which split.
    """
    names = [name_of(record, reader, prefixes) for record in records]
    if lacking := [row for row, name in enumerate(names) if name is None]:
        first = records[lacking[0]]
        there = "; ".join(
            f"{database.folder} has {len(database.names()):,} images, the first {next(iter(database.names()), None)!r}"
            for database in reader.databases
        )
        raise InputError(
            f"{place}: {len(lacking):,} of {len(records):,} images have no regions, first image {first.image_id}, looked for as "
            f"{' and '.join(_candidates(first, prefixes))}: {there}. Extract the missing ones, or set regions.image_db (all "
            "databases of the data set) and regions.text_db (which names the images as its image database does)."
        )
    if isinstance(records, RecordTable):
        return records.with_regions([str(name) for name in names])
    return [replace(record, regions=name) for record, name in zip(records, names, strict=True)]


def name_of(record: ImageRecord, reader: RegionReader, prefixes: Sequence[str]) -> str | None:
    """The name of a record's image in the databases, None if it is in none (see `named`)."""
    return next((name for name in _candidates(record, prefixes) if name in reader), None)


def _candidates(record: ImageRecord, prefixes: Sequence[str]) -> list[str]:
    if record.regions is not None:
        return [record.regions]
    stem = record.path.stem if record.path is not None else record.image_id
    number = re.search(r"\d+$", stem)
    return [f"{stem}{_SUFFIX}", *(f"{prefix}_{int(number[0]):012d}{_SUFFIX}" for prefix in prefixes if number)]


def read_text_databases(files: Mapping[str, Sequence[Path]], root: Path) -> tuple[Parsed, FileIds]:
    """The splits of text databases, and whose ids their captions are.

    An image's id is its name in the image database without .npz; images come in the order of img2txts.json. A caption's id is the
    text's; where two databases of one split use one id for two texts, the later one's gets its folder's name in front.

    Raises:
        InputError: a database is missing or damaged, or two are of different vocabularies.
    """
    parsed = Parsed(root)
    same: dict[int, int] = {}  # one object for each id, not one for each word of each caption
    first: FileIds | None = None
    for split, paths in files.items():
        records = parsed.splits.setdefault(split, [])
        images: set[str] = set()
        texts: set[str] = set()
        for path in paths:
            database = TextDatabase(path)
            its = _file_ids(database)
            first = first or its
            if replace(its, maker=first.maker) != first:
                raise InputError(f"of different vocabularies: {first} and {its}; build one of the two text databases again.")
            for name, text_ids in database.image_texts.items():
                if name in images:
                    parsed.add("duplicated id", f"{path.name} repeats image {name} of split {split}")
                images.add(name)
                if not text_ids:
                    parsed.add("image without captions", f"image {name} of {path.name}")
                captions = []
                for text_id in text_ids:
                    entry = database.read(text_id)
                    if not entry.input_ids:
                        parsed.add("empty caption", f"text {text_id} of {path.name}")
                    caption_id = text_id if text_id not in texts else f"{path.name}/{text_id}"
                    texts.add(text_id)
                    ids = tuple(map(same.setdefault, entry.input_ids, entry.input_ids))
                    captions.append(Caption(caption_id, entry.text or "", token_ids=ids))
                records.append(ImageRecord(name.removesuffix(_SUFFIX), None, tuple(captions), regions=name))
    assert first is not None, "no text database"
    return parsed, first


def _file_ids(database: TextDatabase) -> FileIds:
    words = database.vocabulary
    special = (words.cls, _PADDING, words.sep, words.unk)
    return FileIds(f"{database.path} ({words.tokenizer})", *special, words.size, words.mask, words.first_word)


def text_database_files(path: Path) -> list[Path]:
    """The files of a text database."""
    return [path / name for name in ("data.mdb", "meta.json", "id2len.json", "txt2img.json", "img2txts.json")]


def update_with_texts(digest: hashlib._Hash, files: Mapping[str, Sequence[Path]]) -> None:
    """Adds text databases to a fingerprint: their names, and the contents of their files."""
    for split, paths in files.items():
        for path in paths:
            parts = text_database_files(path)
            contents = digests(parts)
            digest.update(json.dumps([split, path.name, *map(contents.get, parts)]).encode())
