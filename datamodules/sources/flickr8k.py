"""Flickr8k (Hodosh et al. 2013) with Karpathy's split: Flickr30k's small sibling."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from datamodules.errors import InputError
from datamodules.files.addresses import FLICKR8K_FORM, KARPATHY
from datamodules.files.steps import Step
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

    def parse_options(self) -> dict[str, Any]:
        return {"root": str(self.root), "image_dir": str(self.image_dir)}

    def karpathy_file(self) -> Path:
        return self.annotations

    def steps(self) -> list[Step]:
        found = [Step(self.annotations, KARPATHY, self.root, self.root)] if self.needs_annotation_files else []
        if self.needs_image_files:
            found.append(Step(self.image_dir, by_hand=f"Flickr8k_Dataset.zip, 1.1 GB, by the form at {FLICKR8K_FORM}"))
        return found

    def require_files(self) -> None:
        """See that everything is there.

        Raises:
            InputError: says which files to put where.
        """
        if missing := [step for step in self.steps() if not step.path.exists()]:
            lines = [f"  {step.path}: {step.by_hand if step.remote is None else f'from {step.remote.url}'}" for step in missing]
            advice = "`crosslight data get flickr8k` fetches what needs no form, or by hand:"
            raise InputError("\n".join([f"Flickr8k is not complete under {self.root}. {advice}", *lines]))

    def parse(self) -> Parsed:
        self.require_files()
        return parse_karpathy(self.annotations, self.image_dir)
