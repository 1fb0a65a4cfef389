"""Flickr30k (Young et al. 2014) with Karpathy's split or that of Flickr30k Entities, or BEiT-3's index files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.errors import InputError, shown
from datamodules.files.addresses import FLICKR30K_FORM, KARPATHY
from datamodules.files.steps import Step
from datamodules.files.text import read_words
from datamodules.formats.beit3_index import IndexKind, how_to_write, index_files, parse_index, require_current_index
from datamodules.formats.flickr_tokens import read_tokens
from datamodules.formats.karpathy import parse_karpathy
from datamodules.formats.parsing import Parsed, join
from datamodules.records import ImageRecord
from datamodules.source import Source


class Flickr30kSource(Source):
    """Flickr30k: 31,014 photographs with five captions; 29,000/1,014/1,000 in Karpathy's split.

    Root holds dataset_flickr30k.json and the images in flickr30k-images/; the "entities" split also needs
    flickr30k_entities/{train,val,test}.txt, and of the 769 photographs that Karpathy's file lacks the data set's own captions,
    results_20130124.token. BEiT-3's index: flickr30k.{train,val,test}.jsonl (`crosslight data index` writes
    them) in place of dataset_flickr30k.json.

    Args:
        root: Folder of the data set.
        image_dir: Folder of the images, relative to root (or absolute).
        split: "karpathy" takes the splits of dataset_flickr30k.json; "entities" takes those of Flickr30k Entities, one image id
            a line in flickr30k_entities/{train,val,test}.txt (29,783/1,000/1,000, used with region annotations).
        captions: "karpathy" reads dataset_flickr30k.json; "beit3_index" reads BEiT-3's index files (of Karpathy's split), whose
            captions are token ids: only for a network with BEiT-3's tokenizer.
        files: Index: which files make which split, relative to root, in place of the names above.
        loading: Options of all image-text data modules, where it is one.
    """

    name: ClassVar[str] = "flickr30k"
    region_prefixes: ClassVar[tuple[str, ...]] = ("flickr30k",)

    def __init__(
        self,
        root: str,
        image_dir: str = "flickr30k-images",
        split: Literal["karpathy", "entities"] = "karpathy",
        captions: Literal["karpathy", "beit3_index"] = "karpathy",
        files: dict[str, list[str]] | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(root, image_dir, **loading)
        if captions == "beit3_index" and split == "entities":
            raise InputError('the index files are of Karpathy\'s split; with split "entities" set captions to "karpathy".')
        if captions == "beit3_index" and self.image_dir.name != "flickr30k-images":
            raise InputError(f"the index files name images flickr30k-images/...: image_dir {image_dir} must end in that name.")
        if files is not None and captions != "beit3_index":
            raise InputError('files names the index files of splits; set captions to "beit3_index" with it.')
        self.split = split
        self.captions = captions
        self.annotations = self.root / "dataset_flickr30k.json"
        self.tokens = self.root / "results_20130124.token"
        files = files or index_files("flickr30k")
        self.files = {split: [self.root / path for path in paths] for split, paths in files.items()}

    def options(self) -> dict[str, Any]:
        if self.captions == "beit3_index":
            return {"captions": self.captions, "files": {s: [p.name for p in ps] for s, ps in self.files.items()}}
        return {"split": self.split}

    def annotation_files(self) -> list[Path]:
        if self.captions == "beit3_index":
            return list(dict.fromkeys(path for paths in self.files.values() for path in paths))
        if self.split == "karpathy":
            return [self.annotations]
        return [self.annotations, *self._lists().values(), *([self.tokens] if self.tokens.exists() else [])]

    def parse_options(self) -> dict[str, Any]:
        files = {split: [str(path) for path in paths] for split, paths in self.files.items()}
        return {**self.options(), "files": files, "root": str(self.root), "image_dir": str(self.image_dir)}

    def karpathy_file(self) -> Path:
        return self.annotations

    def index_source(self) -> tuple[IndexKind, Path]:
        return "flickr30k", self.annotations

    def _lists(self) -> dict[str, Path]:
        return {split: self.root / "flickr30k_entities" / f"{split}.txt" for split in ("train", "val", "test")}

    def steps(self) -> list[Step]:
        found = []
        for path in self.annotation_files() if self.needs_annotation_files else ():
            if path == self.annotations:
                found.append(Step(path, KARPATHY, self.root, self.root))
            elif self.captions == "beit3_index":
                found.append(Step(path, by_hand=how_to_write("flickr30k", self.root)))
            else:
                found.append(Step(path, by_hand="from https://github.com/BryanPlummer/flickr30k_entities"))
        if self.needs_image_files:
            found.append(Step(self.image_dir, by_hand=f"flickr30k-images.tar.gz, 4.4 GB, by the form at {FLICKR30K_FORM}"))
        return found

    def require_files(self) -> None:
        """See that everything is there, and index files of what is there now.

        Raises:
            InputError: says which files to put where.
        """
        if missing := [step for step in self.steps() if not step.path.exists()]:
            lines = [f"  {step.path}: {step.by_hand if step.remote is None else f'from {step.remote.url}'}" for step in missing]
            advice = "`crosslight data get flickr30k` fetches what needs no form, or by hand:"
            raise InputError("\n".join([f"Flickr30k is not complete under {self.root}. {advice}", *lines]))
        if self.captions == "beit3_index" and self.needs_annotation_files:
            require_current_index("flickr30k", self.root, self.annotation_files(), self.annotations)

    def parse(self) -> Parsed:
        self.require_files()
        if self.captions == "beit3_index":
            folder = self.image_dir.parent
            return join(self.root, {s: [parse_index(p, folder) for p in ps] for s, ps in self.files.items()})
        parsed = parse_karpathy(self.annotations, self.image_dir)
        if self.split == "entities":
            by_id = {record.image_id: record for records in parsed.splits.values() for record in records}
            parsed = Parsed(self.root / "flickr30k_entities", problems=parsed.problems)
            lists = {split: read_words(path, "the ids of a split's images, one a line") for split, path in self._lists().items()}
            by_id |= self._beyond_karpathy([each for ids in lists.values() for each in ids if each not in by_id])
            for split, identities in lists.items():
                parsed.splits[split] = [by_id[identity] for identity in identities]
        return parsed

    def _beyond_karpathy(self, images: Sequence[str]) -> dict[str, ImageRecord]:
        """The images of Flickr30k Entities that Karpathy's file lacks (769 of 31,783), with the data set's own captions.

        Raises:
            InputError: That file is missing, or lacks them too.
        """
        if not images:
            return {}
        told = f"{len(images):,} images of flickr30k_entities/{{train,val,test}}.txt are not in {self.annotations}"
        if not self.tokens.exists():
            raise InputError(
                f"{told}, first {shown(images[0])}; Karpathy's file lacks 769 of Flickr30k's 31,783. Put the data set's own "
                f"captions there, {self.tokens} (it is in flickr30k.tar.gz, which the form gives); or take split karpathy."
            )
        captions = read_tokens(self.tokens, frozenset(images))
        if lacking := [image for image in images if image not in captions]:
            raise InputError(
                f"{told}, and {len(lacking):,} of them neither in {self.tokens}, first {shown(lacking[0])}; all must be of the "
                "whole Flickr30k."
            )
        return {image: ImageRecord(image, self.image_dir / f"{image}.jpg", captions[image]) for image in images}
