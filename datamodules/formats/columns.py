"""Columns of texts as arrays: how they are packed, and read row by row.

Legend: N values of a column, U bytes of UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Integers = npt.NDArray[np.int64]


# -------------------------------------------------------------------------------------------------------------- reading


class Column(Protocol):
    """Texts, by row."""

    def __getitem__(self, row: int) -> str | None: ...


class Texts:
    """Any texts: UTF-8 one behind the other [U], and where each begins and ends [N + 1]. Halves of characters, which names of
    files may have, are kept as they are."""

    __slots__ = ("_bounds", "_bytes")

    def __init__(self, bytes_U: Array, bounds: Array) -> None:
        self._bytes, self._bounds = bytes_U, bounds

    def __getitem__(self, row: int) -> str:
        return _decoded(self._bytes[self._bounds[row] : self._bounds[row + 1]].tobytes())

    def some(self, start: int, stop: int) -> list[str]:
        """Those of consecutive rows."""
        bounds = self._bounds[start : stop + 1].astype(np.int64)
        raw = self._bytes[bounds[0] : bounds[-1]].tobytes()
        places = pairwise((bounds - bounds[0]).tolist())
        if raw.isascii():  # a byte is a character: one decoding for all
            text = raw.decode("ascii")
            return [text[start:stop] for start, stop in places]
        return [_decoded(raw[start:stop]) for start, stop in places]


class _Numbers:
    """Texts that are whole numbers as Python writes them [N]."""

    __slots__ = ("_numbers",)

    def __init__(self, numbers: Array) -> None:
        self._numbers = numbers

    def __getitem__(self, row: int) -> str:
        return str(self._numbers[row])


class _Labels:
    """A few texts that come again and again, or none: which one [N], -1 for None."""

    __slots__ = ("_index", "_labels")

    def __init__(self, index: Array, labels: Texts) -> None:
        self._index, self._labels = index, labels

    def __getitem__(self, row: int) -> str | None:
        index = int(self._index[row])
        return None if index < 0 else self._labels[index]


def texts_of(arrays: Arrays, name: str) -> Texts:
    """A column that was packed as texts."""
    return Texts(arrays[f"{name}.bytes"], arrays[f"{name}.bounds"])


def column_of(arrays: Arrays, name: str) -> Column | None:
    """A column, however it was packed; None where there is none."""
    if f"{name}.numbers" in arrays:
        return _Numbers(arrays[f"{name}.numbers"])
    if f"{name}.index" in arrays:
        return _Labels(arrays[f"{name}.index"], texts_of(arrays, f"{name}.labels"))
    return texts_of(arrays, name) if f"{name}.bytes" in arrays else None


def lengths(bounds: Array) -> Integers:
    """Of stretches, from where they begin and end."""
    whole = bounds.astype(np.int64)
    return whole[1:] - whole[:-1]


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


# -------------------------------------------------------------------------------------------------------------- packing


def packed_bounds(lengths: Iterable[int]) -> Array:
    """Where stretches of these lengths, one behind the other, begin and end [N + 1]."""
    return narrow(np.fromiter(accumulate(lengths, initial=0), np.int64))


def narrow(bounds: Integers) -> Array:
    """In half the room, where they fit."""
    return bounds.astype(np.uint32) if bounds[-1] <= np.iinfo(np.uint32).max else bounds


def packed_texts(name: str, values: Iterable[str]) -> dict[str, Array]:
    """Any texts."""
    raw = [value.encode("utf-8", "surrogatepass") for value in values]
    return {f"{name}.bytes": np.frombuffer(b"".join(raw), np.uint8), f"{name}.bounds": packed_bounds(map(len, raw))}


def packed_ids(name: str, values: Sequence[str]) -> dict[str, Array]:
    """Texts that may all be numbers."""
    try:
        numbers = list(map(int, values))
        if all(str(number) == value for number, value in zip(numbers, values, strict=True)):
            return {f"{name}.numbers": np.array(numbers, np.int64)}
    except (ValueError, OverflowError):
        pass
    return packed_texts(name, values)


def packed_labels(name: str, values: Iterable[str | None]) -> dict[str, Array]:
    """A few texts that come again and again, or none."""
    known: dict[str, int] = {}
    index = [-1 if value is None else known.setdefault(value, len(known)) for value in values]
    return {f"{name}.index": np.array(index, np.int32), **packed_texts(f"{name}.labels", known)}
