"""The records of a split as arrays: Python objects are made when they are asked for, and none is kept.

As objects COCO's 617,000 captions take a third of a gigabyte and Visual Genome's 5.4 million several, in each process anew; and
since Python counts references inside of objects, a data worker that only looks at them gets copies of its own. Arrays are
looked at by all processes in one place, and may lie in a file (record_file.py).

A table gives what the records gave that it was made of: the same ids, paths, texts, token ids, phrases and boxes.

Legend: I images, C captions, P phrases, K boxes of the split.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from datamodules.formats.columns import (
    Array,
    Arrays,
    Integers,
    column_of,
    lengths,
    narrow,
    packed_bounds,
    packed_ids,
    packed_labels,
    packed_texts,
    texts_of,
)
from datamodules.records import Box, Caption, ImageRecord, Phrase

_TOGETHER = 10_000  # texts that are made at once


# ------------------------------------------------------------------------------------------------------------- captions


class _CaptionSource(Protocol):
    def caption(self, row: int) -> Caption: ...


class CaptionRows(Sequence[Caption]):
    """The captions of one image, made when they are asked for. Equal to a tuple of them, and a tuple when it travels to another
    process."""

    __slots__ = ("source", "start", "stop")

    def __init__(self, source: _CaptionSource, start: int, stop: int) -> None:
        self.source, self.start, self.stop = source, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, index: int) -> Caption: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Caption, ...]: ...
    def __getitem__(self, index: int | slice) -> Caption | tuple[Caption, ...]:
        rows = range(self.start, self.stop)[index]
        return self.source.caption(rows) if isinstance(rows, int) else tuple(map(self.source.caption, rows))

    def __iter__(self) -> Iterator[Caption]:
        return map(self.source.caption, range(self.start, self.stop))

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, (tuple, CaptionRows)) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


class CaptionBlock:
    """Captions with numbers for ids, while millions of them are read: no object for any of them."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._bounds = array("q", [0])
        self._ids = array("q")

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, number: int, text: str) -> None:
        """One more.

        Raises:
            UnicodeEncodeError: The text has half a character; nothing was added.
        """
        raw = text.encode()
        self._ids.append(number)
        self._bytes += raw
        self._bounds.append(len(self._bytes))

    def caption(self, row: int) -> Caption:
        """By its place."""
        return Caption(str(self._ids[row]), self._bytes[self._bounds[row] : self._bounds[row + 1]].decode())

    def arrays(self) -> dict[str, Array]:
        """As a table has them. As long as these are there nothing can be added."""
        return {
            "caption_ids.numbers": np.frombuffer(self._ids, np.int64),
            "texts.bytes": np.frombuffer(self._bytes, np.uint8),
            "texts.bounds": narrow(np.frombuffer(self._bounds, np.int64)),
        }


# --------------------------------------------------------------------------------------------------------------- tables


class Records(Sequence[ImageRecord]):
    """Records that are made when they are asked for, and what can be had of all of them without making any.

    Equal to a list of the same records.
    """

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, (list, Records)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of a list

    @abstractmethod
    def image_ids(self) -> Iterator[str]:
        """The id of each image."""

    @abstractmethod
    def counts(self) -> Integers:
        """Captions of each image, int64 [I]."""

    @abstractmethod
    def texts(self) -> Iterator[list[str]]:
        """The texts of all captions in their order, some thousand at a time."""

    @abstractmethod
    def token_counts(self) -> Integers | None:
        """Token ids of each caption, int64 [C]; None where captions are text."""

    @abstractmethod
    def largest_token(self) -> int | None:
        """The largest of all token ids; None where there are none."""

    @abstractmethod
    def files(self) -> Iterator[tuple[str, str] | None]:
        """Folder and name of each image's file; None where it has none."""


@dataclass(frozen=True, slots=True)
class View:
    """What of a table is looked at, and how.

    Args:
        start: Its first image.
        stop: The one behind its last image.
        prefix: Put before each image's id.
        prefix_regions: Put it before the image's name in a database of region features, too.
    """

    start: int
    stop: int
    prefix: str = ""
    prefix_regions: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a table can be had in another process, which its arrays then need not travel to."""

    function: Callable[..., RecordTable]
    arguments: tuple[Any, ...]


class RecordTable(Records):
    """Records of a split in arrays.

    Args:
        arrays: All columns of the split, as `RecordTable.of` makes them.
        view: What of it; None is all.
        origin: What gives the whole table in another process.
    """

    def __init__(self, arrays: Arrays, view: View | None = None, origin: Origin | None = None) -> None:
        self.arrays, self._origin = arrays, origin
        self._first = arrays["captions.bounds"]
        self._view = view or View(0, len(self._first) - 1)
        self._image_ids, self._files = column_of(arrays, "image_ids"), texts_of(arrays, "files")
        self._folders, self._domains = column_of(arrays, "folders"), column_of(arrays, "domains")
        self._regions = column_of(arrays, "regions")
        self._caption_ids, self._texts = column_of(arrays, "caption_ids"), texts_of(arrays, "texts")
        self._tokens, self._token_bounds = arrays.get("tokens"), arrays.get("tokens.bounds")
        self._phrases = _Phrases(arrays) if "phrases.bounds" in arrays else None

    @classmethod
    def of(cls, records: Iterable[ImageRecord]) -> RecordTable | None:
        """The records as a table; None where arrays would lose something: some are of classes of their own, or some captions of
        the split are token ids and others are not."""
        arrays = _packed(records)
        return None if arrays is None else cls(arrays)

    # ----------------------------------------------------------------------------------------------------- other views

    @property
    def prefix(self) -> str:
        """What is put before each image's id."""
        return self._view.prefix

    def with_prefix(self, prefix: str, regions: bool = False) -> RecordTable:
        """With this before each image's id, and where asked for before its name in a database of region features."""
        return RecordTable(self.arrays, replace(self._view, prefix=prefix, prefix_regions=regions), self._origin)

    def with_regions(self, names: Sequence[str]) -> RecordTable:
        """With these names in a database of region features, one an image of this view."""
        whole = [""] * self._view.start + list(names) + [""] * (len(self._first) - 1 - self._view.stop)
        regions = packed_texts("regions", whole)
        origin = None if self._origin is None else Origin(_with_regions, (self._origin, regions))
        return RecordTable(_replaced_regions(self.arrays, regions), self._view, origin)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._origin is None:
            return RecordTable, (self.arrays, self._view)
        return _viewed, (self._origin, self._view)

    # -------------------------------------------------------------------------------------------------------- as records

    def __len__(self) -> int:
        return self._view.stop - self._view.start

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | Sequence[ImageRecord]:
        rows = range(self._view.start, self._view.stop)[index]
        if isinstance(rows, int):
            return self._record(rows)
        return self.between(rows.start, rows.stop) if rows.step == 1 else [self._record(row) for row in rows]

    def between(self, start: int, stop: int) -> RecordTable:
        """Images of the whole split, from and up to."""
        return RecordTable(self.arrays, replace(self._view, start=start, stop=max(start, stop)), self._origin)

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(self._record, range(self._view.start, self._view.stop))

    def _record(self, row: int) -> ImageRecord:
        view = self._view
        folder = None if self._folders is None else self._folders[row]
        regions = None if self._regions is None else self._regions[row]
        assert self._image_ids is not None
        return ImageRecord(
            f"{view.prefix}{self._image_ids[row]}",
            None if folder is None else Path(os.path.join(folder, self._files[row])),
            CaptionRows(self, int(self._first[row]), int(self._first[row + 1])),
            None if self._domains is None else self._domains[row],
            f"{view.prefix}{regions}" if regions is not None and view.prefix_regions else regions,
        )

    def caption(self, row: int) -> Caption:
        """The caption at a row of the whole split."""
        ids = None
        if self._tokens is not None and self._token_bounds is not None:
            ids = tuple(self._tokens[self._token_bounds[row] : self._token_bounds[row + 1]].tolist())
        phrases = () if self._phrases is None else self._phrases.of(row)
        assert self._caption_ids is not None
        return Caption(str(self._caption_ids[row]), self._texts[row], phrases, ids)

    # ------------------------------------------------------------------------------------------------ of all without any

    @property
    def _captions(self) -> tuple[int, int]:
        """Rows of this view's captions, from and up to."""
        return int(self._first[self._view.start]), int(self._first[self._view.stop])

    def image_ids(self) -> Iterator[str]:
        assert self._image_ids is not None
        return (f"{self._view.prefix}{self._image_ids[row]}" for row in range(self._view.start, self._view.stop))

    def counts(self) -> Integers:
        return lengths(self._first[self._view.start : self._view.stop + 1])

    def texts(self) -> Iterator[list[str]]:
        start, stop = self._captions
        for first in range(start, stop, _TOGETHER):
            yield self._texts.some(first, min(first + _TOGETHER, stop))

    def token_counts(self) -> Integers | None:
        start, stop = self._captions
        return None if self._token_bounds is None else lengths(self._token_bounds[start : stop + 1])

    def largest_token(self) -> int | None:
        if self._tokens is None or self._token_bounds is None:
            return None
        start, stop = self._captions
        tokens = self._tokens[self._token_bounds[start] : self._token_bounds[stop]]
        return int(tokens.max()) if len(tokens) else None

    def files(self) -> Iterator[tuple[str, str] | None]:
        for first in range(self._view.start, self._view.stop, _TOGETHER):
            last = min(first + _TOGETHER, self._view.stop)
            for row, name in zip(range(first, last), self._files.some(first, last), strict=True):
                folder = None if self._folders is None else self._folders[row]
                yield None if folder is None else (folder, name)


def _viewed(origin: Origin, view: View) -> RecordTable:
    return RecordTable(origin.function(*origin.arguments).arrays, view, origin)


def _with_regions(origin: Origin, regions: Arrays) -> RecordTable:
    return RecordTable(_replaced_regions(origin.function(*origin.arguments).arrays, regions))


def _replaced_regions(arrays: Arrays, regions: Arrays) -> Arrays:
    return {name: column for name, column in arrays.items() if not name.startswith("regions.")} | dict(regions)


class ChainedTables(Records):
    """Tables one behind the other.

    Args:
        tables: The parts.
    """

    def __init__(self, tables: Sequence[RecordTable]) -> None:
        self.tables = list(tables)
        self._first = list(accumulate(map(len, self.tables), initial=0))

    def __len__(self) -> int:
        return self._first[-1]

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | Sequence[ImageRecord]:
        rows = range(len(self))[index]
        if isinstance(rows, int):
            part = next(part for part in range(len(self.tables)) if rows < self._first[part + 1])
            return self.tables[part][rows - self._first[part]]
        if rows.step != 1:
            return [self[row] for row in rows]
        return ChainedTables(
            [
                table.between(*(table._view.start + min(max(row - first, 0), len(table)) for row in (rows.start, rows.stop)))
                for table, first in zip(self.tables, self._first, strict=False)
            ]
        )

    def __iter__(self) -> Iterator[ImageRecord]:
        return (record for table in self.tables for record in table)

    def image_ids(self) -> Iterator[str]:
        return (name for table in self.tables for name in table.image_ids())

    def counts(self) -> Integers:
        return np.concatenate([np.zeros(0, np.int64), *(table.counts() for table in self.tables)])

    def texts(self) -> Iterator[list[str]]:
        return (texts for table in self.tables for texts in table.texts())

    def token_counts(self) -> Integers | None:
        found = [table.token_counts() for table in self.tables if len(table)]
        counts = [each for each in found if each is not None]
        assert len(counts) in (0, len(found)), "parts have captions as text or as token ids, not both"
        return np.concatenate(counts) if counts else None

    def largest_token(self) -> int | None:
        return max((token for table in self.tables if (token := table.largest_token()) is not None), default=None)

    def files(self) -> Iterator[tuple[str, str] | None]:
        return (file for table in self.tables for file in table.files())


class _Phrases:
    """Phrases of captions with their boxes."""

    __slots__ = ("_bounds_C", "_bounds_P", "_boxes_K4", "_categories", "_chains", "_spans_P2")

    def __init__(self, arrays: Arrays) -> None:
        self._bounds_C, self._spans_P2 = arrays["phrases.bounds"], arrays["phrases.spans"]
        self._chains, self._categories = column_of(arrays, "phrases.chains"), column_of(arrays, "phrases.categories")
        self._bounds_P, self._boxes_K4 = arrays["boxes.bounds"], arrays["boxes"]

    def of(self, row: int) -> tuple[Phrase, ...]:
        """Those of a caption."""
        return tuple(map(self._phrase, range(int(self._bounds_C[row]), int(self._bounds_C[row + 1]))))

    def _phrase(self, row: int) -> Phrase:
        assert self._chains is not None
        assert self._categories is not None
        start, end = self._spans_P2[row].tolist()
        boxes = self._boxes_K4[self._bounds_P[row] : self._bounds_P[row + 1]].tolist()
        return Phrase(start, end, str(self._chains[row]), str(self._categories[row]), tuple(Box(*box) for box in boxes))


# -------------------------------------------------------------------------------------------------------------- packing


def _packed(records: Iterable[ImageRecord]) -> dict[str, Array] | None:
    """See `RecordTable.of`."""
    image_ids: list[str] = []
    folders: list[str | None] = []
    files: list[str] = []
    domains: list[str | None] = []
    regions: list[str | None] = []
    counts: list[int] = []
    captions, block = _CaptionsPacker(), _BlockPacker()
    for record in records:
        added = block.add(record.captions) or (block.block is None and captions.add(record.captions))
        if type(record) is not ImageRecord or not added:
            return None
        image_ids.append(record.image_id)
        folder, file = (None, "") if record.path is None else os.path.split(record.path)
        folders.append(folder)
        files.append(file)
        domains.append(record.domain)
        regions.append(record.regions)
        counts.append(len(record.captions))
    arrays = captions.arrays() if block.block is None else block.arrays() if not captions.ids else None
    if arrays is None:
        return None
    arrays |= {"captions.bounds": packed_bounds(counts), **packed_ids("image_ids", image_ids), **packed_texts("files", files)}
    for name, column in (("folders", folders), ("domains", domains)):
        if any(value is not None for value in column):
            arrays |= packed_labels(name, column)
    if given := [name for name in regions if name is not None]:
        arrays |= packed_texts("regions", given) if len(given) == len(regions) else packed_labels("regions", regions)
    return arrays


class _BlockPacker:
    """Captions that are in a block already, all of it and in its order."""

    def __init__(self) -> None:
        self.block: CaptionBlock | None = None
        self._stop = 0

    def add(self, captions: Sequence[Caption]) -> bool:
        """Those of one image; False where they are not the next ones of the block."""
        source = captions.source if isinstance(captions, CaptionRows) else None
        if not isinstance(captions, CaptionRows) or not isinstance(source, CaptionBlock) or captions.start != self._stop:
            return False
        if self.block not in (None, source):
            return False
        self.block, self._stop = source, captions.stop
        return True

    def arrays(self) -> dict[str, Array] | None:
        """The block's columns; None where it has more captions."""
        assert self.block is not None
        return self.block.arrays() if len(self.block) == self._stop else None


class _CaptionsPacker:
    """Captions on their way into columns."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._texts: list[str] = []
        self._tokens, self._token_counts = array("q"), array("q")
        self._phrases: list[Phrase] = []
        self._phrase_counts = array("q")

    def add(self, captions: Iterable[Caption]) -> bool:
        """Those of one image; False where columns would lose something of them."""
        for caption in captions:
            if type(caption) is not Caption or any(type(phrase) is not Phrase for phrase in caption.phrases):
                return False
            self.ids.append(caption.caption_id)
            self._texts.append(caption.text)
            if caption.token_ids is not None:
                self._tokens.extend(caption.token_ids)
                self._token_counts.append(len(caption.token_ids))
            self._phrases += caption.phrases
            self._phrase_counts.append(len(caption.phrases))
        return True

    def arrays(self) -> dict[str, Array] | None:
        """The columns; None where some captions have token ids and others have none."""
        arrays = {**packed_ids("caption_ids", self.ids), **packed_texts("texts", self._texts)}
        if self._token_counts:
            if len(self._token_counts) != len(self.ids):
                return None
            tokens = np.array(self._tokens, np.int64)
            small = not len(tokens) or tokens.max() <= np.iinfo(np.int32).max
            arrays["tokens"] = tokens.astype(np.int32) if small else tokens
            arrays["tokens.bounds"] = packed_bounds(self._token_counts)
        return arrays | self._phrase_arrays() if self._phrases else arrays

    def _phrase_arrays(self) -> dict[str, Array]:
        sides = [(box.left, box.top, box.right, box.bottom) for phrase in self._phrases for box in phrase.boxes]
        whole = all(type(side) is int for box in sides for side in box)
        return {
            "phrases.bounds": packed_bounds(self._phrase_counts),
            "phrases.spans": np.array([(phrase.start, phrase.end) for phrase in self._phrases], np.int64),
            **packed_ids("phrases.chains", [phrase.chain for phrase in self._phrases]),
            **packed_labels("phrases.categories", (phrase.category for phrase in self._phrases)),
            "boxes.bounds": packed_bounds(len(phrase.boxes) for phrase in self._phrases),
            "boxes": np.array(sides, np.int64 if whole else np.float64).reshape(-1, 4),
        }
