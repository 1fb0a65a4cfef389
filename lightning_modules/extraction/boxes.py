"""Where the boxes of region features come from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.files.digests import digest
from datamodules.files.images import image_size, is_stored_sideways
from datamodules.formats.flickr_entities import read_annotation
from datamodules.formats.uniter.layout import Layout, not_a_folder
from datamodules.loading.region_files import RegionReader, named
from datamodules.records import ImageRecord

_RELEASED = ("flickr30k", "coco_train2014", "coco_val2014")  # what the released names of images begin with


class BoxSource(Protocol):
    """Where an image's boxes come from. Used in the processes that decode, so it is picklable."""

    @property
    def description(self) -> dict[str, Any]:
        """What the boxes of all images depend on, as JSON."""

    def file(self, record: ImageRecord) -> Path | None:
        """The file that this image's boxes come from, if it has one of its own."""

    def of(self, record: ImageRecord) -> tuple[Tensor, Tensor]:
        """[R, 4] left, top, right, bottom as fractions of the image, and confidences [R]; at least one.

        Raises:
            InputError: there are none for this image.
        """


@dataclass(frozen=True)
class GridBoxes:
    """The whole image cut into n x n equal boxes for each n of `levels`, row by row, with confidence 1."""

    levels: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1:
            raise InputError(f"A grid of boxes is of one or more numbers from 1, not {list(self.levels)}.")

    @property
    def description(self) -> dict[str, Any]:
        return {"boxes": "grid", "levels": list(self.levels)}

    def file(self, record: ImageRecord) -> None:
        return None

    def of(self, record: ImageRecord) -> tuple[Tensor, Tensor]:
        boxes = [
            (column / n, row / n, (column + 1) / n, (row + 1) / n) for n in self.levels for row in range(n) for column in range(n)
        ]
        return torch.tensor(boxes), torch.ones(len(boxes))


@dataclass(frozen=True)
class EntitiesBoxes:
    """The annotated boxes of Flickr30k Entities, in the order of `folder/Annotations/ID.xml`, with confidence 1.

    An image without any box (everything in it is a scene) has the whole image as its one region: a network needs one.

    Boxes are those of the image upright, as all images are read. Flickr turns what it publishes, so the data set's photographs
    need no orientation. Where one has it, and its annotation is of the size of the stored pixels, the boxes were drawn over it
    lying, and it is refused (a turn by a half, or a mirror, does not show in the sizes).
    """

    folder: Path

    @property
    def description(self) -> dict[str, Any]:
        return {"boxes": "entities"}

    def file(self, record: ImageRecord) -> Path:
        assert record.path is not None
        return self.folder / "Annotations" / f"{record.path.stem}.xml"

    def of(self, record: ImageRecord) -> tuple[Tensor, Tensor]:
        assert record.path is not None
        annotation = read_annotation(self.file(record))
        if is_stored_sideways(record.path):
            width, height = image_size(record.path)
            across, down = annotation.width, annotation.height
            if abs(width * down - height * across) > abs(height * down - width * across):
                raise InputError(
                    f"image {record.image_id}: {record.path} is {width} x {height} upright, as its EXIF orientation says, and "
                    f"the boxes of {record.path.stem}.xml were drawn over {across} x {down}, without turning it. Remove the "
                    "orientation from the file (then it is read as it lies), or turn the boxes."
                )
        boxes_R4 = torch.from_numpy(annotation.fractions_K4())
        if not len(boxes_R4):
            boxes_R4 = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        return boxes_R4, torch.ones(len(boxes_R4))


class DatabaseBoxes:
    """The boxes and confidences of an image database, in its order: another extractor's regions, with other features.

    Args:
        folder: the database's folder (where it has one layout), or that of one of its layouts.

    Raises:
        InputError: there is no image database, or it has several layouts.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"--boxes {folder}: {not_a_folder(folder)}")
        layout = layout_named(folder.name) if (folder / "data.mdb").is_file() else None
        if layout is not None:
            folder = folder.parent
        else:
            there = sorted(data.parent.name for data in folder.glob("*/data.mdb"))
            found = [known for name in there if (known := layout_named(name)) is not None]
            if len(found) != 1:
                what = f"several layouts ({', '.join(there)}): name the folder of one" if there else "no image database in it"
                raise InputError(f"--boxes {folder}: it has {what}.")
            (layout,) = found
        self._reader = RegionReader([folder], layout)

    @property
    def description(self) -> dict[str, Any]:
        (database,) = self._reader.databases
        content = digest(database.folder / "data.mdb")
        return {"boxes": "database", "layout": database.layout.folder, "images": len(database.names()), "content": content}

    def file(self, record: ImageRecord) -> None:
        return None

    def of(self, record: ImageRecord) -> tuple[Tensor, Tensor]:
        (database,) = self._reader.databases
        (found,) = named([record], self._reader, _RELEASED, f"--boxes {database.path}")
        regions = database.read(str(found.regions))
        return torch.from_numpy(regions.boxes_R7[:, :4].copy()), torch.from_numpy(regions.confidences_R)


def layout_named(name: str) -> Layout | None:
    """The layout whose folder has this name."""
    stem = name.removesuffix("_compressed")
    compressed = stem != name
    if stem == "all":
        return Layout("all", compressed=compressed)
    if match := re.fullmatch(r"feat_numbb(\d+)", stem):
        return Layout("fixed", num_bb=int(match[1]), compressed=compressed)
    if match := re.fullmatch(r"feat_th([\d.]+)_max(\d+)_min(\d+)", stem):
        return Layout("threshold", float(match[1]), int(match[2]), int(match[3]), compressed=compressed)
    return None
