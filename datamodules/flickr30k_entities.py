"""Flickr30k Entities as a data module; its files and their options are those of sources/flickr30k_entities.py."""

from __future__ import annotations

import hashlib
from typing import Any

from datamodules.errors import InputError
from datamodules.files.digests import digests
from datamodules.formats.flickr_entities import Annotation, read_annotation
from datamodules.image_text import ImageTextDataModule
from datamodules.loading.objects import ObjectRanking, PatchObjectRanking, PhraseRegions
from datamodules.loading.task import Task
from datamodules.sources.flickr30k_entities import Flickr30kEntitiesSource


class Flickr30kEntities(Flickr30kEntitiesSource, ImageTextDataModule):
    """Flickr30k with the captions and phrases of Flickr30k Entities.

    For a network that scores pairs, evaluation has a third loader, of pairs with `objects`: what ISDa is measured on. Of one that
    takes pixels, patches show a phrase: those of which at least half lies under one of its boxes, or else the one with most.
    With region features captions are those of Entities too; text databases (regions.text_db) are compared with them, and must
    have the same word pieces.

    Args:
        place: Of the data set, as `Flickr30kEntitiesSource`.
        phrase_regions: Which regions show a phrase. "gt": the annotated boxes themselves, for region features that were
            extracted from them in file order; "iou", for a detector's regions: those with an IoU of at least 0.5 with one of the
            phrase's boxes, or else the one with the largest.
        object_pairs: Pairs with objects of an evaluation split: the first so many; null is all.
        options: Those of `Flickr30kEntitiesSource`, and of all image-text data modules.
    """

    def __init__(
        self, *place: Any, phrase_regions: PhraseRegions = "gt", object_pairs: int | None = None, **options: Any
    ) -> None:
        super().__init__(*place, **options)
        if object_pairs is not None and object_pairs < 1:
            raise InputError(f"object_pairs is {object_pairs}; give at least 1, or null for all.")
        self.phrase_regions: PhraseRegions = phrase_regions
        self.object_pairs = object_pairs

    def tasks(self) -> tuple[Task, ...]:
        """Those of all data modules, but for networks that score pairs ones that also evaluate objects."""
        pixels = (self.file_splits, self.augmentation, self.cache_pixels)
        return (
            ObjectRanking(self.region_splits, self.ranking, self._read, self.phrase_regions, self.object_pairs),
            PatchObjectRanking(*pixels, self.ranking, self._read, self.object_pairs),
            *super().tasks(),
        )

    def _read(self, image_id: str) -> Annotation:
        return read_annotation(self.annotation(image_id))

    def annotated_size(self, image_id: str) -> tuple[int, int]:
        """Width and height of an image whose pixels its boxes are in: those of the original, also where the files are smaller.

        Raises:
            InputError: Its annotation is missing or damaged.
        """
        annotation = self._read(image_id)
        return annotation.width, annotation.height

    def describe(self) -> dict[str, Any]:
        """As of all data modules, and which objects are evaluated."""
        regions = "patches" if isinstance(self.task, PatchObjectRanking) else self.phrase_regions
        return {**super().describe(), "objects": {"regions": regions, "pairs": self.object_pairs}}

    def fingerprint(self) -> str:
        """As of all data modules, and over the contents of the Sentences and Annotations files."""
        splits = sorted(self.task.splits.read().items())
        ids = [record.image_id for split, records in splits for record in records[: self.limits.of(split)]]
        files = [file(image_id) for image_id in ids for file in (self.sentences, self.annotation)]
        contents = digests(files)
        own = "".join(contents.get(path, "-") for path in files)
        return hashlib.sha256((super().fingerprint() + own).encode()).hexdigest()[:16]
