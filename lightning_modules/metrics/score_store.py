"""Scores of all pairs on disk while they are computed: a process may be killed at any moment, and nothing finished is lost.

The pairs of a job have fixed places 0 .. pairs - 1. A folder holds

    job.json             what the scores belong to: numbers of items, the weights (the caller's word for them), the ids
    items.npy            a fingerprint of every item's embedding (see `Job`)
    part-00000.f32 ..    one sparse file a process, float32 at the pairs' places, 0 bits = not done (a score of 0 is stored as -0)
    scores.npy           when all is done, in place of the parts: [images, captions], rows as in the split

What is written with `pwrite` survives SIGKILL; what a power cut loses reads as not done. Any number of processes may go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file
from datamodules.files.locks import take_lock
from datamodules.files.ownership import take_up, write_label

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

VERSION = 1
_REMEDY = "Choose another folder, or delete this one to score anew."
# Pairs that are read at a time when files are merged: 64 MB of every file.
BLOCK = 2**24
# Two runs embed the same item alike up to rounding (other batches, other numbers of processes, TF32). Another picture or caption
# differs by a tenth and more.
TOLERANCE = 1e-2


@dataclass(frozen=True)
class Job:
    """What scores belong to.

    Args:
        facts: Numbers and words that must be equal: items, tokens, width, weights, ids.
        prints: [items, K] float32: a few numbers that tell the embeddings of items apart, equal up to rounding where they are
            computed anew. A hash of the bytes would refuse to go on with another number of processes, whose batches round
            differently.
    """

    facts: dict[str, Any]
    prints: Floats = field(repr=False)


class ScoreStore:
    """One process's access to the folder, or with `folder=None` to memory of its own.

    Only one process opens a folder with `prepare`; the others follow with `write` and `read` when that has returned.

    Args:
        folder: Made when missing.
        pairs: Pairs of the job.
        rank: Of this process.
    """

    def __init__(self, folder: Path | None, pairs: int, rank: int) -> None:
        self.folder, self.pairs, self.rank = folder, pairs, rank
        self._memory: Floats | None = np.zeros(pairs, np.float32) if folder is None else None
        self._file: int | None = None
        self._lock: IO[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            os.close(self._file)
        if self._lock is not None:
            self._lock.close()
        self._file = self._lock = None

    # ------------------------------------------------------------------------------------------------ beginning

    def prepare(self, job: Job) -> None:
        """Checks that the folder's scores belong to this job, or starts a new one in an empty folder.

        Raises:
            InputError: Scores of something else, files without `job.json`, or another run at work in the folder.
        """
        folder = self.folder
        if folder is None:
            return
        self._lock = take_lock(folder / "lock")
        if self._lock is None:
            raise InputError(f"{folder}: another run is writing scores there; wait for it or choose another folder")
        label, items = folder / "job.json", folder / "items.npy"
        about = {"version": VERSION, **job.facts}
        strangers = (*self._parts(), *folder.glob("scores.npy"))
        if not take_up(label, about, what="job", strangers=strangers, remedy=_REMEDY):
            with whole_file(items) as part:
                np.save(part, job.prints)
            write_label(label, about)
            return
        try:
            prints = np.load(items, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{items} cannot be read ({error}). {_REMEDY}") from error
        if prints.shape != job.prints.shape or not np.allclose(prints, job.prints, rtol=TOLERANCE, atol=TOLERANCE):
            raise InputError(f"{folder} holds scores of other images or captions: their embeddings differ. {_REMEDY}")
        if self.matrix_path is not None:
            self._delete_parts()  # of a process that was killed before it had

    # ------------------------------------------------------------------------------------------- reading, writing

    def _parts(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob("part-*.f32"))

    def write(self, start: int, scores: Floats) -> None:
        """Keeps finished scores at the places from `start` on."""
        scores = np.where(scores == 0, np.float32(-0.0), scores).astype(np.float32)
        if self._memory is not None:
            self._memory[start : start + len(scores)] = scores
            return
        assert self.folder is not None
        if self._file is None:
            self._file = os.open(self.folder / f"part-{self.rank:05d}.f32", os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._file, 4 * self.pairs)  # sparse; keeps what an earlier run wrote
        data = memoryview(scores.tobytes())
        place = 4 * start
        while data:
            written = os.pwrite(self._file, data, place)
            data, place = data[written:], place + written

    def read(self, start: int, stop: int) -> Floats:
        """What all processes have written to these places; 0 bits = nobody has."""
        if self._memory is not None:
            return self._memory[start:stop]
        merged = np.zeros(stop - start, np.float32)
        for path in self._parts():
            if path.stat().st_size <= 4 * start:  # killed before it had its size
                continue
            part = np.fromfile(path, np.float32, stop - start, offset=4 * start)
            view = merged[: len(part)]
            np.copyto(view, part, where=~is_done(view))
        return merged

    def done(self, edges: Sequence[int] | Integers) -> npt.NDArray[np.bool_]:
        """[units]: which units, the places edges[i] .. edges[i + 1] - 1, are finished."""
        edges = np.asarray(edges, np.int64)
        finished = np.zeros(len(edges) - 1, bool)
        if not self._parts():
            return finished
        first = 0
        while first < len(finished):
            last = max(int(np.searchsorted(edges, edges[first] + BLOCK, side="right")) - 1, first + 1)
            counts = is_done(self.read(int(edges[first]), int(edges[last])))
            starts = edges[first:last] - edges[first]
            finished[first:last] = np.logical_and.reduceat(counts, starts)
            first = last
        return finished

    # ---------------------------------------------------------------------------------------------------- the end

    @property
    def matrix_path(self) -> Path | None:
        """`scores.npy`, if the job is finished."""
        path = None if self.folder is None else self.folder / "scores.npy"
        return path if path is not None and path.exists() else None

    def finish(self, fill: Callable[[Floats], None], shape: tuple[int, int]) -> None:
        """Writes `scores.npy` (`fill` gets the empty matrix) and deletes the parts. For one process, after all have written."""
        assert self.folder is not None
        for killed in self.folder.glob(".scores.npy.*"):  # as large as what is to come; only one process is in this folder
            killed.unlink()
        with whole_file(self.folder / "scores.npy") as part:
            matrix = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
            with open(part, "r+b") as file:  # a full disk is an error here, and not a signal (SIGBUS) at the first page missing
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
            fill(matrix)
            matrix.flush()
            del matrix
        self._delete_parts()

    def _delete_parts(self) -> None:
        for path in self._parts():
            path.unlink()


def is_done(scores: Floats) -> npt.NDArray[np.bool_]:
    """Any bit set: a score of 0 is stored as -0."""
    return scores.view(np.int32) != 0
