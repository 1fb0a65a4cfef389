"""Reader of Flickr30k's own captions, results_20130124.token of flickr30k.tar.gz: a line is NAME.jpg#PLACE, a tab, and the words.

It has all 31,783 photographs; Karpathy's file, whose captions are the same words, has 31,014.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from datamodules.errors import InputError, shown
from datamodules.files.text import read_text
from datamodules.records import Caption

EXPECTED = "Flickr30k's captions (results_20130124.token: NAME.jpg#PLACE, a tab, the words)"
_LINE = re.compile(r"(?P<image>[^#\t]+)\.jpg#(?P<place>[0-9]+)\t(?P<text>.*)")


def read_tokens(path: Path, images: Collection[str]) -> dict[str, tuple[Caption, ...]]:
    """Captions of these images, by id, in file order; their ids are "ID#PLACE". Images that the file lacks are left out.

    Raises:
        InputError: The file is missing or of another format.
    """
    found: dict[str, list[Caption]] = {}
    for number, line in enumerate(read_text(path, EXPECTED).split("\n"), start=1):
        if not line.strip():
            continue
        parts = _LINE.fullmatch(line)
        if parts is None:
            raise InputError(f"{path}, line {number}: {shown(line)}; expected {EXPECTED}.")
        if parts["image"] in images:
            found.setdefault(parts["image"], []).append(Caption(f"{parts['image']}#{parts['place']}", parts["text"].strip()))
    return {image: tuple(captions) for image, captions in found.items()}
