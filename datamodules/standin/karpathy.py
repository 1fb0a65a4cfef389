"""Karpathy's split files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.files.atomic import whole_file


@dataclass(frozen=True)
class Captioned:
    """An image of a stand-in.

    Args:
        number: Its id: COCO's, or Flickr's.
        file: Its name.
        split: Karpathy's.
        captions: Id and words of each.
        folder: `filepath` of COCO's file.
        width: In pixels.
        height: In pixels.
        flickr: Its id on Flickr.
    """

    number: int
    file: str
    split: str
    captions: tuple[tuple[int, str], ...]
    folder: str | None = None
    width: int = 640
    height: int = 480
    flickr: int = 0


def counted(splits: Sequence[tuple[str, int, int]]) -> list[tuple[str, int]]:
    """Split and number of captions of each image: five, and one more of the first ones until all captions are given.

    Args:
        splits: Name, images and captions of each.
    """
    images = []
    for split, count, captions in splits:
        least, more = divmod(captions, count)
        images += [(split, least + (place < more)) for place in range(count)]
    return images


def write_karpathy(path: Path, name: str, images: Sequence[Captioned]) -> None:
    """The file, whole or not at all; one that is there stays."""
    if path.exists():
        return
    entries: list[dict[str, Any]] = []
    for place, image in enumerate(images):
        sentences = [
            {"tokens": text.split(), "raw": text, "imgid": place, "sentid": identity} for identity, text in image.captions
        ]
        entry = {"sentids": [identity for identity, _ in image.captions], "imgid": place, "sentences": sentences}
        entry |= {"split": image.split, "filename": image.file}
        entries.append({"filepath": image.folder, **entry, "cocoid": image.number} if image.folder is not None else entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(json.dumps({"images": entries, "dataset": name}))
