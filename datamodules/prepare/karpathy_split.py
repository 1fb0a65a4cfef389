"""Karpathy's split file, written from a copy of it in another layout (formats/karpathy_copies.py)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.formats.karpathy import SPLITS
from datamodules.formats.karpathy_copies import read_copy
from datamodules.prepare.data_sets import open_source


def write_karpathy(kind: str, root: Path, files: Sequence[Path], images: bool = False, overwrite: bool = False) -> dict[str, int]:
    """Write dataset_KIND.json where the data set looks for it.

    Args:
        kind: coco, flickr30k or flickr8k.
        root: Folder of the data set.
        files: The copy's: of all splits that are wanted.
        images: Write the images that are in the files too, into the data set's folder, where they are not there yet.
        overwrite: Replace a file that is there.

    Returns:
        Images of each split.

    Raises:
        InputError: The data set has no split by Karpathy, the file is there, a copy's file is of another layout or damaged, or
            two of them have the same image.
    """
    source = open_source(kind, root)
    target = source.karpathy_file()
    if target.exists() and not overwrite:
        raise InputError(f"{target} is there already; --overwrite replaces it.")

    def take(name: str, content: bytes) -> None:
        path = source.image_dir / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{name}.part")
            part.write_bytes(content)
            os.replace(part, path)

    found = [image for file in files for image in read_copy(file, take if images else None)]
    twice = [name for name, count in Counter(image["filename"] for image in found).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} and {len(twice) - 1} more images come twice in these files: give each split once.")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps({"images": found, "dataset": kind}) + "\n")
    counts = Counter(image["split"] for image in found)
    return {split: counts[split] for split in SPLITS if counts[split]}
