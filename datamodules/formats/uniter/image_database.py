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
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgpack  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.files.json_file import read_json
from datamodules.formats.uniter.layout import Layout, layouts_there, not_a_folder, threshold_of
from datamodules.formats.uniter.lmdb_file import KEYS, environment_of

Floats = npt.NDArray[np.float32]

_OFF = 0.01  # how far a fraction may be outside of 0..1, and a width from right - left: fp16 rounds, detectors count edges


# ---------------------------------------------------------------------------------------------- image databases


@dataclass(frozen=True, slots=True)
class RegionFeatures:
    """The regions of one image, float32: features [R, D] (fp16 where asked for as stored); boxes [R, 7] (left, top, right,
    bottom, width, height, area as fractions of the image; the first six as stored, the area is width * height); confidences [R]
    in 0..1; where asked for, probabilities of the detector's classes [R, C], class 0 the background."""

    features_RD: Floats | npt.NDArray[np.float16]
    boxes_R7: Floats
    confidences_R: Floats
    classes_RC: Floats | None = None


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
            raise InputError(not_a_folder(self.path))
        if not self.folder.is_dir():
            raise InputError(f"{self.path} has no layout {self.layout.folder}; {layouts_there(self.path)}")
        self._environment = environment_of(self.folder, f"the LMDB file of layout {self.layout.folder}")
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
        return checked_counts(counts, file, largest)

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
        """D, of the first image that can be read: a damaged one is an error where it is used.

        Raises:
            InputError: the database is empty, or none can be read.
        """
        problem = InputError(f"{self.folder} has no images; build it again.")
        for name in self.names() if self._feature_width is None else ():
            try:
                self.read(name)
                break
            except InputError as error:
                problem = error
        if self._feature_width is None:
            raise problem
        return self._feature_width

    def read(self, name: str, as_stored: bool = False, classes: int | None = None) -> RegionFeatures:
        """The regions of an image: the first n of those stored, n as `number_of_regions`.

        Args:
            name: the image.
            as_stored: leave features that are stored as fp16 so; the array may then be read-only.
            classes: also give the probabilities of so many classes (`soft_labels`; 1,601 as released).

        Raises:
            InputError: there is no such image, or its value is damaged, of another feature width, of fewer regions than the
                region counts say, or holds numbers that are not finite, or boxes and confidences that are not fractions; the
                class probabilities that were asked for are not there, or of another number of classes.
        """
        value = self._environment.get(name.encode())
        if value is None or name == KEYS.decode() or (self._counts is not None and name not in self._counts):
            raise self._missing(name)
        place = f"{self.folder}: image {name}"
        arrays = read_arrays(value, self.layout.compressed, place)
        classes_RC = None if classes is None else _class_probabilities(arrays, classes, place)
        features_RD, boxes_R6, confidences_R = decode_regions(arrays, place, as_stored)
        _require_sound(features_RD, boxes_R6, confidences_R, place)
        stored = len(confidences_R)
        if self._counts is not None:
            kept = self._counts[name]
        else:
            rule = self.layout if self.layout.kind == "fixed" else threshold_of(self.layout)
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
            features_RD[:kept],
            np.concatenate([boxes_R6[:kept], area_R1], axis=1),
            np.ascontiguousarray(confidences_R[:kept]),
            None if classes_RC is None else classes_RC[:kept],
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


def checked_counts(counts: object, file: Path, largest: int | None) -> dict[str, int]:
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


def read_arrays(value: bytes, compressed: bool, place: str) -> dict[str, npt.NDArray[Any]]:
    """The named arrays of a value; pickle is out of reach in both encodings.

    Raises:
        InputError: the value is not of this encoding.
    """
    try:
        if compressed:
            with np.load(io.BytesIO(value), allow_pickle=False) as archive:
                # The released writer passes allow_pickle=True on to numpy of its day, which stored it as an array: so only
                # what is wanted is taken.
                return {key: archive[key] for key in ("features", "norm_bb", "conf", "soft_labels") if key in archive}
        decoded = msgpack.unpackb(value, raw=False, object_hook=_array)
    except Exception as error:  # msgpack, zipfile, zlib and numpy have each their own errors for damaged bytes
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


def decode_regions(arrays: Mapping[str, object], place: str, as_stored: bool = False) -> tuple[Floats, Floats, Floats]:
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


def _class_probabilities(arrays: Mapping[str, object], classes: int, place: str) -> Floats:
    """soft_labels [R, classes] as float32.

    Raises:
        InputError: there are none, or they are not probabilities of so many classes.
    """
    found, features = arrays.get("soft_labels"), arrays.get("features")
    if not isinstance(found, np.ndarray):
        raise InputError(
            f"{place} has no array 'soft_labels', the detector's class probabilities, which the task of region classes learns: "
            "leave that task out (pretraining.tasks of the data, objectives of the model), or give databases of a detector that "
            "has them."
        )
    rows = len(features) if isinstance(features, np.ndarray) and features.ndim else 0
    if found.shape != (rows, classes):
        raise InputError(
            f"{place} has soft_labels {found.shape}; expected [{rows}, {classes}]: set region_classes of the network to the "
            "detector's number of classes, background included."
        )
    values_RC = found.astype(np.float32)
    if not (np.isfinite(values_RC).all() and (values_RC >= -_OFF).all() and (values_RC <= 1 + _OFF).all()):
        raise InputError(f"{place}: array 'soft_labels' has values that are no probabilities (0..1). Extract the image again.")
    return values_RC


def _require_sound(
    features_RD: npt.NDArray[Any], boxes_R6: npt.NDArray[Any], confidences_R: npt.NDArray[Any], place: str
) -> None:
    """See that an image's arrays hold what they are named for.

    Raises:
        InputError: names the array and the first region that does not.
    """
    corners_R4, sizes_R2 = boxes_R6[:, :4], boxes_R6[:, 4:]
    spans_R2 = corners_R4[:, 2:] - corners_R4[:, :2]
    right_boxes_R = (
        ((boxes_R6 >= -_OFF) & (boxes_R6 <= 1 + _OFF)).all(1)  # false of nan, too
        & (spans_R2 >= -_OFF).all(1)
        & (abs(sizes_R2 - spans_R2) <= 2 * _OFF).all(1)
    )
    right_confidences_R = (confidences_R >= -_OFF) & (confidences_R <= 1 + _OFF)
    if _is_finite(features_RD) and right_boxes_R.all() and right_confidences_R.all():
        return
    for name, right_R, values, expected in (
        ("features", np.isfinite(features_RD).all(1), features_RD, "finite numbers"),
        (
            "norm_bb",
            right_boxes_R,
            boxes_R6,
            "left, top, right, bottom, width, height as fractions (0..1), not pixels",
        ),
        ("conf", right_confidences_R, confidences_R, "confidences (0..1)"),
    ):
        if not right_R.all():
            region = int(right_R.argmin())
            value = values[region]
            shown = value[~np.isfinite(value)][0] if name == "features" else value
            text = np.array2string(np.asarray(shown), precision=3, separator=", ")
            raise InputError(
                f"{place}: array {name!r} has {text} at region {region} of {len(values)}; "
                f"expected {expected}. Extract the image again."
            )


def _is_finite(features_RD: npt.NDArray[Any]) -> bool:
    if features_RD.dtype != np.float16:
        return bool(np.isfinite(features_RD).all())
    # numpy's own takes 25 times as long for fp16. Their bits: 0x7c00 is infinity, above it nan; 0x8000 is the sign.
    bits = features_RD.view(np.int16)
    return int(bits.max()) < 0x7C00 and int(bits.view(np.uint16).max()) < 0xFC00
