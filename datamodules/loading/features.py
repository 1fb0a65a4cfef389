"""Visual features of a split on disk: what a frozen tower makes of its images, to be read in place of pixels.

A folder holds those of one split, and its name a hash of everything that they depend on, so that another tower, transform or
photograph has another folder:

    about.json    what the features belong to
    tokens.bin    [images, V, D] float16 or float32, rows as in the split
    done.u1       a byte an image: 1 = its features are in tokens.bin, and on the disk

Any process may be killed at any moment, and several may write: an image's byte comes after its features, and whoever makes them
again writes the same. The room is taken when the folder is made, so that a full disk shows then and not hours later.

Legend: I images of the split, B images asked for, V visual tokens, D visual width.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.files.json_file import read_json
from datamodules.files.ownership import require_own, write_label

Precision = Literal["float16", "float32"]
Features = npt.NDArray[np.float16] | npt.NDArray[np.float32]

_ABOUT, _TOKENS, _DONE = "about.json", "tokens.bin", "done.u1"


class FeatureFile:
    """A folder of features that has been made. Holds no open file: it may go to other processes.

    Args:
        folder: The folder.

    Raises:
        InputError: about.json is missing or damaged, or a file has another size than it says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / _ABOUT
        if not path.exists():
            raise InputError(f"{path} is missing: {folder} holds no visual features (all processes must see the folder)")
        self.about: dict[str, Any] = read_json(path, f"the facts of visual features; delete {folder} to make them anew")
        try:
            self.shape, self.dtype = _layout(self.about)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error!r}); delete {folder} to make the features anew") from error
        self._row = self.shape[1] * self.shape[2] * self.dtype.itemsize
        for name, size in ((_TOKENS, self.bytes), (_DONE, self.shape[0])):
            found = (folder / name).stat().st_size if (folder / name).exists() else 0
            if found != size:
                raise InputError(
                    f"{folder / name} has {found:,} bytes, {_ABOUT} says {size:,}; delete {folder} to make the features anew"
                )

    @property
    def bytes(self) -> int:
        """Of the features."""
        return self.shape[0] * self._row

    # ---------------------------------------------------------------------------------------------------------- making

    @staticmethod
    def place(root: Path, about: Mapping[str, Any]) -> Path:
        """The folder of features of these facts: `ROOT/DATA-SPLIT-` and 12 hexadecimal digits over all of them."""
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        return root / f"{about['data']}-{about['split']}-{digest}"

    @staticmethod
    def of_other(root: Path, about: Mapping[str, Any], *facts: str) -> list[Path]:
        """The folders below `root` of features that differ from these in some of these facts, and in nothing else."""
        others = []
        for path in sorted(root.glob(f"{about['data']}-{about['split']}-*/{_ABOUT}")):
            try:
                its = read_json(path, "the facts of visual features")
                differing = {key for key in {*its, *about} if its.get(key) != about.get(key)}
            except (InputError, TypeError, AttributeError):  # damaged: said where it is used
                continue
            if differing and differing <= {*facts}:
                others.append(path.parent)
        return others

    @staticmethod
    def room(root: Path, about: Mapping[str, Any]) -> int:
        """Bytes that `make` will take from the disk: 0 where it has taken them already."""
        (images, tokens, width), dtype = _layout(about)
        path = FeatureFile.place(root, about) / _TOKENS
        taken = path.stat().st_blocks * 512 if path.exists() else 0
        return max(images * tokens * width * dtype.itemsize - taken, 0)

    @classmethod
    def make(cls, root: Path, about: Mapping[str, Any]) -> FeatureFile:
        """The folder of these facts below `root`, made if need be.

        Args:
            root: Of all folders.
            about: What the features depend on, as JSON; with "data", "split", "images" (I), "tokens" (V), "width" (D), "dtype".

        Raises:
            InputError: The disk is full, or the folder belongs to something else or is damaged.
        """
        folder = cls.place(root, about)
        path = folder / _ABOUT
        if not path.exists():
            (images, tokens, width), dtype = _layout(about)
            folder.mkdir(parents=True, exist_ok=True)
            _take(folder / _TOKENS, images * tokens * width * dtype.itemsize)
            _take(folder / _DONE, images)
            write_label(path, about)  # last, and in one step: a folder with it is complete
        file = cls(folder)
        require_own(path, file.about, about, "set of features", f"It was changed; delete {folder} to make the features anew.")
        return file

    # ------------------------------------------------------------------------------------------------- reading, writing

    def done(self) -> npt.NDArray[np.bool_]:
        """[I]: whose features are there."""
        return np.fromfile(self.folder / _DONE, np.uint8) == 1

    def write(self, first: int, features_BVD: Features) -> None:
        """Keep the features of the images at the rows from `first` on.

        Raises:
            OSError: The disk fails, or is full (where a file system does not keep the room that it has promised).
        """
        assert (features_BVD.shape[1:], features_BVD.dtype) == (self.shape[1:], self.dtype), "features of another kind"
        assert 0 <= first <= self.shape[0] - len(features_BVD), "rows outside the split"
        with open(self.folder / _TOKENS, "r+b", buffering=0) as file:
            _write(file.fileno(), features_BVD.tobytes(), first * self._row)
            os.fdatasync(file.fileno())  # a power cut must not leave the byte without the features
        with open(self.folder / _DONE, "r+b", buffering=0) as file:
            _write(file.fileno(), b"\1" * len(features_BVD), first)

    def read(self, rows: Sequence[int]) -> Features:
        """[B, V, D] of the images at these rows, which must be done.

        Raises:
            InputError: The file has been cut since.
        """
        assert all(0 <= row < self.shape[0] for row in rows), "rows outside the split"
        features: Features = np.empty((len(rows), *self.shape[1:]), self.dtype)
        bytes_BN = features.view(np.uint8).reshape(len(rows), self._row)
        # Read, not mapped: of a file that was cut, a map would be a signal (SIGBUS) and not a message.
        with open(self.folder / _TOKENS, "rb", buffering=0) as file:
            for row, wanted in zip(rows, bytes_BN, strict=True):
                have = 0
                while have < self._row:
                    count = os.preadv(file.fileno(), [wanted.data[have:]], row * self._row + have)
                    if not count:
                        raise InputError(f"{self.folder / _TOKENS} ends before row {row}; delete {self.folder} to make it anew")
                    have += count
        return features


def _layout(about: Mapping[str, Any]) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """[I, V, D] and what they are stored as."""
    images, tokens, width = (int(about[key]) for key in ("images", "tokens", "width"))
    return (images, tokens, width), np.dtype(about["dtype"])


def _take(path: Path, size: int) -> None:
    """Room for a file; what it holds already stays, the rest is 0.

    Opened to read and write: where a file system has no call for this (NFS before 4.2, FUSE), the C library reads and writes a
    byte of each block, and refuses a file that is open to append.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            os.ftruncate(file.fileno(), 0)
            raise InputError(
                f"{path} needs {size / 1e9:.2f} GB, which its disk does not have ({error.strerror}): free some space or choose "
                "another folder"
            ) from error


def _write(handle: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, place)
        view, place = view[written:], place + written
