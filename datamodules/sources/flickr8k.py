"""Flickr8k (Hodosh et al. 2013) with Karpathy's split: Flickr30k's small sibling."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from datamodules.errors import InputError
from datamodules.formats.karpathy import parse_karpathy
from datamodules.formats.parsing import Parsed
from datamodules.source import Source


class Flickr8kSource(Source):
    """Flickr8k: 8,000 photographs with five captions, 6,000/1,000/1,000.

    All of them are in Flickr30k too, in other splits: never train on one and test on the other.

    Root holds dataset_flickr8k.json and the images in images/.

    Args:
        root: Folder of the data set.
        image_dir: Folder of the images, relative to root (or absolute).
        loading: Options of all image-text data modules, where it is one.
    """

    name: ClassVar[str] = "flickr8k"

    def __init__(self, root: str, image_dir: str = "images", **loading: Any) -> None:
        super().__init__(root, image_dir, **loading)
        self.annotations = self.root / "dataset_flickr8k.json"

    def annotation_files(self) -> list[Path]:
        return [self.annotations]

    def karpathy_file(self) -> Path:
        return self.annotations

    def require_files(self) -> None:
        """See that everything is there.

        Raises:
            InputError: says which files to put where.
        """
        needed = self.annotation_files() if self.needs_annotation_files else []
        needed += [self.image_dir] if self.needs_image_files else []
        missing = [str(path) for path in needed if not path.exists()]
        if missing:
            raise InputError(
                f"Flickr8k is not complete under {self.root}: missing {', '.join(missing)}. It needs a form, so fetch it by "
                "hand:\n"
                f"  {self.annotations}: from caption_datasets.zip, "
                "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip\n"
                f"  {self.image_dir}/*.jpg: Flickr8k_Dataset.zip, by the form at "
                "https://hockenmaier.cs.illinois.edu/8k-pictures.html"
            )

    def parse(self) -> Parsed:
        self.require_files()
        return parse_karpathy(self.annotations, self.image_dir)
