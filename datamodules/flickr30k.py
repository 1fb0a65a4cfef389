"""Flickr30k (Young et al. 2014) with Karpathy's split or that of Flickr30k Entities."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.errors import InputError
from datamodules.formats.karpathy import parse_karpathy
from datamodules.formats.parsing import Parsed
from datamodules.image_text import ImageTextDataModule

_SPLITS_PAGE = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"


class Flickr30k(ImageTextDataModule):
    """Flickr30k: 31,014 photographs with five captions; 29,000/1,014/1,000 in Karpathy's split.

    Root holds dataset_flickr30k.json and the images in flickr30k-images/; the "entities" split also needs
    flickr30k_entities/{train,val,test}.txt.

    Args:
        root: Folder of the data set.
        image_dir: Folder of the images, relative to root (or absolute).
        split: "karpathy" takes the splits of dataset_flickr30k.json; "entities" takes those of Flickr30k Entities, one image id
            a line in flickr30k_entities/{train,val,test}.txt (29,783/1,000/1,000, used with region annotations).
        loading: Options of all image-text data modules.
    """

    name: ClassVar[str] = "flickr30k"

    def __init__(
        self,
        root: str,
        image_dir: str = "flickr30k-images",
        split: Literal["karpathy", "entities"] = "karpathy",
        **loading: Any,
    ) -> None:
        super().__init__(root, image_dir, **loading)
        self.split = split
        self.annotations = self.root / "dataset_flickr30k.json"

    def options(self) -> dict[str, Any]:
        return {"split": self.split}

    def annotation_files(self) -> list[Path]:
        return [self.annotations, *(self._lists().values() if self.split == "entities" else ())]

    def _lists(self) -> dict[str, Path]:
        return {split: self.root / "flickr30k_entities" / f"{split}.txt" for split in ("train", "val", "test")}

    def prepare_data(self) -> None:
        """Flickr30k needs a form, so nothing is downloaded: this is `require_files`."""
        self.require_files()

    def require_files(self) -> None:
        """See that everything is there.

        Raises:
            InputError: says which files to put where.
        """
        lists = self._lists() if self.split == "entities" else {}
        missing = [str(path) for path in (self.annotations, self.image_dir, *lists.values()) if not path.exists()]
        if missing:
            raise InputError(
                f"Flickr30k is not complete under {self.root}: missing {', '.join(missing)}. It needs a form, so fetch it by "
                "hand:\n"
                f"  {self.annotations}: from caption_datasets.zip, {_SPLITS_PAGE}\n"
                f"  {self.image_dir}/*.jpg: flickr30k-images.tar.gz, by the form at https://shannon.cs.illinois.edu/DenotationGraph/"
                + (
                    f"\n  {self.root}/flickr30k_entities/{{train,val,test}}.txt: "
                    "https://github.com/BryanPlummer/flickr30k_entities"
                    if lists
                    else ""
                )
            )

    def parse(self) -> Parsed:
        self.require_files()
        parsed = parse_karpathy(self.annotations, self.image_dir)
        if self.split == "entities":
            by_id = {record.image_id: record for records in parsed.splits.values() for record in records}
            parsed.splits = {}
            for split, path in self._lists().items():
                identities = path.read_text(encoding="utf-8").split()
                unknown = [identity for identity in identities if identity not in by_id]
                if unknown:
                    raise InputError(
                        f"{path} names {len(unknown):,} images that {self.annotations} does not have, first {unknown[0]!r}; "
                        "both must be of the whole Flickr30k."
                    )
                parsed.splits[split] = [by_id[identity] for identity in identities]
        return parsed
