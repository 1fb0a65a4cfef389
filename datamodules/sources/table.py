"""Your own images: a folder, and a table that says which captions each image has."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from datamodules.errors import InputError, shown, some
from datamodules.files.digests import digests
from datamodules.formats.captioned_rows import SPLITS, CaptionedRows, Columns, TableImage
from datamodules.formats.parsing import Parsed
from datamodules.formats.table import ENDINGS, TableFile, otherwise_separated, read_table
from datamodules.source import Source


@dataclass(frozen=True)
class Draw:
    """How images are put into splits where the table does not say.

    An image is in one split with all its captions, and files of equal content are in one split. The draw depends on the images'
    paths and the seed, not on the order of the rows; images that are added later leave most others where they were.

    Args:
        val: Share of the images to validate on.
        test: Share of the images to test on. All others train. With 1.0 (and val 0) all are the test, of a model that is there.
        seed: Another one draws other images.
    """

    val: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, share in (("val", self.val), ("test", self.test)):
            if not 0 <= share <= 1:
                raise InputError(f"draw.{name} is {share}; give a share of the images, from 0 to 1.")
        if self.val + self.test >= 1 and (self.val, self.test) != (0, 1):
            raise InputError(f"draw.val + draw.test is {self.val + self.test:g}, which leaves nothing to train on.")


_SPLIT_NAMES = {"set", "subset", "part", "partition", "fold", "phase", "usage"}  # and what has "split" in it


class TableSource(Source):
    """Your own images and captions: a table (CSV, TSV, JSON lines or Parquet) with a row for each caption or image.

    Root holds the table and, at the paths that it names, the images:

        path,caption,split
        beach/1.jpg,Two dogs run along the water.,train
        beach/1.jpg,Dogs at the sea.,train
        2.jpg,A red bicycle leans on a wall.,test

    docs/your_data.md has more examples.

    Args:
        root: Folder of the data set.
        table: The table, relative to root (or absolute); null is the only one in root.
        image_dir: Folder that the paths in the table are relative to, itself relative to root (or absolute).
        columns: Names of the table's columns.
        draw: Shares and seed of the splits, for a table without them; null is a tenth each to validate and to test on.
        loading: Options of all image-text data modules, where it is one.
    """

    name: ClassVar[str] = "table"

    def __init__(
        self,
        root: str,
        table: str | None = None,
        image_dir: str = ".",
        columns: Columns = Columns(),  # noqa: B008 - frozen
        draw: Draw | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(root, image_dir, **loading)
        self.columns = columns
        if not columns.texts or len(set(columns.all)) != len(columns.all):
            names = ", ".join(columns.all)
            raise InputError(f"columns are {names}: give one for the image and at least one for captions, no name twice.")
        self.draw = draw
        self._given = table
        self._notes: list[str] = []

    @cached_property
    def table(self) -> Path:
        """The table.

        Raises:
            InputError: the option is not set, and root holds none, or several.
        """
        if self._given is not None:
            return self.root / Path(self._given).expanduser()
        if not self.root.is_dir():
            raise InputError(f"{self.root} is no folder. Set root to the one that holds your table.")
        found = sorted(file for file in self.root.iterdir() if file.suffix.lower() in ENDINGS and not file.name.startswith("."))
        if not found:
            raise InputError(
                f"{self.root} holds no table ({', '.join(ENDINGS)}). Write captions.csv with the columns path, caption, split "
                "(docs/your_data.md), or set table to where it lies."
            )
        if len(found) > 1:
            names = some(file.name for file in found)
            raise InputError(f"{self.root} holds {len(found)} tables: {names}. Set table to one of them.")
        return found[0]

    def annotation_files(self) -> list[Path]:
        return [self.table]

    def require_files(self) -> None:
        """See that the table and the folder of the images are there.

        Raises:
            InputError: says which is not, and which option says where it is.
        """
        if not self.table.exists():
            raise InputError(f"{self.table} does not exist. Set root and table to where your table lies.")
        if self.needs_image_files and not self.image_dir.is_dir():
            raise InputError(f"{self.image_dir} is no folder. Set image_dir to the one that the paths in {self.table} start at.")

    def options(self) -> dict[str, Any]:
        columns = {"image": self.columns.image, "captions": list(self.columns.texts), "split": self.columns.split}
        return {"columns": columns, "draw": None if self.draw is None else asdict(self.draw)}

    def notes(self) -> list[str]:
        return self._notes

    # -------------------------------------------------------------------------------------------------------------- parsing

    def parse(self) -> Parsed:
        self.require_files()
        table = read_table(self.table, self.columns.all)
        has_splits = self._has_splits(table)
        parsed = Parsed(self.table)
        images = CaptionedRows(parsed, self.columns, self.image_dir).images(table.rows, has_splits)
        alike = self._by_content(parsed, images)
        if has_splits:
            for first, *others in alike:
                for other in others:
                    if other.split != first.split:
                        copy = f"the same content as {first.name} of {first.split} in {first.place}"
                        text = f"{other.place}: {other.name} of {other.split} has {copy}"
                        parsed.add("image in several splits", text)
            if copies := sum(len(same) for same in alike) - len(alike):
                self._notes = [f"{copies:,} image file(s) have the same content as another one of their split"]
        elif not parsed.problems:
            self._draw(alike)
        for split in SPLITS:
            if records := [image.record(self.image_dir) for image in images.values() if image.split == split]:
                parsed.splits[split] = records
        return parsed

    def _has_splits(self, table: TableFile) -> bool:
        """Whether the table says the splits; also that it has the columns it must have."""
        columns = self.columns
        must = {columns.image: "image", **dict.fromkeys(columns.texts, "captions")}
        if columns.split is not None and columns.split != Columns.split:
            must[columns.split] = "split"
        for name, option in must.items():
            if name not in table.columns:
                known = ", ".join(map(shown, table.columns)) or "none"
                raise InputError(
                    f"{self.table} has no column {name!r}; its columns are {known}. {otherwise_separated(table.columns)}Set "
                    f"columns.{option} to what yours is called (in CSV the first line has the names, with commas between them)."
                )
        has = columns.split is not None and columns.split in table.columns
        nearly = [name for name in table.columns if name.casefold() in _SPLIT_NAMES or "split" in name.casefold()]
        if columns.split is not None and not has and nearly:
            raise InputError(
                f"{self.table} has no column {columns.split!r}, and one that may be it: {nearly[0]!r}. Set columns.split to "
                f"{nearly[0]}, or to null to have splits drawn in spite of it."
            )
        if has and self.draw is not None:
            raise InputError(
                f"{self.table} has the column {columns.split!r}, so nothing is drawn, but draw is set. Leave draw out, or set "
                "columns.split to null to draw in spite of the column."
            )
        return has

    def _by_content(self, parsed: Parsed, images: dict[str, TableImage]) -> list[list[TableImage]]:
        """The images, those whose files have the same content together. Images that are not there become problems and are left
        out, unless none is needed."""
        contents = digests(self.image_dir / name for name in images)
        alike: dict[str, list[TableImage]] = defaultdict(list)
        stems: dict[str, TableImage] = {}
        nearly = _Nearly()
        for image in list(images.values()):
            file = self.image_dir / image.name
            if self.needs_image_files and file not in contents:
                why = "is no file" if file.exists() else f"does not exist{nearly.hint(self.image_dir, image.name)}"
                parsed.add("missing image", f"{image.place}: {file} {why}")
                del images[image.name]
                continue
            alike[contents.get(file, image.name)].append(image)
            other = stems.setdefault(file.stem, image)
            if other is not image and not self.needs_image_files:
                same = f"{image.name} and {other.name} ({other.place}) have one name in databases of regions"
                parsed.add("duplicated id", f"{image.place}: {same}, which know no folder and no ending; rename one")
        return list(alike.values())

    def _draw(self, alike: Sequence[Sequence[TableImage]]) -> None:
        draw = self.draw or Draw()
        split_of = drawn([[image.name for image in same] for same in alike], draw, str(self.table))
        for image in (image for same in alike for image in same):
            image.split = split_of[image.name]
        counts = Counter(split_of.values())
        told = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS)
        self._notes = [f"splits are drawn with seed {draw.seed} ({told} images): the table does not say them"]
        if copies := sum(len(same) for same in alike) - len(alike):
            self._notes.append(f"{copies:,} image file(s) have the same content as another one, and are in its split")


def drawn(alike: Sequence[Sequence[str]], draw: Draw, source: str) -> dict[str, str]:
    """Which split each image is in.

    Args:
        alike: The ids of all images, those of equal content together: they go to one split.
        draw: Shares and seed.
        source: Of the images, for errors.

    Returns:
        The split of each id.

    Raises:
        InputError: There are too few images for the splits.
    """
    images = sum(map(len, alike))
    wanted = {split: max(1, round(images * share)) for split, share in (("test", draw.test), ("val", draw.val)) if share}
    splits = len(wanted) + (draw.test < 1)
    if len(alike) < splits:
        few = f"{len(alike)} different image(s), too few for {splits} splits"
        raise InputError(f"{source} has {few}. Add some, or set draw.")
    left = sorted(alike, key=lambda ids: hashlib.sha256(f"{draw.seed}\n{min(ids)}".encode()).digest())
    split_of: dict[str, str] = {}
    for place, (split, count) in enumerate(wanted.items()):
        others = splits - 1 - place  # that need an image yet, beside this one
        filled = 0
        while filled < count and len(left) > others:
            ids = left.pop()
            filled += len(ids)
            split_of |= dict.fromkeys(ids, split)
    return split_of | {name: "train" for ids in left for name in ids}


class _Nearly:
    """Files whose names are nearly those of a table: of Windows' slashes, of other cases, of letters that are put together
    otherwise (macOS writes an accent behind its letter). A folder is read once."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, str]] = {}

    def hint(self, folder: Path, name: str) -> str:
        """What to say of a file that is not there; empty where nothing is near."""
        name = name.replace("\\", "/")
        if (folder / name).is_file():
            return f": the table has \\ where a path has /; there is {name}"
        parent = (folder / name).parent
        if parent not in self._files:
            files = [each.name for each in parent.iterdir() if each.is_file()] if parent.is_dir() else []
            self._files[parent] = {_plain(each): each for each in files}
        near = self._files[parent].get(_plain(Path(name).name))
        if near is None:
            return ""
        alike = unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", Path(name).name)
        return f": there is {near}" + (", which looks the same, in other Unicode (NFC or NFD)" if alike else "")


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
