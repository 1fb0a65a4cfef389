"""The rows of a table as images with captions: what its columns are called, and what is wrong with a row.

Every problem names the row's place in the file. `datamodules/formats/table.py` reads the file itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from datamodules.errors import shown
from datamodules.formats.parsing import Parsed
from datamodules.formats.problems import has_words, is_sound
from datamodules.formats.table import Row
from datamodules.records import Caption, ImageRecord

SPLITS = ("train", "val", "test")
_LISTS = ("['", '["', "('", '("')  # a list that was written into a cell of a CSV file
_NOTHING = {"nan", "none", "null", "nil", "n/a", "na", "<na>", "#n/a"}  # what programs write where there is no text


@dataclass(frozen=True)
class Columns:
    """What the columns of the table are called. Other columns are not read.

    Args:
        image: The image's path, relative to image_dir (or absolute). An image that comes again has one caption more.
        captions: The captions: a text, or a list of texts in JSON lines and Parquet. A list of columns is taken together, so that
            an image has a caption in each; some of them may be empty.
        split: "train", "val" or "test". Where the table has no column of the name split, or where this is null, splits are drawn.
    """

    image: str = "path"
    captions: tuple[str, ...] | str = "caption"
    split: str | None = "split"

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of captions."""
        return (self.captions,) if isinstance(self.captions, str) else tuple(self.captions)

    @property
    def all(self) -> list[str]:
        """The columns that are read."""
        return [self.image, *self.texts, *([] if self.split is None else [self.split])]


class TableImage:
    """An image of the table: where its first row is, and the captions of all its rows."""

    __slots__ = ("captions", "name", "place", "split")

    def __init__(self, name: str, place: str, split: str) -> None:
        self.name, self.place, self.split = name, place, split
        self.captions: list[str] = []

    def record(self, folder: Path) -> ImageRecord:
        """Of the image, whose path is relative to this folder."""
        captions = tuple(Caption(f"{self.name}#{number}", text) for number, text in enumerate(self.captions))
        return ImageRecord(self.name, folder / self.name, captions)


class CaptionedRows:
    """Reads rows.

    Args:
        parsed: Takes the problems.
        columns: What the columns are called.
        folder: Where the images' paths start.
    """

    def __init__(self, parsed: Parsed, columns: Columns, folder: Path) -> None:
        self.parsed, self.columns, self.folder = parsed, columns, folder

    def images(self, rows: Iterable[Row], has_splits: bool) -> dict[str, TableImage]:
        """The images by their ids, in the order of their first rows; what is wrong with a row goes to the problems."""
        images: dict[str, TableImage] = {}
        for row in rows:
            name = self._image_id(row)
            captions = self._captions(row)
            split = self._split(row) if has_splits else ""
            if name is None or captions is None or split is None:
                continue
            image = images.setdefault(name, TableImage(name, row.place, split))
            if image.split != split:
                both = f"{row.place}: {name} is of {split}, and of {image.split} in {image.place}"
                self.parsed.add("image in several splits", both)
                continue
            image.captions += captions
        return images

    def _image_id(self, row: Row) -> str | None:
        """An image's path relative to the folder where it lies there; None where the row has none."""
        value = row.values.get(self.columns.image)
        if not isinstance(value, str) or not value.strip() or "\0" in value or not is_sound(value):
            found = "is missing" if value in (None, "") else f"is {shown(value)}, which is no path"
            self.parsed.add("unreadable annotation", f"{row.place}: {self.columns.image} {found}")
            return None
        if "://" in value:
            self.parsed.add(
                "missing image", f"{row.place}: {shown(value)} is an address and no file; download it, and name the file"
            )
            return None
        outer = value != value.strip() and (self.folder / value).is_file()  # spaces that belong to the name
        path = PurePath(os.path.normpath(self.folder / (value if outer else value.strip())))
        folder = os.path.normpath(self.folder)
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    def _captions(self, row: Row) -> list[str] | None:
        """A row's captions; None where something is wrong with them."""
        texts: list[str] = []
        for column in self.columns.texts:
            value = row.values.get(column)
            nothing = value is None or (isinstance(value, str) and not value.strip())
            if nothing and len(self.columns.texts) > 1:
                continue
            for text in value if isinstance(value, list) else [value]:
                where = f"{row.place}: {column}"
                if text is None or (isinstance(text, str) and not has_words(text)):
                    self.parsed.add("empty caption", f"{where} is empty")
                    return None
                if wrong := _wrong_with(text):
                    self.parsed.add("broken text", f"{where} {wrong}")
                    return None
                texts.append(text)
        if not texts:
            self.parsed.add("image without captions", f"{row.place}: {', '.join(self.columns.texts)} hold(s) no caption")
            return None
        return texts

    def _split(self, row: Row) -> str | None:
        value = row.values.get(str(self.columns.split))
        if isinstance(value, str) and value.strip() in SPLITS:
            return value.strip()
        found = "is empty" if value in (None, "") else f"is {shown(value)}"
        self.parsed.add("unknown split", f"{row.place}: {self.columns.split} {found}; write one of {', '.join(SPLITS)}")
        return None


def _wrong_with(text: object) -> str | None:
    """What makes a value no caption."""
    if not isinstance(text, str):
        return f"is {shown(text)}, which is no text"
    if not is_sound(text):
        return "has half a character (a surrogate)"
    if text.strip().casefold() in _NOTHING:
        return f"is {shown(text)}, which stands for nothing: leave the cell empty, or the row out"
    if text.lstrip().startswith(_LISTS):
        return f"is {shown(text)}, which looks like a list: write a row for each caption, or JSON lines with a list"
    return None
