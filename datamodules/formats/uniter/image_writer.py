"""Writes image databases of UNITER's layouts; what an interrupted writer has put there stays."""

from __future__ import annotations

import contextlib
import errno
import io
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack  # type: ignore[import-untyped]
import msgpack_numpy  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.json_file import read_json
from datamodules.formats.uniter.image_database import Floats, checked_counts, decode_regions, read_arrays
from datamodules.formats.uniter.layout import Layout
from datamodules.formats.uniter.lmdb_file import (
    KEYS,
    Environment,
    environment_of,
    open_for_writing,
    put_value,
)
from datamodules.formats.uniter.sources import Sources, append_sources, read_sources


class ImageDatabaseWriter:
    """Writes an image database, or goes on with one: names that are in it already are skipped.

    What was committed survives a kill of the process at any moment, and can be read: images and their region counts are
    committed together every `commit_every` images, the list of names when the writer is closed.

    Args:
        path: the database's folder; made when missing.
        layout: what to keep of each image, and where. "threshold" and "fixed" order regions by falling confidence, as the
            released extractor does; "all" keeps the order given.
        commit_every: images a commit.

    Raises:
        InputError: the database there is damaged, or open in this process; or, here and in all that writes, the disk is full or
            refuses.
    """

    # Fewer where images are large: what is not committed yet is held in memory.
    COMMIT_BYTES = 64 * 1024**2

    def __init__(self, path: Path, layout: Layout | None = None, commit_every: int = 64) -> None:
        self.path, self.layout, self._commit_every = Path(path), layout or Layout(), commit_every
        self.folder = self.path / self.layout.folder
        with self._on_disk():
            self.folder.mkdir(parents=True, exist_ok=True)
        self._pending: dict[str, bytes] = {}
        self._pending_counts: dict[str, int] = {}
        self._pending_sources: dict[str, Sources] = {}
        self._counts, self._width = self._existing()
        self._sources = read_sources(self.folder)
        self._listed = False
        with self._on_disk():
            self._environment = open_for_writing(self.folder)
            try:
                self._write_counts()
            except OSError:
                self._environment.close()
                raise

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """What the disk refuses, in a line."""
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise InputError(
                f"{self.folder} cannot be written ({'the disk is full' if full else error.strerror or error}). "
                f"{'Free some space' if full else 'See to the disk'} and start again: what was committed is there, and it goes "
                "on from that."
            ) from error

    def _existing(self) -> tuple[dict[str, int], int | None]:
        """Region counts by name and the feature width of what is there already."""
        if not (self.folder / "data.mdb").exists():
            return {}, None
        environment = environment_of(self.folder, f"the LMDB file of layout {self.layout.folder}")
        file = None if self.layout.counts_file is None else self.path / self.layout.counts_file
        known: dict[str, int] = {}
        if file is not None and file.exists():
            known = checked_counts(read_json(file, "the number of regions of every image"), file, None)
        there = {key.decode("utf-8", "replace") for key in environment.all_keys() if key != KEYS}
        counts = {name: count for name, count in known.items() if name in there}
        width = None
        # A kill between a commit and its counts leaves images uncounted; a layout without counts has all of them uncounted,
        # which only needs their names.
        uncounted = sorted(there - counts.keys())
        for name in uncounted if file is not None else ():
            counts[name] = len(self._stored(environment, name)[2])
        if file is None:
            counts |= dict.fromkeys(uncounted, 0)
        if counts:
            width = self._stored(environment, next(iter(counts)))[0].shape[1]
        return counts, width

    def _stored(self, environment: Environment, name: str) -> tuple[Floats, Floats, Floats]:
        place = f"{self.folder}: image {name}"
        return decode_regions(read_arrays(environment.get(name.encode()) or b"", self.layout.compressed, place), place)

    def __contains__(self, name: str) -> bool:
        return name in self._counts or name in self._pending_counts

    def __len__(self) -> int:
        return len(self._counts) + len(self._pending_counts)

    def add(
        self,
        name: str,
        features_RD: npt.ArrayLike,
        boxes: npt.ArrayLike,
        confidences_R: npt.ArrayLike,
        soft_labels_RC: npt.ArrayLike | None = None,
        sources: Sources | None = None,
    ) -> bool:
        """Writes an image's regions; False if it is there already, and nothing is written.

        Args:
            name: the key, 1 to 511 bytes; the released ones end in `.npz`.
            features_RD: [R, D].
            boxes: [R, 4] (left, top, right, bottom) or [R, 6] (and width, height), as fractions of the image.
            confidences_R: [R], 0..1.
            soft_labels_RC: [R, C], the detector's class probabilities (UNITER's pre-training uses them).
            sources: what they were made of.

        Raises:
            InputError: no regions, shapes that do not fit, boxes outside of the image, values that fp16 cannot hold, or another
                feature width than the database's.
        """
        if name in self:
            return False
        place = f"{self.folder}: image {name}"
        if not 1 <= len(name.encode()) <= 511 or name == KEYS.decode():
            raise InputError(f"{place}: a name has 1 to 511 bytes and is not {KEYS.decode()!r}.")
        features, four_or_six = np.asarray(features_RD, np.float32), np.asarray(boxes, np.float32)
        if four_or_six.ndim == 2 and four_or_six.shape[1] == 4:
            four_or_six = np.concatenate([four_or_six, four_or_six[:, 2:] - four_or_six[:, :2]], axis=1)
        arrays = {"features": features, "norm_bb": four_or_six, "conf": np.asarray(confidences_R, np.float32)}
        features, six, confidences = decode_regions(arrays, place)
        if soft_labels_RC is not None:
            arrays["soft_labels"] = np.asarray(soft_labels_RC, np.float32)
            if arrays["soft_labels"].ndim != 2 or len(arrays["soft_labels"]) != len(features):
                raise InputError(f"{place}: soft labels {arrays['soft_labels'].shape} for {len(features)} regions.")
        if self._width is not None and features.shape[1] != self._width:
            raise InputError(
                f"{place}: features of width {features.shape[1]} in a database of width {self._width}; "
                "an image database holds the features of one extractor: write others to another folder."
            )
        if not (np.all(six >= 0) and np.all(six <= 1) and np.all(six[:, :2] <= six[:, 2:4])):
            raise InputError(f"{place}: boxes are not left, top, right, bottom as fractions (0..1) of the image.")
        if self.layout.kind != "all":
            order = np.argsort(-confidences, kind="stable")
            arrays = {key: array[order] for key, array in arrays.items()}
        kept = self.layout.count(confidences)
        with np.errstate(over="ignore"):  # named below
            halves = {key: np.ascontiguousarray(array[:kept].astype(np.float16)) for key, array in arrays.items()}
        for key, array in halves.items():
            if not np.isfinite(array).all():
                raise InputError(f"{place}: {key} has values that are not finite, or beyond fp16 (65,504): scale the features.")
        self._width = features.shape[1]
        self._pending[name] = _packed(halves, self.layout.compressed)
        self._pending_counts[name] = kept
        if sources is not None:
            self._pending_sources[name] = sources
        if len(self._pending) >= self._commit_every or sum(map(len, self._pending.values())) >= self.COMMIT_BYTES:
            self.commit()
        return True

    def commit(self) -> None:
        """Puts what was added on disk, then the region counts."""
        if not self._pending:
            return
        values: dict[bytes, bytes | None] = {name.encode(): value for name, value in self._pending.items()}
        if not self._listed:
            # An old list would hide these from readers if the writer is killed; a missing one is replaced by the keys.
            values[KEYS] = None
            self._listed = True
        with self._on_disk():
            put_value(self._environment, values)
            self._counts |= self._pending_counts
            self._pending, self._pending_counts = {}, {}
            self._write_counts()
            append_sources(self.folder, self._pending_sources)
        self._sources |= self._pending_sources
        self._pending_sources = {}

    def sources(self, name: str) -> Sources | None:
        """What an image's regions were made of, None where the database does not say."""
        return self._sources.get(name)

    def remove(self, names: Collection[str]) -> None:
        """Takes images out, which must have been committed; they can be added again."""
        if not names:
            return
        with self._on_disk():
            put_value(self._environment, {**{name.encode(): None for name in names}, KEYS: None})
            self._listed = True
            self._counts = {name: count for name, count in self._counts.items() if name not in names}
            self._write_counts()

    def _write_counts(self) -> None:
        if self.layout.counts_file is not None:
            write_atomically(self.path / self.layout.counts_file, json.dumps(self._counts))

    def close(self) -> None:
        """Commits, writes the list of names and closes the file. Interrupted work is closed in the same way and can go on."""
        try:
            self.commit()
            with self._on_disk():
                put_value(self._environment, {KEYS: json.dumps(list(self._counts)).encode()})
        finally:
            self._environment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _packed(arrays: Mapping[str, npt.NDArray[Any]], compressed: bool) -> bytes:
    if not compressed:
        packed: bytes = msgpack.packb(dict(arrays), default=msgpack_numpy.encode, use_bin_type=True)
        return packed
    with io.BytesIO() as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()
