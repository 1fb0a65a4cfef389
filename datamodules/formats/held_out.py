"""Images that training leaves out because other data sets evaluate on them: which they are, by ids on Flickr and in COCO."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError
from datamodules.formats import karpathy
from datamodules.formats.json_stream import stream_list
from datamodules.formats.parsing import Entry

FLICKR_FILE = re.compile(r"/([0-9]+)_[0-9a-f]+(?:_[a-z0-9]+)?\.[a-z]+$")
"""The id of a photograph at the end of its address on Flickr."""

_EXPECTED = "a COCO caption file (an object with images[].{id, flickr_url})"


@dataclass(frozen=True)
class FlickrHeldOut:
    """Images of COCO that are Flickr30k's or Flickr8k's too, and evaluated on there: both data sets come from Flickr. Paths are
    relative to the root of COCO, or absolute.

    Args:
        flickr30k: Karpathy's dataset_flickr30k.json: images by their Flickr id; null leaves them in.
        flickr8k: Karpathy's dataset_flickr8k.json, likewise.
        splits: Which of Karpathy's splits.
        urls: COCO's own caption files, which say where on Flickr an image is from (`flickr_url`).
    """

    flickr30k: str | None = "held_out/dataset_flickr30k.json"
    flickr8k: str | None = "held_out/dataset_flickr8k.json"
    splits: tuple[str, ...] = ("val", "test")
    urls: tuple[str, ...] = ("annotations/captions_train2014.json", "annotations/captions_val2014.json")

    def __post_init__(self) -> None:
        if not self.urls or (self.flickr30k is None and self.flickr8k is None):
            raise InputError("held_out names no file (urls, and flickr30k or flickr8k): nothing would stay out; set it to null.")

    def files(self) -> list[str]:
        return [*(path for path in (self.flickr30k, self.flickr8k) if path is not None), *self.urls]

    def coco_ids(self, root: Path) -> frozenset[str]:
        """The images, by their ids in COCO.

        Raises:
            InputError: a file is missing or damaged, or names no image.
        """
        listed = [path for path in (self.flickr30k, self.flickr8k) if path is not None]
        held = frozenset[str]().union(*(karpathy_ids(root / path, self.splits, "filename") for path in listed))
        return frozenset(image for path in self.urls for image, flickr in _flickr_ids(root / path) if flickr in held)


def _flickr_ids(path: Path) -> list[tuple[str, str]]:
    """(id in COCO, id on Flickr) of the images of a caption file."""
    pairs = []
    for row, value in enumerate(stream_list(path, _EXPECTED, "images")):
        image = Entry(value, path, f"images[{row}]", _EXPECTED)
        if (found := FLICKR_FILE.search(image.text("flickr_url").lower())) is not None:
            pairs.append((image.identity("id"), found[1]))
    if not pairs:
        raise InputError(f"{path} names no image of Flickr; expected {_EXPECTED}.")
    return pairs


def karpathy_ids(path: Path, splits: tuple[str, ...], key: str) -> frozenset[str]:
    """COCO ids, or the Flickr ids that file names begin with (Flickr30k: ID.jpg, Flickr8k: ID_SECRET.jpg), of these splits."""
    ids, found = set(), set()
    for row, value in enumerate(stream_list(path, karpathy.EXPECTED, "images")):
        image = Entry(value, path, f"images[{row}]", karpathy.EXPECTED)
        split = image.text("split")
        found.add(split)
        if split in splits:
            ids.add(image.identity("cocoid") if key == "cocoid" else Path(image.text("filename")).stem.partition("_")[0])
    absent = [split for split in splits if split not in found]
    if absent and key == "cocoid":  # the others have no restval
        raise InputError(
            f"{path} has no split {absent[0]!r} (held_out.splits), only {', '.join(sorted(found)) or 'none'}; give those that "
            "you evaluate on."
        )
    if not ids:
        raise InputError(f"{path} has no images of the splits {', '.join(splits)} (held_out.splits): nothing would stay out.")
    return frozenset(ids)
