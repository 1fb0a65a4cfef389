"""Visual Genome (Krishna et al. 2017): what people said about regions of 108,077 images, as captions for pre-training."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from datamodules.errors import InputError, shown
from datamodules.files.addresses import KARPATHY
from datamodules.files.download import Remote
from datamodules.files.steps import Step
from datamodules.files.text import open_text, read_words
from datamodules.formats.held_out import FLICKR_FILE, karpathy_ids
from datamodules.formats.parsing import Parsed
from datamodules.formats.visual_genome import Exclusion, GenomeCounts, parse_visual_genome
from datamodules.source import Source

ANNOTATIONS_URL = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"
IMAGES_URL = "https://cs.stanford.edu/people/rak248/VG_100K_2"
_KARPATHY = KARPATHY.url.rpartition("/")[0]
OPEN_IMAGES_URL = "https://storage.googleapis.com/openimages/2018_04"

# What each thing under root comes from: server, path under it, and the folder to unpack in (None: the file itself).
_SOURCES: dict[str, tuple[str, str, str | None]] = {
    "image_data.json": (ANNOTATIONS_URL, "image_data.json.zip", "."),
    "region_descriptions.json": (ANNOTATIONS_URL, "region_descriptions.json.zip", "."),
    "VG_100K": (IMAGES_URL, "images.zip", "."),
    "VG_100K_2": (IMAGES_URL, "images2.zip", "."),
    "held_out/dataset_coco.json": (_KARPATHY, KARPATHY.name, "held_out"),
    "held_out/dataset_flickr30k.json": (_KARPATHY, KARPATHY.name, "held_out"),
    "held_out/dataset_flickr8k.json": (_KARPATHY, KARPATHY.name, "held_out"),
    "held_out/validation-images-with-rotation.csv": (OPEN_IMAGES_URL, "validation/validation-images-with-rotation.csv", None),
    "held_out/test-images-with-rotation.csv": (OPEN_IMAGES_URL, "test/test-images-with-rotation.csv", None),
}
_SIZES = {"VG_100K": "about 9 GB", "VG_100K_2": "about 5 GB"}
_FLICKR_PAGE = re.compile(r"flickr\.com/photos/[^/]+/([0-9]+)")


@dataclass(frozen=True)
class HeldOut:
    """Files that say on which images other data sets evaluate. Half of Visual Genome is COCO's: whoever trains on all of it has
    seen what it is tested on. Paths are relative to the root of Visual Genome, or absolute; null, or an empty list, leaves a data
    set's images in.

    Args:
        coco: Karpathy's dataset_coco.json: images by their COCO id.
        flickr30k: Karpathy's dataset_flickr30k.json: images by their Flickr id.
        flickr8k: Karpathy's dataset_flickr8k.json, likewise: its test images are in other splits of Flickr30k.
        splits: Which of Karpathy's splits, of all three; add restval when you evaluate on COCO's official validation images.
        flickr_ids: Files of Flickr ids, one a line, such as val.txt and test.txt of Flickr30k Entities.
        open_images: Open Images' lists of its validation and test images, of which NoCaps is a part: all of them stay out.
    """

    coco: str | None = "held_out/dataset_coco.json"
    flickr30k: str | None = "held_out/dataset_flickr30k.json"
    flickr8k: str | None = "held_out/dataset_flickr8k.json"
    splits: tuple[str, ...] = ("val", "test")
    flickr_ids: tuple[str, ...] = ()
    open_images: tuple[str, ...] = (
        "held_out/validation-images-with-rotation.csv",
        "held_out/test-images-with-rotation.csv",
    )

    def files(self) -> list[str]:
        karpathy = [path for path in (self.coco, self.flickr30k, self.flickr8k) if path is not None]
        return [*karpathy, *self.flickr_ids, *self.open_images]


class VisualGenomeSource(Source):
    """Visual Genome's region descriptions as captions of their whole images, to pre-train captioners on: one split, "train".

    Root holds image_data.json, region_descriptions.json, and the images in VG_100K/ and VG_100K_2/ (108,077 since release 1.2,
    with about 50 phrases each); held_out/ holds the lists of images that other data sets evaluate on, which stay out.
    There is nothing to validate or test on: choose by another data set's validation split, or train for a fixed time.

    Args:
        root: Folder of the data set.
        image_dir: The one folder of all images, relative to root (or absolute), where they do not lie in VG_100K and VG_100K_2.
        held_out: Which images stay out; null trains on all, also on those of COCO's test split.
        min_words: Leave out phrases of fewer words ("blue sky").
        download: Fetch what is missing: annotations and lists (0.3 GB, 1 GB unpacked) and 15 GB of images.
        mirror: Base address to fetch from instead of the official servers, with the same paths under it; the environment
            variable CROSSLIGHT_VISUAL_GENOME_MIRROR does the same.
        loading: Options of all image-text data modules, where it is one.
    """

    name: ClassVar[str] = "visual_genome"
    whole: ClassVar[Mapping[str, Any]] = {"held_out": None}

    def __init__(
        self,
        root: str,
        image_dir: str | None = None,
        held_out: HeldOut | None = HeldOut(),
        min_words: int = 3,
        download: bool = False,
        mirror: str | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(root, image_dir or ".", **loading)
        if min_words < 1:
            raise InputError(f"min_words is {min_words}; give at least 1: a phrase without words is no caption.")
        self.flat = image_dir is not None
        self.held_out = held_out
        self.min_words = min_words
        self.download = download
        self.mirror = mirror or os.environ.get("CROSSLIGHT_VISUAL_GENOME_MIRROR") or None
        self.counts: GenomeCounts | None = None

    def options(self) -> dict[str, Any]:
        held_out = None
        if self.held_out is not None:
            names = {name: _names(value) for name, value in asdict(self.held_out).items()}
            held_out = {**names, "splits": list(self.held_out.splits)}
        return {"min_words": self.min_words, "held_out": held_out}

    def parse_options(self) -> dict[str, Any]:
        held_out = None if self.held_out is None else asdict(self.held_out)
        place = {"root": str(self.root), "image_dir": str(self.image_dir), "flat": self.flat}
        return {"min_words": self.min_words, "held_out": held_out, **place}

    def remembered(self) -> dict[str, Any]:
        assert self.counts is not None
        return asdict(self.counts)

    def recall(self, remembered: Mapping[str, Any]) -> None:
        self.counts = GenomeCounts(**remembered)

    def notes(self) -> list[str]:
        return [] if self.counts is None else [str(self.counts)]

    def annotation_files(self) -> list[Path]:
        lists = [] if self.held_out is None else self.held_out.files()
        return [self.root / path for path in ("image_data.json", "region_descriptions.json", *lists)]

    def _needed(self) -> list[Path]:
        pictures = [self.image_dir] if self.flat else [self.image_dir / "VG_100K", self.image_dir / "VG_100K_2"]
        return [*self.annotation_files(), *(pictures if self.needs_image_files else ())]

    def remote(self, path: Path) -> Remote | None:
        """What a file or folder under root is fetched from; None where there is no public address."""
        source = _SOURCES.get(path.relative_to(self.root).as_posix()) if path.is_relative_to(self.root) else None
        if source is not None and source[0] == _KARPATHY and self.mirror is None:
            return KARPATHY
        return None if source is None else Remote(f"{(self.mirror or source[0]).rstrip('/')}/{source[1]}")

    def steps(self) -> list[Step]:
        return [self._step(path) for path in self._needed()]

    def _step(self, path: Path) -> Step:
        if (remote := self.remote(path)) is None:
            return Step(path)
        folder = _SOURCES[path.relative_to(self.root).as_posix()][2]
        if folder is None:
            return Step(path, remote)
        return Step(path, remote, self.root, self.root / folder, _SIZES.get(path.name, ""))

    def prepare_data(self) -> None:
        """Fetch what is missing if `download` allows it.

        Raises:
            InputError: something is missing that may not or cannot be fetched; says what and how.
        """
        if self.download:
            self.fetch_files()
        self.require_files()

    def require_files(self) -> None:
        """See that everything is there.

        Raises:
            InputError: names each missing file or folder and where it comes from.
        """
        missing = [step for step in self.steps() if not step.path.exists()]
        if not missing:
            return
        lines = [f"  {step.path}: {step.by_hand if step.remote is None else f'from {step.remote.url}'}" for step in missing]
        if self.held_out is not None and any(not (self.root / path).exists() for path in self.held_out.files()):
            lines.append(
                "Lists of held_out keep out what other data sets evaluate on; set one to null (held_out.open_images to []) only "
                "if you never evaluate there."
            )
        fetchable = not self.download and any(step.remote is not None for step in missing)
        advice = "Set download to true to fetch them, or put them there:" if fetchable else "Put them there:"
        raise InputError("\n".join([f"Visual Genome is not complete under {self.root}. {advice}", *lines]))

    def parse(self) -> Parsed:
        """Also sets `counts`: what was left out."""
        self.require_files()
        exclusions = [] if self.held_out is None else list(_exclusions(self.held_out, self.root))
        parsed, self.counts = parse_visual_genome(
            self.root / "image_data.json",
            self.root / "region_descriptions.json",
            self.image_dir,
            flat=self.flat,
            min_words=self.min_words,
            exclusions=exclusions,
        )
        return parsed


def _names(value: Any) -> Any:
    """Files by name, so that the place of the data does not matter."""
    return None if value is None else Path(value).name if isinstance(value, str) else [Path(path).name for path in value]


def _exclusions(held_out: HeldOut, root: Path) -> Iterator[Exclusion]:
    if held_out.coco is not None:
        ids = karpathy_ids(root / held_out.coco, held_out.splits, "cocoid")
        yield Exclusion("in an evaluation split of COCO", coco_ids=ids)
    for name, file in (("Flickr30k", held_out.flickr30k), ("Flickr8k", held_out.flickr8k)):
        if file is not None:
            ids = karpathy_ids(root / file, held_out.splits, "filename")
            yield Exclusion(f"in an evaluation split of {name}", flickr_ids=ids)
    for path in held_out.flickr_ids:
        yield Exclusion(f"listed in {Path(path).name}", flickr_ids=_listed_ids(root / path))
    if held_out.open_images:
        open_images = frozenset[str]().union(*(open_images_flickr_ids(root / path) for path in held_out.open_images))
        yield Exclusion("in Open Images' validation or test set, as NoCaps", flickr_ids=open_images)


def _listed_ids(path: Path) -> frozenset[str]:
    ids = frozenset(Path(word).stem for word in read_words(path, "Flickr ids, one a line"))
    other = sorted(identity for identity in ids if not identity.isdecimal())
    if other:
        raise InputError(f"{path} should hold Flickr ids, one a line; {shown(other[0])} is none (a number).")
    return ids


def open_images_flickr_ids(path: Path) -> frozenset[str]:
    """The Flickr ids of a list of Open Images' images (SPLIT-images-with-rotation.csv), by OriginalLandingURL or OriginalURL.

    Raises:
        InputError: the file has not those columns, or no image of Flickr in them.
    """
    expected = "a list of Open Images' images (a CSV file with the columns ImageID, OriginalURL, OriginalLandingURL)"
    ids = set()
    try:
        with open_text(path, expected, newline="") as file:
            rows = csv.DictReader(file)
            if not {"OriginalURL", "OriginalLandingURL"} <= set(rows.fieldnames or ()):
                raise InputError(f"{path} has the columns {shown(', '.join(rows.fieldnames or ()))}; expected {expected}.")
            for row in rows:
                identity = _flickr_id(row)
                if identity is not None:
                    ids.add(identity)
    except csv.Error as error:
        raise InputError(f"{path} is not a sound CSV file ({error}); expected {expected}.") from error
    if not ids:
        raise InputError(f"{path} names no image of Flickr; expected {expected}.")
    return frozenset(ids)


def _flickr_id(row: Mapping[str, str | None]) -> str | None:
    page = _FLICKR_PAGE.search(row["OriginalLandingURL"] or "")
    found = page or FLICKR_FILE.search((row["OriginalURL"] or "").lower())
    return found.group(1) if found else None
