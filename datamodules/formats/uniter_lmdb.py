"""UNITER's image and text databases, read and written exactly as released (ChenRocks/UNITER data/data.py, prepro.py,
scripts/convert_imgdir.py; lancopku/IAIS adds `nbb.json` beside the layout that keeps all regions).

An image database is a folder with one LMDB sub-folder a layout (see `Layout`) and the number of regions of every image as JSON.
A value is a mapping of arrays, as msgpack or as npz: `features` fp16 [R, D], `norm_bb` fp16 [R, 6], `conf` fp16 [R] or [R, 1],
often `soft_labels` fp16 [R, classes]; the key `__keys__` lists the names. A text database is an LMDB folder of lz4 frames around
msgpack with four JSON files beside it. Neither reader can reach pickle: the released ones could (object arrays).

Legend: R regions of one image, D feature width.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import shutil
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from weakref import WeakValueDictionary

import lmdb
import lz4.frame  # type: ignore[import-untyped]
import msgpack  # type: ignore[import-untyped]
import msgpack_numpy  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.formats.parsing import read_json

Floats = npt.NDArray[np.float32]

KEYS = b"__keys__"


# ------------------------------------------------------------------------------------------------ opening LMDB

_open: WeakValueDictionary[tuple[int, int], _Environment] = WeakValueDictionary()
_lock = threading.Lock()


def _fresh_lock() -> None:
    """A forked child may have copied a lock that a thread of its parent holds."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)


class _Environment:
    """A read-only LMDB environment, shared by all readers of a process and closed with the last of them.

    No lock file is written (released data often lies on read-only disks) and the kernel does not read ahead (access is random).
    """

    def __init__(self, folder: Path, environment: lmdb.Environment) -> None:
        self.folder = folder
        self._environment = environment
        self._process = os.getpid()

    def _current(self) -> lmdb.Environment:
        if self._process != os.getpid():
            with _lock:
                if self._process != os.getpid():
                    # LMDB must not be used across a fork. Closing first takes the inherited copy out of this process's list of
                    # open files, without which lmdb refuses to open it; the parent's own is untouched.
                    self._environment.close()
                    self._environment = _open_environment(self.folder)
                    self._process = os.getpid()
        return self._environment

    def get(self, key: bytes) -> bytes | None:
        try:
            with self._current().begin() as transaction:
                return transaction.get(key)
        except lmdb.Error as error:
            raise _unreadable(self.folder, error) from error

    def all_keys(self) -> list[bytes]:
        try:
            with self._current().begin() as transaction, transaction.cursor() as cursor:
                return [bytes(key) for key in cursor.iternext(keys=True, values=False)]
        except lmdb.Error as error:
            raise _unreadable(self.folder, error) from error


def _unreadable(folder: Path, error: lmdb.Error) -> InputError:
    return InputError(
        f"{folder / 'data.mdb'} cannot be read ({error}); it is damaged, or it changed while it was open: "
        "fetch or build it again, or open it anew."
    )


def _open_environment(folder: Path) -> lmdb.Environment:
    data = folder / "data.mdb"
    try:
        environment = lmdb.open(str(folder), readonly=True, create=False, lock=False, readahead=False)
    except lmdb.Error as error:
        raise InputError(
            f"{data} ({_size(data):,} bytes) cannot be opened as an LMDB database ({error}); fetch or build it again. "
            "A database made on a machine of another byte order or word size has to be built again as well."
        ) from error
    # LMDB maps the file and touches pages past its end without looking: the kernel would kill the process (SIGBUS).
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if _size(data) < needed:
        environment.close()
        raise InputError(
            f"{data} has {_size(data):,} bytes where its header speaks of {needed:,}: copied incompletely? Fetch it again."
        )
    return environment


def _size(path: Path) -> int:
    return path.stat().st_size


def _environment(folder: Path, expected: str) -> _Environment:
    """The environment of a folder, opened at most once a process: lmdb refuses a second time.

    Raises:
        InputError: there is no `data.mdb`, or it is not a complete LMDB file; `expected` says what should be there.
    """
    try:
        status = (folder / "data.mdb").stat()
    except OSError as error:
        raise InputError(f"{folder / 'data.mdb'} cannot be opened ({error.strerror}); expected {expected}.") from None
    # By file and not by name: a link is the same database, a database that was built anew under its old name is another.
    key = (status.st_dev, status.st_ino)
    with _lock:
        found = _open.get(key)
        if found is None:
            found = _open[key] = _Environment(folder, _open_environment(folder))
        return found


# ---------------------------------------------------------------------------------------------- image databases


@dataclass(frozen=True, slots=True)
class Layout:
    """Which of the released sub-folders an image database is read from or written to, and how many regions an image keeps.

    Args:
        kind: "threshold": the regions above a confidence, `feat_th{conf_th}_max{max_bb}_min{min_bb}` (released: 0.2, 100, 10);
            "fixed": the first `num_bb` of every image, `feat_numbb{num_bb}` (the released code's conf_th = -1);
            "all": every region, `all`, in the order in which they were written (without its file of counts, as UNITER's own
            code makes it, the threshold is applied when reading).
        conf_th: threshold on the detector's confidence; counted are the regions above it.
        max_bb: keep at most so many.
        min_bb: keep at least so many, whatever their confidence.
        num_bb: how many "fixed" keeps.
        compressed: values are npz and not msgpack; the folder's name ends in `_compressed`.
    """

    kind: Literal["threshold", "fixed", "all"] = "threshold"
    conf_th: float = 0.2
    max_bb: int = 100
    min_bb: int = 10
    num_bb: int = 36
    compressed: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.min_bb <= self.max_bb or self.num_bb < 1 or not 0 <= self.conf_th <= 1:
            raise InputError(
                f"A layout of region features needs 1 <= min_bb <= max_bb, num_bb >= 1 and conf_th in 0..1, and it got {self}; "
                'the released conf_th = -1 is kind "fixed" here.'
            )

    @property
    def folder(self) -> str:
        names = {
            "threshold": f"feat_{self._threshold}",
            "fixed": f"feat_numbb{self.num_bb}",
            "all": "all",
        }
        return names[self.kind] + ("_compressed" if self.compressed else "")

    @property
    def counts_file(self) -> str | None:
        """The JSON of {image name: number of regions}; "fixed" has none."""
        return {"threshold": f"nbb_{self._threshold}.json", "fixed": None, "all": "nbb.json"}[self.kind]

    @property
    def _threshold(self) -> str:
        return f"th{float(self.conf_th)}_max{self.max_bb}_min{self.min_bb}"

    def count(self, confidences_R: npt.NDArray[Any]) -> int:
        """How many of an image's regions, the most confident first, this layout keeps (convert_imgdir.py `_compute_nbb`)."""
        if self.kind == "all":
            return len(confidences_R)
        if self.kind == "fixed":
            return min(self.num_bb, len(confidences_R))
        above = int((confidences_R > self.conf_th).sum())
        return min(self.max_bb, max(self.min_bb, above), len(confidences_R))


@dataclass(frozen=True, slots=True)
class RegionFeatures:
    """The regions of one image, float32: features [R, D] (fp16 where asked for as stored); boxes [R, 7] (left, top, right,
    bottom, width, height, area as fractions of the image; the first six as stored, the area is width * height); confidences [R]
    in 0..1."""

    features_RD: Floats | npt.NDArray[np.float16]
    boxes_R7: Floats
    confidences_R: Floats


class ImageDatabase:
    """Region features by image name. Opened read-only once a process, usable after a fork, pickled as its arguments.

    Args:
        path: the database's folder (released: img_db/flickr30k, img_db/coco_train2014, img_db/coco_val2014).
        layout: which of its layouts.
        feature_width: the D that the network expects; by default the first image that is read sets it.

    Raises:
        InputError: the folder, the layout, or its region counts are missing, incomplete or of another format.
    """

    def __init__(self, path: Path, layout: Layout | None = None, feature_width: int | None = None) -> None:
        self.path, self.layout = Path(path), layout or Layout()
        self.folder = self.path / self.layout.folder
        self._arguments = (path, layout, feature_width)
        self._feature_width = feature_width
        if not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder; expected an image database of UNITER there.")
        if not self.folder.is_dir():
            raise InputError(f"{self.path} has no layout {self.layout.folder}; {_layouts_there(self.path)}")
        self._environment = _environment(self.folder, f"the LMDB file of layout {self.layout.folder}")
        self._counts = self._read_counts()
        self._names: list[str] | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), self._arguments

    def _read_counts(self) -> dict[str, int] | None:
        name = self.layout.counts_file
        if name is None:
            return None
        file, largest = self.path / name, self.layout.max_bb if self.layout.kind == "threshold" else None
        if self.layout.kind == "all" and not file.exists():
            # UNITER's own `all` has no counts: it means to apply the threshold when reading (its code for that crashes).
            return None
        counts = read_json(file, "the number of regions of every image, {image name: number}")
        return _checked_counts(counts, file, largest)

    def names(self) -> list[str]:
        """The images, in the order in which they were written (by name where a writer was interrupted)."""
        if self._names is None:
            listed = self._environment.get(KEYS)
            if listed is None:
                known = (key.decode("utf-8", "replace") for key in self._environment.all_keys())
                self._names = [name for name in known if self._counts is None or name in self._counts]
            else:
                self._names = _names_listed(listed, self.folder)
        return self._names

    def number_of_regions(self, name: str) -> int:
        """R of an image, from the region counts where the layout has them (nothing else is read then).

        Official databases count `min_bb` also where the detector found fewer.

        Raises:
            InputError: the database has no such image.
        """
        if self._counts is None:
            return len(self.read(name).confidences_R)
        if name not in self._counts:
            raise self._missing(name)
        return self._counts[name]

    def most_regions(self, name: str) -> int:
        """No image of this name has more; never reads the image, and is its R but for images that the layout miscounts.

        Raises:
            InputError: the database has no such image.
        """
        if self._counts is not None:
            return self.number_of_regions(name)
        return self.layout.num_bb if self.layout.kind == "fixed" else self.layout.max_bb

    @property
    def feature_width(self) -> int:
        """D.

        Raises:
            InputError: the database is empty.
        """
        if self._feature_width is None:
            if not self.names():
                raise InputError(f"{self.folder} has no images; build it again.")
            self.read(self.names()[0])
        assert self._feature_width is not None
        return self._feature_width

    def read(self, name: str, as_stored: bool = False) -> RegionFeatures:
        """The regions of an image: the first n of those stored, n as `number_of_regions`.

        Args:
            name: the image.
            as_stored: leave features that are stored as fp16 so; the array may then be read-only.

        Raises:
            InputError: there is no such image, or its value is damaged, of another feature width, or of fewer regions than
                the region counts say.
        """
        value = self._environment.get(name.encode())
        if value is None or name == KEYS.decode() or (self._counts is not None and name not in self._counts):
            raise self._missing(name)
        place = f"{self.folder}: image {name}"
        arrays = _arrays(value, self.layout.compressed, place)
        features_RD, boxes_R6, confidences_R = _regions(arrays, place, as_stored)
        stored = len(confidences_R)
        if self._counts is not None:
            kept = self._counts[name]
        else:
            rule = self.layout if self.layout.kind == "fixed" else _threshold_of(self.layout)
            kept = rule.count(confidences_R)
        if kept > stored and not (self.layout.kind == "threshold" and kept == self.layout.min_bb):
            raise InputError(
                f"{place} has {stored} regions and {self.path / str(self.layout.counts_file)} says {kept}: "
                "the file belongs to another database."
            )
        width = features_RD.shape[1]
        if self._feature_width is None:
            self._feature_width = width
        elif width != self._feature_width:
            raise InputError(
                f"{place} has features of width {width} and {self._feature_width} were expected: "
                "they come from another extractor, or the network's img_dim is not theirs."
            )
        area_R1 = boxes_R6[:kept, 4:5] * boxes_R6[:kept, 5:6]
        return RegionFeatures(
            features_RD[:kept], np.concatenate([boxes_R6[:kept], area_R1], axis=1), np.ascontiguousarray(confidences_R[:kept])
        )

    def _missing(self, name: str) -> InputError:
        if name != KEYS.decode() and self._environment.get(name.encode()) is not None:
            return InputError(
                f"{self.folder} has image {name!r} and {self.layout.counts_file} does not count it: that file is of another "
                "database, or the writer was killed, and counts it when it goes on."
            )
        names = self.names()
        if not names:
            return InputError(f"{self.folder} has no image {name!r}: it is empty.")
        if name in names:
            return InputError(f"{self.folder} lists image {name!r} and holds nothing of it; extract the image again.")
        number = re.sub(r"^0+", "", max(re.findall(r"\d+", name), key=len, default=""))
        similar = [other for other in names if number and re.search(rf"(?<!\d)0*{number}(?!\d)", other)]
        similar = similar or difflib.get_close_matches(name, names[:2000], n=1) or names[:1]
        return InputError(
            f"{self.folder} has no image {name!r}; it has {len(names):,}, the nearest is {similar[0]!r}. Names are the "
            "keys that extraction chose: take them from a text database's txt2img.json, and check that both are of one data set."
        )


def _threshold_of(layout: Layout) -> Layout:
    return Layout("threshold", layout.conf_th, layout.max_bb, layout.min_bb)


def _layouts_there(path: Path) -> str:
    there = sorted(data.parent.name for data in path.glob("*/data.mdb"))
    if not there:
        return "nor any other: an image database has feat_th0.2_max100_min10/data.mdb or its like."
    return f"it has {', '.join(there)}: set kind, conf_th, max_bb, min_bb and compressed to one of them."


def _checked_counts(counts: object, file: Path, largest: int | None) -> dict[str, int]:
    if not isinstance(counts, dict):
        raise InputError(f"{file} does not hold a JSON object; expected {{image name: number of regions}}.")
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1 or (largest is not None and count > largest):
            limit = "1 or more" if largest is None else f"1 to {largest}"
            raise InputError(
                f"{file}: {name}: {count!r} is not a number of regions ({limit}); the file belongs to another layout."
            )
    return counts


def _names_listed(value: bytes, folder: Path) -> list[str]:
    try:
        names = json.loads(value)
    except ValueError as error:
        raise InputError(
            f"{folder}: the list of names (key __keys__) is not JSON ({error}); build the database again."
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{folder}: the key __keys__ is not a JSON list of image names; this is not an image database.")
    return names


def _arrays(value: bytes, compressed: bool, place: str) -> dict[str, npt.NDArray[Any]]:
    """The named arrays of a value; pickle is out of reach in both encodings.

    Raises:
        InputError: the value is not of this encoding.
    """
    try:
        if compressed:
            with np.load(io.BytesIO(value), allow_pickle=False) as archive:
                # The released writer passes allow_pickle=True on to numpy of its day, which stored it as an array: so only
                # what is wanted is taken.
                return {key: archive[key] for key in ("features", "norm_bb", "conf") if key in archive}
        decoded = msgpack.unpackb(value, raw=False, object_hook=_array)
    except (ValueError, TypeError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error, msgpack.UnpackException) as error:
        kind = "an npz archive" if compressed else "msgpack"
        raise InputError(f"{place}: its value is not {kind} of plain arrays ({error}); extract the image again.") from error
    if not isinstance(decoded, dict):
        raise InputError(f"{place}: its value is not a mapping of arrays; this is not an image database.")
    return decoded


def _array(value: dict[Any, Any]) -> object:
    """msgpack-numpy's encoding of an array, decoded. Its own decoder unpickles object arrays and, where the type alone says
    object, makes pointers of the bytes; this one knows numbers only."""
    if value.get(b"nd") is not True:
        return value
    if value.get(b"kind", b"") != b"" or not isinstance(value[b"type"], str):
        raise ValueError("an array of Python objects or of records")
    dtype = np.dtype(value[b"type"])
    if dtype.kind not in "fiub":
        raise ValueError(f"an array of type {dtype}")
    return np.frombuffer(value[b"data"], dtype).reshape(value[b"shape"])


def _regions(arrays: Mapping[str, object], place: str, as_stored: bool = False) -> tuple[Floats, Floats, Floats]:
    """features [R, D], norm_bb [R, 6], conf [R] as float32; features stay fp16 where they are stored so, if asked.

    Raises:
        InputError: one is missing, or the shapes do not fit each other.
    """
    found: list[npt.NDArray[Any]] = []
    for key in ("features", "norm_bb", "conf"):
        array = arrays.get(key)
        if not isinstance(array, np.ndarray):
            raise InputError(
                f"{place} has no array {key!r} (it has {', '.join(map(str, arrays)) or 'nothing'}); extract it again."
            )
        found.append(array)
    features, boxes, confidences = found
    count = len(features) if features.ndim == 2 else 0
    if count == 0 or boxes.shape != (count, 6) or confidences.shape not in ((count,), (count, 1)):
        raise InputError(
            f"{place} has features {features.shape}, norm_bb {boxes.shape} and conf {confidences.shape}; expected [R, D], "
            "[R, 6] and [R] or [R, 1] with one R of at least 1. Extract it again."
        )
    if not (as_stored and features.dtype == np.float16):
        features = features.astype(np.float32)
    return features, boxes.astype(np.float32), confidences.astype(np.float32).reshape(count)


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
        InputError: the database there is damaged, or open in this process.
    """

    # Fewer where images are large: what is not committed yet is held in memory.
    COMMIT_BYTES = 64 * 1024**2

    def __init__(self, path: Path, layout: Layout | None = None, commit_every: int = 64) -> None:
        self.path, self.layout, self._commit_every = Path(path), layout or Layout(), commit_every
        self.folder = self.path / self.layout.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pending: dict[str, bytes] = {}
        self._pending_counts: dict[str, int] = {}
        self._counts, self._width = self._existing()
        self._environment = _open_for_writing(self.folder)
        self._listed = False
        self._write_counts()

    def _existing(self) -> tuple[dict[str, int], int | None]:
        """Region counts by name and the feature width of what is there already."""
        if not (self.folder / "data.mdb").exists():
            return {}, None
        environment = _environment(self.folder, f"the LMDB file of layout {self.layout.folder}")
        file = None if self.layout.counts_file is None else self.path / self.layout.counts_file
        known: dict[str, int] = {}
        if file is not None and file.exists():
            known = _checked_counts(read_json(file, "the number of regions of every image"), file, None)
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

    def _stored(self, environment: _Environment, name: str) -> tuple[Floats, Floats, Floats]:
        place = f"{self.folder}: image {name}"
        return _regions(_arrays(environment.get(name.encode()) or b"", self.layout.compressed, place), place)

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
    ) -> bool:
        """Writes an image's regions; False if it is there already, and nothing is written.

        Args:
            name: the key, 1 to 511 bytes; the released ones end in `.npz`.
            features_RD: [R, D].
            boxes: [R, 4] (left, top, right, bottom) or [R, 6] (and width, height), as fractions of the image.
            confidences_R: [R], 0..1.
            soft_labels_RC: [R, C], the detector's class probabilities (UNITER's pre-training uses them).

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
        features, six, confidences = _regions(arrays, place)
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
        _put(self._environment, values)
        self._counts |= self._pending_counts
        self._pending, self._pending_counts = {}, {}
        self._write_counts()

    def _write_counts(self) -> None:
        if self.layout.counts_file is not None:
            _replace_json(self.path / self.layout.counts_file, self._counts)

    def close(self) -> None:
        """Commits, writes the list of names and closes the file. Interrupted work is closed in the same way and can go on."""
        self.commit()
        _put(self._environment, {KEYS: json.dumps(list(self._counts)).encode()})
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


def _open_for_writing(folder: Path) -> lmdb.Environment:
    try:
        # LMDB takes the size of what is there where that is more; `_put` makes room as needed.
        return lmdb.open(str(folder), map_size=16 * 1024**2)
    except lmdb.Error as error:
        raise InputError(
            f"{folder} cannot be written ({error}); close its readers in this process, "
            "and remove the folder if it is not a database."
        ) from error


def _put(environment: lmdb.Environment, values: Mapping[bytes, bytes | None]) -> None:
    """Writes values (None removes the key) in one transaction, with as much room as they need."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in values.items():
                    if value is None:
                        transaction.delete(key)
                    else:
                        transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 2)


def _replace_json(file: Path, value: object) -> None:
    """Writes JSON under another name first, so that no reader and no kill ever sees half of it."""
    partial = file.with_name(file.name + ".partial")
    with partial.open("w") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


# ----------------------------------------------------------------------------------------------- text databases


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The word pieces of a text database, as its meta.json names them; the defaults are those of bert-base-cased, the released.

    Args:
        tokeniser: its name, for messages.
        unk: id of the unknown piece.
        cls: id that begins a sequence.
        sep: id that ends one.
        mask: id of a masked piece.
        first_word: the first id that is a word piece and not special ("!").
        size: one more than the last id.
    """

    tokeniser: str = "bert-base-cased"
    unk: int = 100
    cls: int = 101
    sep: int = 102
    mask: int = 103
    first_word: int = 106
    size: int = 28996


@dataclass(frozen=True, slots=True)
class TextEntry:
    """One text: ids of its word pieces without [CLS] and [SEP], the image it describes, and its words where they are stored."""

    text_id: str
    input_ids: tuple[int, ...]
    image_name: str
    text: str | None


def word_pieces_of(text: str, tokenise_word: Callable[[str], Iterable[int]]) -> list[list[int]]:
    """The ids of every word of a text, as UNITER's prepro.py makes them: split at white space, each word by itself (a word of
    characters that the tokeniser drops gives none)."""
    return [list(tokenise_word(word)) for word in text.strip().split()]


class TextDatabase:
    """Texts by id. Opened read-only once a process, usable after a fork, pickled as its arguments.

    Attributes: `text_ids` that are kept, in file order; `lengths` of all in word pieces without special ones; `image_names`
    {text: image} and `image_texts` {image: texts}, both of all texts, also of those not kept; `vocabulary`.

    Args:
        path: the database's folder (released: txt_db/itm_flickr30k_train.db and its like).
        max_pieces: leave out longer texts (released: 60 for training, none for evaluation; nothing is cut).
        expected: the network's vocabulary.

    Raises:
        InputError: a file is missing, damaged, or contradicts another; the tokeniser is not the expected one.
    """

    def __init__(self, path: Path, max_pieces: int | None = None, expected: Vocabulary | None = None) -> None:
        self.path = Path(path)
        self._arguments = (path, max_pieces, expected)
        if not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder; expected a text database of UNITER there.")
        self._environment = _environment(self.path, "the LMDB file of a text database")
        self.vocabulary = _read_vocabulary(self.path / "meta.json")
        if expected is not None:
            _compare(self.vocabulary, expected, self.path)
        self.lengths: dict[str, int] = self._object("id2len.json", int, "{text id: number of word pieces}")
        self.image_names: dict[str, str] = self._object("txt2img.json", str, "{text id: image name}")
        self.image_texts: dict[str, list[str]] = self._object("img2txts.json", list, "{image name: text ids}")
        self._check_maps()
        self.text_ids = [identity for identity, length in self.lengths.items() if max_pieces is None or length <= max_pieces]

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), self._arguments

    def _object(self, name: str, kind: type, expected: str) -> dict[str, Any]:
        content = read_json(self.path / name, expected)
        if not isinstance(content, dict):
            raise InputError(f"{self.path / name} does not hold a JSON object; expected {expected}.")
        for key, value in content.items():
            if not isinstance(value, kind):
                raise InputError(
                    f"{self.path / name}: {key}: {value!r} does not fit; expected {expected}, as image-text retrieval has them."
                )
        return content

    def _check_maps(self) -> None:
        for identity in self.lengths:
            if identity not in self.image_names:
                raise InputError(
                    f"{self.path}: text {identity} of id2len.json is not in txt2img.json; they are of different databases."
                )
        for image, identities in self.image_texts.items():
            for identity in identities:
                if self.image_names.get(identity) != image:
                    raise InputError(
                        f"{self.path}: img2txts.json gives text {identity} to image {image} and txt2img.json to "
                        f"{self.image_names.get(identity)}; they are of different databases."
                    )
        if sum(map(len, self.image_texts.values())) != len(self.image_names):
            raise InputError(
                f"{self.path}: txt2img.json has {len(self.image_names):,} texts and img2txts.json "
                f"{sum(map(len, self.image_texts.values())):,}; they are of different databases."
            )

    def read(self, text_id: str) -> TextEntry:
        """A text.

        Raises:
            InputError: there is no such text, or its value is damaged or not what id2len.json and meta.json say.
        """
        place = f"{self.path}: text {text_id}"
        value = self._environment.get(text_id.encode())
        if value is None or text_id not in self.lengths:
            where = "its id2len.json" if value is not None else "data.mdb"
            raise InputError(
                f"{self.path} has no text {text_id!r} in {where}; it has {len(self.lengths):,}, the first is "
                f"{next(iter(self.lengths), None)!r}. Ids are those of the same folder's txt2img.json."
            )
        try:
            record = msgpack.unpackb(lz4.frame.decompress(value), raw=False)
        except (ValueError, RuntimeError, EOFError, msgpack.UnpackException) as error:
            raise InputError(f"{place}: its value is not an lz4 frame of msgpack ({error}); fetch or build it again.") from error
        ids = record.get("input_ids") if isinstance(record, dict) else None
        if not isinstance(ids, list) or not all(type(piece) is int for piece in ids):
            raise InputError(f"{place} has no 'input_ids' that are a list of integers; this is not a text database of UNITER.")
        if len(ids) != self.lengths[text_id]:
            raise InputError(
                f"{place} has {len(ids)} word pieces and id2len.json says {self.lengths[text_id]}: it is of another database."
            )
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary.size:
            raise InputError(
                f"{place} has word piece {max(ids)} and meta.json speaks of a vocabulary of {self.vocabulary.size} "
                f"({self.vocabulary.tokeniser}): it is of another database."
            )
        text = record.get("sentence")
        return TextEntry(text_id, tuple(ids), self.image_names[text_id], text if isinstance(text, str) else None)


def _read_vocabulary(file: Path) -> Vocabulary:
    meta = read_json(file, "the word pieces of a text database: UNK, CLS, SEP, MASK, v_range")
    numbers: list[Any] = [meta.get(key) for key in ("UNK", "CLS", "SEP", "MASK")] if isinstance(meta, dict) else []
    words = meta.get("v_range") if isinstance(meta, dict) else None
    numbers += words if isinstance(words, list) else []
    if len(numbers) != 6 or not all(type(number) is int for number in numbers):
        raise InputError(
            f"{file} lacks one of UNK, CLS, SEP, MASK (integers) and v_range (two integers); fetch or build it again."
        )
    return Vocabulary(str(meta.get("tokenizer", "unknown")), *numbers)


def _compare(found: Vocabulary, expected: Vocabulary, path: Path) -> None:
    # Not by name: the same tokeniser has one as a model and another as a folder.
    for what in ("cls", "sep", "unk", "mask", "size"):
        if getattr(found, what) != getattr(expected, what):
            raise InputError(
                f"{path} was made with the word pieces of {found.tokeniser!r} ({what} {getattr(found, what)}) and the network "
                f"has those of {expected.tokeniser!r} ({what} {getattr(expected, what)}): build the text database again for it."
            )


class TextDatabaseWriter:
    """Writes a text database, whole or not at all: it gets its name when it is closed without an error.

    Args:
        path: the folder to make.
        tokenise_word: the ids of one word's pieces, without special ones.
        vocabulary: what those ids belong to.

    Raises:
        InputError: the folder exists.
    """

    def __init__(self, path: Path, tokenise_word: Callable[[str], Sequence[int]], vocabulary: Vocabulary | None = None) -> None:
        self.path, self._tokenise_word = Path(path), tokenise_word
        self._vocabulary = vocabulary or Vocabulary()
        if self.path.exists():
            raise InputError(f"{self.path} exists; remove it, or give the text database another name.")
        self._partial = self.path.with_name(self.path.name + ".partial")
        if self._partial.exists():
            shutil.rmtree(self._partial)
        self._partial.mkdir(parents=True)
        self._environment = _open_for_writing(self._partial)
        self._pending: dict[bytes, bytes | None] = {}
        self._lengths: dict[str, int] = {}
        self._image_names: dict[str, str] = {}

    def add(self, text_id: str, image_name: str, text: str) -> None:
        """Tokenises and writes a text about an image.

        Raises:
            InputError: the id was used, the text has no word pieces, or one of them is outside of the vocabulary.
        """
        ids = [piece for word in word_pieces_of(text, self._tokenise_word) for piece in word]
        if text_id in self._lengths:
            raise InputError(f"{self.path}: text id {text_id!r} appears twice; ids are unique in a database.")
        if not 1 <= len(text_id.encode()) <= 511:
            raise InputError(f"{self.path}: text id {text_id!r} does not have 1 to 511 bytes.")
        if not ids or not 0 <= min(ids) <= max(ids) < self._vocabulary.size:
            raise InputError(
                f"{self.path}: text {text_id!r} ({text!r}) has the word pieces {ids}; expected at least one, each below "
                f"{self._vocabulary.size} ({self._vocabulary.tokeniser})."
            )
        record = {"id": text_id, "input_ids": ids, "img_fname": image_name, "sentence": text}
        self._pending[text_id.encode()] = packed_text(record)
        self._lengths[text_id], self._image_names[text_id] = len(ids), image_name
        if len(self._pending) >= 1000:
            _put(self._environment, self._pending)
            self._pending = {}

    def close(self) -> None:
        """Writes what is left and the four JSON files, and gives the folder its name."""
        _put(self._environment, self._pending)
        self._environment.close()
        image_texts: dict[str, list[str]] = {}
        for identity, image in self._image_names.items():
            image_texts.setdefault(image, []).append(identity)
        words = self._vocabulary
        meta = {
            "tokenizer": words.tokeniser,
            "UNK": words.unk,
            "CLS": words.cls,
            "SEP": words.sep,
            "MASK": words.mask,
            "v_range": [words.first_word, words.size],
        }
        files = {"meta": meta, "id2len": self._lengths, "txt2img": self._image_names, "img2txts": image_texts}
        for name, content in files.items():
            _replace_json(self._partial / f"{name}.json", content)
        self._partial.rename(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._environment.close()
            shutil.rmtree(self._partial)


def packed_text(record: Mapping[str, object]) -> bytes:
    """A text's value: an lz4 frame of msgpack."""
    packed: bytes = lz4.frame.compress(msgpack.packb(dict(record), use_bin_type=True))
    return packed
