"""What tells one split from another: contents of its files, options, sizes of its images."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import InputError
from datamodules.records import ImageRecord


def file_sizes(records: Sequence[ImageRecord]) -> dict[Path, int]:
    """File sizes of those images that exist, by one listing of each folder (a stat a file is slow over a network)."""
    wanted: dict[Path, dict[str, Path]] = defaultdict(dict)
    for record in records:
        if record.path is not None:
            wanted[record.path.parent][record.path.name] = record.path
    sizes = {}
    for folder, names in wanted.items():
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in names and entry.is_file():
                    sizes[names[entry.name]] = entry.stat().st_size
    return sizes


def require_images(name: str, split: str, records: Sequence[ImageRecord]) -> None:
    present: dict[Path, set[str]] = {}
    missing = []
    for record in records:
        if record.path is None:
            missing.append(record)
            continue
        folder = record.path.parent
        if folder not in present:
            present[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        if record.path.name not in present[folder]:
            missing.append(record)
    if missing:
        first = missing[0]
        raise InputError(
            f"{name} {split}: {len(missing):,} of {len(records):,} image files are missing, first image {first.image_id}: "
            f"{first.path}. Put the images there or set image_dir; `crosslight data check` lists them all."
        )
