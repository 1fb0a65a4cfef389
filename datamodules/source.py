"""What the files of a data set are: which must be there, where they come from, and what they say. No batches, so no torch.

A data set's source is a file in `datamodules/sources`, named as the data set; its data module is the same with loaders:

    class COCO(COCOSource, ImageTextDataModule): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from datamodules.errors import InputError
from datamodules.files.steps import Step, carry_out
from datamodules.formats.beit3_index import IndexKind
from datamodules.formats.parsing import Parsed, without_collecting
from datamodules.records import ImageRecord


class Source(ABC):
    """Images with captions in files.

    Args:
        root: Folder of the data set.
        image_dir: Folder of the images, relative to root (or absolute).
    """

    name: ClassVar[str]
    """Of the data set, as results and the command line name it."""

    region_prefixes: ClassVar[tuple[str, ...]] = ()
    """Of the data set's image names in UNITER's released databases, such as flickr30k in flickr30k_001000092795.npz."""

    own_captions: ClassVar[bool] = False
    """Captions say more than text databases hold (where their phrases are), so those never take their place."""

    whole: ClassVar[Mapping[str, Any]] = {}
    """Options with which no image is left out, for what is made once of every image."""

    only_annotations: bool = False
    """Whether the image files need not be there: what takes region databases in their place says so."""

    def __init__(self, root: str, image_dir: str) -> None:
        super().__init__()  # of a data module the rest of its bases
        self.root = Path(root).expanduser().absolute()
        self.image_dir = self.root / Path(image_dir).expanduser()

    @abstractmethod
    def parse(self) -> Parsed:
        """All splits under the names train, val, test (others may be there too), and what is wrong with them.

        Raises:
            InputError: files are missing, or cannot be read at all.
        """

    @abstractmethod
    def require_files(self) -> None:
        """See that everything is there.

        Raises:
            InputError: says which files are missing and where they come from.
        """

    @abstractmethod
    def annotation_files(self) -> list[Path]:
        """The files that `parse` reads; their content enters the fingerprint."""

    def options(self) -> dict[str, Any]:
        """The options that change what the splits are (not how they are loaded)."""
        return {}

    # ------------------------------------------------------------------------------- what `parse` gave, kept (kept_records.py)

    def parse_options(self) -> dict[str, Any] | None:
        """All that decides what `parse` gives beside the content of `parsed_files`, as JSON. What it gave is then kept, and used
        as long as nothing of this, of the files, of our code and of the class's own file has changed. None: the files are parsed
        at every start."""
        return None

    def parsed_files(self) -> Iterable[Path]:
        """The files whose content decides what `parse` gives."""
        return self.annotation_files()

    def remembered(self) -> dict[str, Any]:
        """What `parse` has left in this object beside what it gave, as JSON."""
        return {}

    def recall(self, remembered: Mapping[str, Any]) -> None:  # noqa: B027 - most leave nothing
        """Put that back, where what `parse` gave was kept; called in any case."""

    def steps(self) -> list[Step]:
        """What must be there, and how each comes to be there: here by hand."""
        return [Step(path) for path in self.annotation_files()]

    def fetch_files(self) -> None:
        """Fetch what is missing, where that can be.

        Raises:
            InputError: something cannot be fetched.
        """
        for step in self.steps():
            carry_out(step)

    def prepare_data(self) -> None:
        """Fetch what is missing, where the options say so: here they never do, so this is `require_files`."""
        self.require_files()

    def notes(self) -> list[str]:
        """What `parse` left out of the files, for a report of them."""
        return []

    @property
    def positives(self) -> Mapping[str, Path]:
        """Sets of right answers of the test split beyond its own captions, by name, and the folder of each one's files."""
        return {}

    def split_name(self, split: str) -> str:
        """What results call a split."""
        return split

    @property
    def needs_image_files(self) -> bool:
        """Whether anything is made of the image files themselves."""
        return not self.only_annotations

    @property
    def needs_annotation_files(self) -> bool:
        """Whether the captions are those of `annotation_files`, and not of text databases."""
        return True

    # ------------------------------------------------------------------------------------ what is made from it beforehand

    def karpathy_file(self) -> Path:
        """Karpathy's file of the data set, which UNITER's text databases are made from.

        Raises:
            InputError: it has none.
        """
        raise InputError(f"{self.name} has no split by Karpathy, which text databases are made from.")

    def index_source(self) -> tuple[IndexKind, Path]:
        """Which of BEiT-3's index files are made, and from what.

        Raises:
            InputError: BEiT-3 has none of this data set.
        """
        raise InputError(f"BEiT-3 has index files of coco and flickr30k only; {self.name} is read as it is.")

    def every_image(self) -> list[ImageRecord]:
        """The images of all splits, in their order.

        Raises:
            InputError: the data set is not complete, or has problems.
        """
        with without_collecting():
            return [record for records in self.parse().valid().values() for record in records]
