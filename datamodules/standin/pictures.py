"""Pictures in place of photographs: a few dozen JPEGs of the sizes in pixels and bytes that COCO's have, under as many names as
are asked for."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.errors import InputError
from datamodules.files.atomic import whole_folder
from datamodules.standin.amounts import generator

DISTINCT = 48
"""Photographs that are different. A file has at most 65,000 names on ext4."""
SIZES = ((640, 480), (480, 640), (640, 427), (640, 480), (500, 375), (640, 426), (427, 640), (612, 612))
"""In pixels, about as often as in COCO."""


def size_of(number: int) -> tuple[int, int]:
    """Width and height of the picture with this number."""
    return SIZES[number % DISTINCT % len(SIZES)]


def picture(number: int) -> bytes:
    """A JPEG of about 160 kB: patches of color, and grain."""
    return _picture(number % DISTINCT)


@cache  # each is in many folders: 8 MB in all
def _picture(number: int) -> bytes:
    random = generator("picture", number)
    width, height = size_of(number)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    grain = random.normal(0, 9, (height, width, 1))
    pixels = np.clip(np.asarray(coarse, np.float32) + grain, 0, 255).astype(np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        return file.getvalue()


def write_pictures(folder: Path, names: Sequence[str], first: int = 0) -> None:
    """A folder of pictures, whole or not at all; one that is there stays.

    Args:
        folder: Of the pictures.
        names: Their file names.
        first: Number of the first one, which decides what it shows.

    Raises:
        InputError: The file system gives a file one name only.
        OSError: The disk is full, among others.
    """
    if folder.exists():
        return
    with whole_folder(folder) as part:
        for place, name in enumerate(names):
            target = part / name
            if place < DISTINCT:
                target.write_bytes(picture(first + place))
                continue
            try:
                os.link(part / names[place % DISTINCT], target)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise InputError(
                    f"{folder}: a picture cannot have a second name there ({error.strerror}), and {len(names):,} pictures would "
                    "take gigabytes: give a folder on a file system with hard links (ext4, xfs)."
                ) from error
