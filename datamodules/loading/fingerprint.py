"""What tells one split from another: contents of its files, options, sizes of its images."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.loading.splits import Splits
from datamodules.records import ImageRecord


def fingerprint(splits: Splits, limits: Mapping[str, int | None]) -> str:
    """16 hexadecimal digits over the annotation files' contents, the options and limits, and each image's id and file size; where
    databases take the place of files, over those.

    Two data roots with the same fingerprint hold the same splits; the place of the root does not matter.
    """
    digest = hashlib.sha256()
    for path in splits.source.annotation_files() if splits.needs_annotation_files else ():
        with path.open("rb") as file:  # up to 700 MB
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    digest.update(json.dumps([splits.options(), limits], sort_keys=True).encode())
    splits.update(digest)
    for split, all_records in sorted(splits.read().items()):
        records = all_records[: limits.get(split)]
        sizes = _file_sizes(records) if splits.needs_image_files else {}
        digest.update(f"\n{split} {len(records)}".encode())
        for record in records:
            size = sizes.get(record.path, -1) if record.path is not None else -1
            digest.update(f"\n{record.image_id} {len(record.captions)} {size}".encode())
    return digest.hexdigest()[:16]


def image_fingerprint(records: Sequence[ImageRecord]) -> str:
    """16 hexadecimal digits over the ids and file sizes of images, in their order."""
    sizes = _file_sizes(records)
    files: list[Any] = [[record.image_id, -1 if record.path is None else sizes.get(record.path, -1)] for record in records]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def _file_sizes(records: Sequence[ImageRecord]) -> dict[Path, int]:
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
