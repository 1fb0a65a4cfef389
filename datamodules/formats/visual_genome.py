"""Reader of Visual Genome's regions (Krishna et al. 2017): image_data.json and region_descriptions.json.

image_data.json is a list of {image_id, url, width, height, coco_id, flickr_id}, the latter two null where an image is not COCO's
or Flickr's; region_descriptions.json a list of {id or image_id, regions[].{region_id, image_id, x, y, width, height, phrase}}.
An image lies at VG_100K/ID.jpg or VG_100K_2/ID.jpg: the last two parts of its url.
Source: https://homes.cs.washington.edu/~ranjay/visualgenome/api_readme

5.4 million phrases: as Python objects they would take gigabytes, so they become one block of UTF-8 in which each image knows its
stretch (`CaptionBlock`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.errors import InputError, shown
from datamodules.formats.json_stream import stream_list
from datamodules.formats.parsing import Entry, Parsed
from datamodules.formats.record_table import CaptionBlock, CaptionRows
from datamodules.records import ImageRecord

EXPECTED_IMAGES = "Visual Genome's image_data.json (a list of {image_id, url, coco_id, flickr_id})"
EXPECTED_REGIONS = "Visual Genome's region_descriptions.json (a list of {id, regions[].{region_id, image_id, phrase}})"
_MOST = 10**18  # above the ids of regions, which are kept in 64 bits


@dataclass(frozen=True, slots=True)
class GenomeImage:
    """An entry of image_data.json: `folder/file` is where its image lies; the ids are those in COCO and on Flickr."""

    folder: str
    file: str
    coco_id: str | None
    flickr_id: str | None


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Images that must stay out because another data set evaluates on them: `why` names it, ids are COCO's and Flickr's."""

    why: str
    coco_ids: frozenset[str] = frozenset()
    flickr_ids: frozenset[str] = frozenset()

    def holds(self, image: GenomeImage) -> bool:
        return image.coco_id in self.coco_ids or image.flickr_id in self.flickr_ids


@dataclass(slots=True)
class GenomeCounts:
    """What came of the files: `images` and `phrases` kept; images `excluded` (by reason) or left `without_phrases`; phrases of
    images that are not excluded, left out because they are `short` or `repeated` (the same region twice)."""

    images: int = 0
    phrases: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    without_phrases: int = 0
    short: int = 0
    repeated: int = 0

    def __str__(self) -> str:
        left_out = [f"{count:,} images are {why}" for why, count in self.excluded.items() if count]
        left_out += [f"{self.without_phrases:,} images have no phrase"] if self.without_phrases else []
        left_out += [f"{self.short:,} phrases are short"] if self.short else []
        left_out += [f"{self.repeated:,} regions are repeated"] if self.repeated else []
        return f"{self.images:,} images with {self.phrases:,} phrases; left out: {', '.join(left_out) or 'nothing'}"


def parse_visual_genome(
    image_data: Path,
    region_descriptions: Path,
    image_dir: Path,
    *,
    flat: bool = False,
    min_words: int = 3,
    exclusions: Sequence[Exclusion] = (),
) -> tuple[Parsed, GenomeCounts]:
    """Images with their phrases as captions, as the split "train", in the order of region_descriptions.json, and its problems.

    White space in phrases becomes single spaces, upper and lower case stay. A caption's id is its region's; where the region is
    in the image is not kept. Images without a phrase to keep are left out. An image that several exclusions hold counts for the
    first.

    Args:
        image_data: image_data.json.
        region_descriptions: region_descriptions.json.
        image_dir: Folder that holds VG_100K and VG_100K_2.
        flat: All images lie in `image_dir` itself.
        min_words: Leave out phrases of fewer words.
        exclusions: Images to leave out.

    Raises:
        InputError: a file is missing, cut short, or not of this format.
    """
    parsed, counts = Parsed(region_descriptions), GenomeCounts(excluded={exclusion.why: 0 for exclusion in exclusions})
    image_dir = image_dir.absolute()
    images = read_image_data(image_data, parsed)
    records = parsed.splits["train"] = []
    block = CaptionBlock()
    seen: set[str] = set()
    for row, value in enumerate(stream_list(region_descriptions, EXPECTED_REGIONS)):
        entry = Entry(value, region_descriptions, f"[{row}]", EXPECTED_REGIONS)
        regions = entry.items("regions")
        image_id = _image_id(entry, regions)
        if image_id in seen:
            parsed.add("duplicated id", f"[{row}] repeats image id {image_id}")
            continue
        seen.add(image_id)
        image = images.get(image_id)
        if image is None:
            parsed.add("caption without image", f"[{row}] describes image {image_id}, which {image_data.name} does not list")
            continue
        why = next((exclusion.why for exclusion in exclusions if exclusion.holds(image)), None)
        if why is not None:
            counts.excluded[why] += 1
            continue
        start = len(block)
        known: set[int] = set()
        for number, region in enumerate(regions):
            region_id, words = _region(region, region_descriptions, row, number)
            if not _is_of(region, image_id):
                other = f"names image {region['image_id']}, among those of image {image_id}"
                parsed.add("caption without image", f"[{row}].regions[{number}] ({region_id}) {other}")
            elif region_id in known:
                counts.repeated += 1
            elif len(words) < max(min_words, 1):
                counts.short += 1
            else:
                known.add(region_id)
                try:
                    block.add(region_id, " ".join(words))
                except UnicodeEncodeError:
                    parsed.add("broken text", f"[{row}].regions[{number}] ({region_id}) has half a character (a surrogate)")
        if len(block) == start:
            counts.without_phrases += 1
            continue
        phrases = CaptionRows(block, start, len(block))
        path = image_dir / image.file if flat else image_dir / image.folder / image.file
        records.append(ImageRecord(image_id, path, phrases))
    for image_id, image in images.items():
        if image_id not in seen:
            why = next((exclusion.why for exclusion in exclusions if exclusion.holds(image)), None)
            if why is None:
                counts.without_phrases += 1
            else:
                counts.excluded[why] += 1
    counts.images, counts.phrases = len(records), len(block)
    return parsed, counts


def read_image_data(path: Path, parsed: Parsed) -> dict[str, GenomeImage]:
    """The images of image_data.json by id; what is wrong with them is added to `parsed`.

    Raises:
        InputError: the file is missing, cut short, or not of this format.
    """
    images: dict[str, GenomeImage] = {}
    for row, value in enumerate(stream_list(path, EXPECTED_IMAGES)):
        entry = Entry(value, path, f"[{row}]", EXPECTED_IMAGES)
        image_id = entry.identity("image_id" if "image_id" in entry.value else "id")
        parts = PurePosixPath(entry.file("url").partition("?")[0]).parts
        if len(parts) < 2:
            parsed.add("unreadable annotation", f"{path.name}[{row}]: url {shown(entry.text('url'))} names no folder and file")
        elif image_id in images:
            parsed.add("duplicated id", f"{path.name}[{row}] repeats image id {image_id}")
        else:
            coco_id, flickr_id = (entry.number_or_null(key) for key in ("coco_id", "flickr_id"))
            images[image_id] = GenomeImage(parts[-2], parts[-1], coco_id, flickr_id)
    return images


def _image_id(entry: Entry, regions: list[Any]) -> str:
    """The regions name their image in every release, the entry only in some."""
    if "image_id" in entry.value:
        return entry.identity("image_id")
    if regions and isinstance(regions[0], Mapping) and "image_id" in regions[0]:
        place = f"{entry.place}.regions[0]"
        return Entry(regions[0], entry.path, place, EXPECTED_REGIONS).identity("image_id")
    return entry.identity("id")


def _is_of(region: Mapping[str, Any], image_id: str) -> bool:
    """Whether a region names no other image."""
    named = region.get("image_id")
    return named is None or str(named) == image_id


def _region(region: Any, path: Path, row: int, number: int) -> tuple[int, list[str]]:
    """A region's id and the words of its phrase."""
    if type(region) is dict:  # millions: nothing is made for those that are as they should be
        region_id, phrase = region.get("region_id"), region.get("phrase")
        if type(region_id) is int and type(phrase) is str and 0 <= region_id < _MOST:
            return region_id, phrase.split()
    entry = Entry(region, path, f"[{row}].regions[{number}]", EXPECTED_REGIONS)
    key = "region_id" if "region_id" in entry.value else "id"  # release 1.0
    identity = entry.identity(key)
    if not (identity.isascii() and identity.isdecimal() and len(identity) < len(str(_MOST))):
        raise InputError(f"{path}: {entry.place}: {key!r} is {shown(identity)}, not a number; expected {EXPECTED_REGIONS}.")
    return int(identity), entry.text("phrase").split()
