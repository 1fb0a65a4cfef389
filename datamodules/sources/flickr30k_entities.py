"""Flickr30k Entities (Plummer et al. 2015): Flickr30k with phrases tied to boxes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.errors import InputError
from datamodules.files.addresses import FLICKR30K_FORM, KARPATHY
from datamodules.files.steps import Step
from datamodules.files.text import read_words
from datamodules.formats.flickr_entities import read_entities, read_unrelated
from datamodules.formats.karpathy import parse_karpathy
from datamodules.formats.parsing import Parsed
from datamodules.records import ImageRecord
from datamodules.source import Source

_REPOSITORY = "https://github.com/BryanPlummer/flickr30k_entities"


class Flickr30kEntitiesSource(Source):
    """Flickr30k with the captions and phrases of Flickr30k Entities.

    Root holds the photographs in flickr30k-images/ and, in flickr30k_entities/, a copy of the repository with annotations.zip
    unpacked in it: Sentences/ID.txt, Annotations/ID.xml, {train,val,test}.txt, UNRELATED_CAPTIONS. Captions have the ids "ID#0",
    "ID#1", ... in file order.

    Args:
        root: Folder of the data set.
        image_dir: Folder of the images, relative to root (or absolute).
        entities_dir: Folder of the annotations, relative to root (or absolute).
        split: "entities" takes the lists of Entities (29,783/1,000/1,000); "karpathy" those of root's dataset_flickr30k.json
            (29,000/1,014/1,000).
        unrelated: "drop" leaves out captions that UNRELATED_CAPTIONS lists (where that file is there) as not describing their
            image, and images that have no others.
        loading: Options of all image-text data modules, where it is one.
    """

    name: ClassVar[str] = "flickr30k_entities"
    region_prefixes: ClassVar[tuple[str, ...]] = ("flickr30k",)
    own_captions: ClassVar[bool] = True
    whole: ClassVar[Mapping[str, Any]] = {"unrelated": "keep"}

    def __init__(
        self,
        root: str,
        image_dir: str = "flickr30k-images",
        entities_dir: str = "flickr30k_entities",
        split: Literal["entities", "karpathy"] = "entities",
        unrelated: Literal["drop", "keep"] = "drop",
        **loading: Any,
    ) -> None:
        super().__init__(root, image_dir, **loading)
        self.entities_dir = self.root / Path(entities_dir).expanduser()
        self.split = split
        self.unrelated = unrelated

    def options(self) -> dict[str, Any]:
        return {"split": self.split, "unrelated": self.unrelated}

    def annotation_files(self) -> list[Path]:
        listed = self.entities_dir / "UNRELATED_CAPTIONS"
        unrelated = [listed] if self.unrelated == "drop" and listed.exists() else []
        return [*(self._lists().values() if self.split == "entities" else [self.root / "dataset_flickr30k.json"]), *unrelated]

    def parse_options(self) -> dict[str, Any]:
        return {
            **self.options(), "root": str(self.root), "image_dir": str(self.image_dir), "entities_dir": str(self.entities_dir)
        }  # fmt: skip

    def parsed_files(self) -> Iterable[Path]:
        folders = (self.entities_dir / name for name in ("Sentences", "Annotations"))
        return [*self.annotation_files(), *(folder / name for folder in folders for name in sorted(os.listdir(folder)))]

    def karpathy_file(self) -> Path:
        raise InputError("the text databases of Flickr30k Entities are those of flickr30k: give that KIND.")

    def sentences(self, image_id: str) -> Path:
        """The file of an image's captions."""
        return self.entities_dir / "Sentences" / f"{image_id}.txt"

    def annotation(self, image_id: str) -> Path:
        """The file of an image's boxes."""
        return self.entities_dir / "Annotations" / f"{image_id}.xml"

    def _lists(self) -> dict[str, Path]:
        return {split: self.entities_dir / f"{split}.txt" for split in ("train", "val", "test")}

    def steps(self) -> list[Step]:
        folders = [self.entities_dir / "Sentences", self.entities_dir / "Annotations"]
        copied = f"from a copy of {_REPOSITORY}, with annotations.zip unpacked in it"
        found = [Step(path, by_hand=copied) for path in (*self.annotation_files(), *folders) if path.parent == self.entities_dir]
        if self.split != "entities":
            found.append(Step(self.root / "dataset_flickr30k.json", KARPATHY, self.root, self.root))
        if self.needs_image_files:
            found.append(Step(self.image_dir, by_hand=f"flickr30k-images.tar.gz, 4.4 GB, by the form at {FLICKR30K_FORM}"))
        return found

    def require_files(self) -> None:
        """See that everything is there.

        Raises:
            InputError: says which files to put where.
        """
        folders = [self.entities_dir / "Sentences", self.entities_dir / "Annotations"]
        images = [self.image_dir] if self.needs_image_files else []
        missing = [str(path) for path in (*self.annotation_files(), *folders, *images) if not path.exists()]
        if missing:
            raise InputError(
                f"Flickr30k Entities is not complete under {self.root}: missing {', '.join(missing)}. Fetch by hand:\n"
                f"  {self.entities_dir}: a copy of {_REPOSITORY} with annotations.zip unpacked in it\n"
                f"  {self.image_dir}/*.jpg: flickr30k-images.tar.gz, by the form at {FLICKR30K_FORM}"
            )

    def parse(self) -> Parsed:
        self.require_files()
        parsed = Parsed(self.entities_dir)
        dropped: frozenset[tuple[str, int]] = frozenset()
        for path in self.annotation_files():
            if path.name == "UNRELATED_CAPTIONS":
                dropped = read_unrelated(path)
        for split, identities in self._identities(parsed).items():
            records = parsed.splits[split] = []
            for identity in identities:
                try:
                    captions = read_entities(self.entities_dir, identity).captions
                except InputError as error:  # tens of thousands of files: say of all what is wrong, not of the first
                    parsed.add("unreadable annotation", str(error))
                    continue
                kept = tuple(caption for place, caption in enumerate(captions) if (identity, place) not in dropped)
                if kept:
                    records.append(ImageRecord(identity, self.image_dir / f"{identity}.jpg", kept))
        return parsed

    def _identities(self, parsed: Parsed) -> dict[str, list[str]]:
        """The images of each split; what is wrong with Karpathy's file is added to `parsed`."""
        if self.split == "karpathy":
            karpathy = parse_karpathy(self.root / "dataset_flickr30k.json", self.image_dir)
            parsed.problems += karpathy.problems
            return {split: [record.image_id for record in records] for split, records in karpathy.splits.items()}
        return {split: read_words(path, "the ids of a split's images, one a line") for split, path in self._lists().items()}
