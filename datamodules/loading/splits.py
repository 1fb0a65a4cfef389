"""The splits of a data set as a kind of network sees them: images as files, or as regions in databases. No tensors.

What is read is kept, so that all tasks of one kind of images share it; of data sets of some size on the disk, too, so that other
processes and later starts do (kept_records.py). Their records are made when they are asked for; a small one's are a list.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from datamodules.errors import InputError
from datamodules.files.origins import require_current
from datamodules.formats.beit3_index import BEIT3_IDS
from datamodules.formats.parsing import Parsed
from datamodules.formats.uniter.text_database import ORIGINS
from datamodules.loading.kept_records import Origins, ReadSplits, read_splits
from datamodules.loading.region_files import (
    RegionFiles,
    RegionReader,
    named,
    read_text_databases,
    text_database_files,
    update_with_texts,
)
from datamodules.loading.whole_split import files_of
from datamodules.records import FileIds, ImageRecord
from datamodules.source import Source


class Splits(ABC):
    """What a data set's files give to networks of one kind.

    Args:
        source: The data set.
    """

    needs_image_files: ClassVar[bool]
    """Whether anything is made of the image files themselves."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._splits: Mapping[str, Sequence[ImageRecord]] | None = None
        self._ready: dict[tuple[str, int | None], Sequence[ImageRecord]] = {}
        self._file_ids = BEIT3_IDS

    @property
    def needs_annotation_files(self) -> bool:
        """Whether captions come from the data set's own files."""
        return True

    def parse(self) -> tuple[Parsed, FileIds]:
        """All splits and what is wrong with them, and whose token ids the captions are if they are ids.

        Raises:
            InputError: files are missing or damaged.
        """
        return self.source.parse(), BEIT3_IDS

    def require(self) -> None:
        """See that everything that `parse` reads is there, and fits together.

        Raises:
            InputError: it is not.
        """
        self.source.require_files()

    def origins(self) -> Origins | None:
        """What decides what `parse` gives; None: nobody can say."""
        return None

    def read(self) -> Mapping[str, Sequence[ImageRecord]]:
        """All splits, before limits.

        Raises:
            InputError: as `parse`, or something is wrong with them.
        """
        if self._splits is None:
            self.require()
            read = read_splits(self.origins() if _is_ours(type(self), Splits, "origins") else None, self._parsed)
            self._splits, self._file_ids = read.splits, FileIds(**read.facts["file_ids"])
            self.source.recall(read.facts["source"])
        return self._splits

    def _parsed(self) -> ReadSplits:
        parsed, file_ids = self.parse()
        return ReadSplits(parsed.valid(), {"file_ids": asdict(file_ids), "source": self.source.remembered()})

    @property
    def file_ids(self) -> FileIds:
        """Whose token ids the captions are, if they are ids."""
        self.read()
        return self._file_ids

    def records(self, split: str, most: int | None) -> Sequence[ImageRecord]:
        """The first images of a split, `most` of them, None for all; row i of the split is element i.

        Raises:
            InputError: the data set has no such split, or images are missing.
        """
        splits = self.read()
        if split not in splits:
            sources = self.source.annotation_files() if self.needs_annotation_files else ["regions.text_db"]
            has = ", ".join(f"{name} ({len(records):,} images)" for name, records in splits.items()) or "none"
            raise InputError(f"{self.source.name} has no split {split!r}: {', '.join(map(str, sources))} give(s) {has}.")
        if (split, most) not in self._ready:
            self._ready[split, most] = self._located(split, splits[split][:most])
        return self._ready[split, most]

    @abstractmethod
    def _located(self, split: str, records: Sequence[ImageRecord]) -> Sequence[ImageRecord]:
        """The records, with all that the images of a batch are found by.

        Raises:
            InputError: some images are not there.
        """

    def options(self) -> dict[str, Any]:
        """What decides about the splits, for results and the fingerprint."""
        return self.source.options()

    def update(self, digest: hashlib._Hash) -> None:  # noqa: B027 - files are themselves
        """Adds what takes the place of the data set's files to a fingerprint."""


def _is_ours(kind: type, base: type, method: str) -> bool:
    """Whether a class's word counts for what it does: nothing of another package is beside it that does not say so itself."""
    for each in kind.__mro__:
        if each is base or method in vars(each):
            return True
        if not each.__module__.startswith("datamodules."):
            return False
    return False


def _origins_of(source: Source) -> Origins | None:
    """What decides what parsing a data set's own files gives."""
    options = source.parse_options() if _is_ours(type(source), Source, "parse_options") else None
    code = _own_code(type(source))
    if options is None or code is None:
        return None
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    return Origins(source.name, list(source.parsed_files()), {"class": kind, **({"code": code} if code else {}), **options})


def _own_code(kind: type) -> list[str] | None:
    """SHA-256 of the files of a class and its bases that are a user's own, whose number of a version could be forgotten; None
    where one has no file, as in a notebook."""
    theirs = {"datamodules", "lightning", *sys.stdlib_module_names}
    found = []
    for each in kind.__mro__:
        if each.__module__.partition(".")[0] not in theirs:
            try:
                found.append(hashlib.sha256(Path(inspect.getfile(each)).read_bytes()).hexdigest())
            except (TypeError, OSError):
                return None
    return found


class FileSplits(Splits):
    """Images are files."""

    needs_image_files = True

    def origins(self) -> Origins | None:
        return _origins_of(self.source)

    def _located(self, split: str, records: Sequence[ImageRecord]) -> Sequence[ImageRecord]:
        _require_images(f"{self.source.name} {split}", records)
        return records


class RegionSplits(Splits):
    """Images are regions in databases; captions are those of text databases, where there are any and the data set's own say no
    more than they (`Source.own_captions`).

    Args:
        source: The data set.
        files: The databases; None: the option is not set, which is an error once they are asked for.
    """

    needs_image_files = False

    def __init__(self, source: Source, files: RegionFiles | None) -> None:
        super().__init__(source)
        self._files = files

    @property
    def is_set(self) -> bool:
        """Whether the option is set."""
        return self._files is not None

    @property
    def files(self) -> RegionFiles:
        """The databases.

        Raises:
            InputError: the option is not set.
        """
        if self._files is None:
            raise InputError(
                f"the network takes region features in place of pixels, and {type(self.source).__name__} was not told where they "
                "are: set its option regions, at least {image_db: FOLDER}, or choose a network that takes pixels."
            )
        return self._files

    @cached_property
    def reader(self) -> RegionReader:
        """The regions.

        Raises:
            InputError: the option is not set, or a database is missing or damaged.
        """
        self.files.require(self.source.root)
        return RegionReader(self.files.image_paths(self.source.root), self.files.layout)

    @property
    def text_databases(self) -> dict[str, list[Path]]:
        """Folders of each split's text databases; empty without any."""
        return self.files.text_paths(self.source.root)

    @property
    def needs_annotation_files(self) -> bool:
        return self.source.own_captions or self._files is None or self._files.text_db is None

    def require(self) -> None:
        self.files.require(self.source.root)
        if self.needs_annotation_files:
            super().require()
            return
        try:
            of = [self.source.karpathy_file()]
        except InputError:  # a data set without one
            of = []
        for path in (path for paths in self.text_databases.values() for path in paths):
            remedy = f"Build it again: remove {path}, then `crosslight data text-db`."
            require_current(path / ORIGINS, [path / "data.mdb"], of, remedy)

    def origins(self) -> Origins | None:
        if self.needs_annotation_files:
            return _origins_of(self.source)
        folders = {split: [str(path) for path in paths] for split, paths in self.text_databases.items()}
        files = [file for paths in self.text_databases.values() for path in paths for file in text_database_files(path)]
        return Origins(f"{self.source.name}-text", files, {"root": str(self.source.root), "text_db": folders})

    def parse(self) -> tuple[Parsed, FileIds]:
        self.require()
        if self.needs_annotation_files:
            return super().parse()
        return read_text_databases(self.text_databases, self.source.root)

    def _located(self, split: str, records: Sequence[ImageRecord]) -> Sequence[ImageRecord]:
        return named(records, self.reader, self.source.region_prefixes, f"{self.source.name} {split}")

    def options(self) -> dict[str, Any]:
        own = super().options() if self.needs_annotation_files else {}
        return {**own, "regions": self.files.describe(self.source.root)}

    def update(self, digest: hashlib._Hash) -> None:
        self.reader.update(digest)
        update_with_texts(digest, self.text_databases)


def _require_images(place: str, records: Sequence[ImageRecord]) -> None:
    present: dict[str, set[str]] = {}
    missing = []
    for row, file in enumerate(files_of(records)):
        if file is not None:
            folder, name = file
            if folder not in present:
                present[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
            if name in present[folder]:
                continue
        missing.append(row)
    if missing:
        first = records[missing[0]]
        raise InputError(
            f"{place}: {len(missing):,} of {len(records):,} image files are missing, first image {first.image_id}: "
            f"{first.path}. Put the images there or set image_dir; `crosslight data check` lists them all."
        )
