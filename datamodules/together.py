"""Several data sets as one: their training images together, for pre-training (COCO and Visual Genome, as UNITER)."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.formats.parsing import Parsed
from datamodules.formats.record_table import ChainedTables, RecordTable
from datamodules.formats.uniter.image_database import RegionFeatures
from datamodules.image_text import ImageTextDataModule
from datamodules.loading.region_files import RegionReader, named
from datamodules.loading.splits import FileSplits, RegionSplits
from datamodules.records import FileIds, ImageRecord


class Together(ImageTextDataModule):
    """The training images of several data sets, one behind the other; what is validated and tested on is that of the first one
    that has such a split. An image's id has the name of its part in front: coco/9.

    With `train_unit` image each image is seen once an epoch with one of its captions: so COCO and Visual Genome, of about as many
    images, weigh the same, though one has five captions an image and the other fifty. An image that is in two parts is there
    twice. What other data sets evaluate on is kept out by the parts (`held_out` of COCO and Visual Genome).

    Args:
        parts: The data sets, by names of your choice, in this order, with the options of their files (`root`, `image_dir`,
            `regions`, splits, `held_out`); how batches are made is said here.
        options: Of all image-text data modules, but for root, image_dir and regions, which are the parts'.

    Raises:
        InputError: no part, or one with an option that acts on nothing here (`batch_size`, `limits`, `positives`).
    """

    def __init__(self, parts: dict[str, ImageTextDataModule], **options: Any) -> None:
        super().__init__(root=".", image_dir=".", regions=None, **options)
        if not parts:
            raise InputError("parts is empty; name at least one data set.")
        for name, part in parts.items():
            if "/" in name or not name:
                raise InputError(f"parts: {name!r} is no name of a part; give one without a slash.")
            _require_none_idle(name, part)
        self.parts = parts
        self.name = "+".join(part.name for part in parts.values())  # type: ignore[misc]
        self.file_splits = JoinedFiles(self, parts)
        self.region_splits = JoinedRegions(self, parts)

    @property
    def stand_in(self) -> bool:
        """Whether one of the parts is."""
        return any(part.stand_in for part in self.parts.values())

    def prepare_data(self) -> None:
        """As each part."""
        for part in self._told():
            part.prepare_data()

    def require_files(self) -> None:
        """As each part."""
        for part in self._told():
            part.require_files()

    def _told(self) -> list[ImageTextDataModule]:
        """The parts, which look at the Trainer's network for what files they need."""
        for part in self.parts.values():
            part.trainer = self.trainer
        return list(self.parts.values())

    def annotation_files(self) -> list[Path]:
        return [path for part in self.parts.values() for path in part.annotation_files()]

    def options(self) -> dict[str, Any]:
        return {name: part.options() for name, part in self.parts.items()}

    def notes(self) -> list[str]:
        return [note for part in self.parts.values() for note in part.notes()]

    def parse(self) -> Parsed:
        parts = {name: part.parse() for name, part in self.parts.items()}
        whole = Parsed(next(iter(parts.values())).path)
        whole.splits = {
            split: list(records) for split, records in joined({name: part.splits for name, part in parts.items()}).items()
        }
        whole.problems = [problem for part in parts.values() for problem in part.problems]
        return whole


def _require_none_idle(name: str, part: ImageTextDataModule) -> None:
    """Raises InputError: a part has an option that acts on nothing, since batches are made, and tested, of the whole."""
    idle = {option: value for option, value in part.batch_options().items() if value != _default(type(part), option)}
    for option, value in idle.items():
        said = f" ({value})" if isinstance(value, str | int | float) else ""
        raise InputError(
            f"parts.{name} has {option}{said}, which acts on nothing: batches are made of the data sets together. Give {option} "
            "beside parts, or leave it out."
        )
    if part.positives:
        raise InputError(
            f"parts.{name} has positives ({', '.join(part.positives)}), which act on nothing among other data sets: leave them "
            "out, and test on the data set by itself."
        )


def _default(kind: type, option: str) -> Any:
    """What an option of a data set is where nothing is said, in the first of its classes that names it."""
    named = (inspect.signature(vars(each)["__init__"]).parameters for each in kind.__mro__ if "__init__" in vars(each))
    return next(parameters[option].default for parameters in named if option in parameters)


def joined(parts: Mapping[str, Mapping[str, Sequence[ImageRecord]]]) -> dict[str, Sequence[ImageRecord]]:
    """Training splits one behind the other, and of the others the first there is; ids of images with the part's name in front.
    (Captions keep theirs, which are each part's own.)"""
    whole: dict[str, dict[str, Sequence[ImageRecord]]] = {}
    for name, splits in parts.items():
        for split, records in splits.items():
            if split == "train" or split not in whole:
                whole.setdefault(split, {})[name] = records
    return {split: _one_behind_the_other(its) for split, its in whole.items()}


def _one_behind_the_other(parts: Mapping[str, Sequence[ImageRecord]]) -> Sequence[ImageRecord]:
    if any(isinstance(records, RecordTable) for records in parts.values()):  # no record is kept, of a small part neither
        tables = [
            table.with_prefix(f"{name}/")
            for name, records in parts.items()
            if (table := records if isinstance(records, RecordTable) else RecordTable.of(records)) is not None
        ]
        if len(tables) == len(parts):
            return ChainedTables(tables)
    return [replace(record, image_id=f"{name}/{record.image_id}") for name, records in parts.items() for record in records]


class JoinedFiles(FileSplits):
    """Images of the parts' files.

    Args:
        source: The whole.
        parts: The data sets.
    """

    def __init__(self, source: Together, parts: Mapping[str, ImageTextDataModule]) -> None:
        super().__init__(source)
        self.parts = {name: part.file_splits for name, part in parts.items()}

    def read(self) -> Mapping[str, Sequence[ImageRecord]]:
        if self._splits is None:  # each part says what is wrong with it
            self._splits = joined({name: part.read() for name, part in self.parts.items()})
        return self._splits


class JoinedRegions(RegionSplits):
    """Regions of the parts' databases, and captions as the parts have them.

    Args:
        source: The whole.
        parts: Each with its option `regions`.
    """

    def __init__(self, source: Together, parts: Mapping[str, ImageTextDataModule]) -> None:
        super().__init__(source, None)
        self.parts = {name: part.region_splits for name, part in parts.items()}

    @property
    def is_set(self) -> bool:
        return all(part.is_set for part in self.parts.values())

    @cached_property
    def reader(self) -> RegionReader:
        return JoinedReader({name: part.reader for name, part in self.parts.items()})

    @property
    def text_databases(self) -> dict[str, list[Path]]:
        return {}

    @property
    def needs_annotation_files(self) -> bool:
        return any(part.needs_annotation_files for part in self.parts.values())

    def read(self) -> Mapping[str, Sequence[ImageRecord]]:
        """Raises InputError: as the parts, or one has its captions as ids of word pieces, and another as text or other ids."""
        if self._splits is None:
            found = {name: part.read() for name, part in self.parts.items()}
            kinds: dict[str, FileIds | None] = {}
            for name, splits in found.items():
                captions = next((records[0].captions[:1] for records in splits.values() if records), ())
                kinds[name] = self.parts[name].file_ids if any(each.token_ids is not None for each in captions) else None
            ids = {replace(its, maker="") for its in kinds.values() if its is not None}
            if len(ids) > 1 or (ids and None in kinds.values()):
                told = ", ".join(f"{name}: {'text' if its is None else its.maker}" for name, its in kinds.items())
                raise InputError(f"the parts have captions of different kinds ({told}): set regions.text_db of all to null.")
            self._splits, self._file_ids = joined(found), next(iter(self.parts.values())).file_ids
        return self._splits

    def _located(self, split: str, records: Sequence[ImageRecord]) -> Sequence[ImageRecord]:
        if isinstance(records, ChainedTables):
            by_name = {table.prefix.removesuffix("/"): table.with_prefix("") for table in records.tables}
            found = {name: self._named(name, split, table) for name, table in by_name.items()}
            tables = {name: own for name, own in found.items() if isinstance(own, RecordTable)}
            return ChainedTables([own.with_prefix(f"{name}/", regions=True) for name, own in tables.items()])
        whole: list[ImageRecord] = []
        for name in self.parts:
            own = [record for record in records if record.image_id.startswith(f"{name}/")]
            bare = [replace(record, image_id=record.image_id.removeprefix(f"{name}/")) for record in own]
            whole += [
                replace(record, image_id=f"{name}/{record.image_id}", regions=f"{name}/{record.regions}")
                for record in self._named(name, split, bare)
            ]
        return whole

    def _named(self, name: str, split: str, records: Sequence[ImageRecord]) -> Sequence[ImageRecord]:
        part = self.parts[name]
        return named(records, part.reader, part.source.region_prefixes, f"{part.source.name} {split}")

    def options(self) -> dict[str, Any]:
        return {name: part.options() for name, part in self.parts.items()}

    def update(self, digest: hashlib._Hash) -> None:
        for part in self.parts.values():
            part.update(digest)


class JoinedReader(RegionReader):
    """Regions by PART/NAME.

    Args:
        readers: Of the parts.

    Raises:
        InputError: two have features of different widths.
    """

    def __init__(self, readers: Mapping[str, RegionReader]) -> None:
        self.readers = dict(readers)
        self.databases = [database for reader in readers.values() for database in reader.databases]
        self.feature_width = self.databases[0].feature_width
        for name, reader in readers.items():
            if reader.feature_width != self.feature_width:
                raise InputError(
                    f"parts.{name} has region features of width {reader.feature_width}, the part before it of "
                    f"{self.feature_width}: they come from different extractors; give databases of one."
                )

    def _its(self, name: str) -> tuple[RegionReader, str]:
        part, _, own = name.partition("/")
        return self.readers[part], own

    def __contains__(self, name: str) -> bool:
        reader, own = self._its(name)
        return own in reader

    def most_regions(self, name: str) -> int:
        reader, own = self._its(name)
        return reader.most_regions(own)

    def read(self, name: str, classes: int | None = None) -> RegionFeatures:
        reader, own = self._its(name)
        return reader.read(own, classes)

    def photograph(self, name: str) -> str | None:
        reader, own = self._its(name)
        return reader.photograph(own)

    def update(self, digest: hashlib._Hash) -> None:
        for reader in self.readers.values():
            reader.update(digest)
