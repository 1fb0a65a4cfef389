"""The splits of a data set as a kind of network sees them: images as files, or as regions in databases. No tensors.

What is read is kept, so that all tasks of one kind of images share it.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from datamodules.errors import InputError
from datamodules.files.origins import require_current
from datamodules.formats.beit3_index import BEIT3_IDS
from datamodules.formats.parsing import Parsed
from datamodules.formats.uniter.text_database import ORIGINS
from datamodules.loading.region_files import RegionFiles, RegionReader, named, read_text_databases, update_with_texts
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
        self._splits: dict[str, list[ImageRecord]] | None = None
        self._ready: dict[tuple[str, int | None], list[ImageRecord]] = {}
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

    def read(self) -> dict[str, list[ImageRecord]]:
        """All splits, before limits.

        Raises:
            InputError: as `parse`, or something is wrong with them.
        """
        if self._splits is None:
            parsed, self._file_ids = self.parse()
            self._splits = parsed.valid()
        return self._splits

    @property
    def file_ids(self) -> FileIds:
        """Whose token ids the captions are, if they are ids."""
        self.read()
        return self._file_ids

    def records(self, split: str, most: int | None) -> list[ImageRecord]:
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
    def _located(self, split: str, records: list[ImageRecord]) -> list[ImageRecord]:
        """The records, with all that the images of a batch are found by.

        Raises:
            InputError: some images are not there.
        """

    def options(self) -> dict[str, Any]:
        """What decides about the splits, for results and the fingerprint."""
        return self.source.options()

    def update(self, digest: hashlib._Hash) -> None:  # noqa: B027 - files are themselves
        """Adds what takes the place of the data set's files to a fingerprint."""


class FileSplits(Splits):
    """Images are files."""

    needs_image_files = True

    def _located(self, split: str, records: list[ImageRecord]) -> list[ImageRecord]:
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

    def parse(self) -> tuple[Parsed, FileIds]:
        self.files.require(self.source.root)
        if self.needs_annotation_files:
            return super().parse()
        try:
            of = [self.source.karpathy_file()]
        except InputError:  # a data set without one
            of = []
        for path in (path for paths in self.text_databases.values() for path in paths):
            remedy = f"Build it again: remove {path}, then `crosslight data text-db`."
            require_current(path / ORIGINS, [path / "data.mdb"], of, remedy)
        return read_text_databases(self.text_databases, self.source.root)

    def _located(self, split: str, records: list[ImageRecord]) -> list[ImageRecord]:
        return named(records, self.reader, self.source.region_prefixes, f"{self.source.name} {split}")

    def options(self) -> dict[str, Any]:
        own = super().options() if self.needs_annotation_files else {}
        return {**own, "regions": self.files.describe(self.source.root)}

    def update(self, digest: hashlib._Hash) -> None:
        self.reader.update(digest)
        update_with_texts(digest, self.text_databases)


def _require_images(place: str, records: Sequence[ImageRecord]) -> None:
    present: dict[Path, set[str]] = {}
    missing = []
    for record in records:
        if record.path is None:
            missing.append(record)
            continue
        folder = record.path.parent
        if folder not in present:
            present[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        if record.path.name not in present[folder]:
            missing.append(record)
    if missing:
        first = missing[0]
        raise InputError(
            f"{place}: {len(missing):,} of {len(records):,} image files are missing, first image {first.image_id}: "
            f"{first.path}. Put the images there or set image_dir; `crosslight data check` lists them all."
        )
