"""What tells one split from another: contents of its files, options, contents of its images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from datamodules.files.digests import digest, digests
from datamodules.formats.positives import positive_files
from datamodules.loading.splits import Splits
from datamodules.records import ImageRecord


def fingerprint(splits: Splits, limits: Mapping[str, int | None]) -> str:
    """16 hexadecimal digits over the contents of the annotation files, the options and limits, and each image's id and content;
    where databases take the place of files, over those.

    Two data roots with the same fingerprint hold the same splits; the place of the root does not matter, nor do times of files.
    What it costs: `files.digests`.

    Raises:
        InputError: a file is missing or cannot be read; of images those that are missing count as such.
    """
    over = hashlib.sha256()
    for path in splits.source.annotation_files() if splits.needs_annotation_files else ():
        over.update(f"{path.name} {digest(path)}\n".encode())
    for name, folder in sorted(splits.source.positives.items()):
        for path in positive_files(folder, name):
            over.update(f"{path.name} {digest(path)}\n".encode())
    over.update(json.dumps([splits.options(), limits], sort_keys=True).encode())
    splits.update(over)
    limited = {split: records[: limits.get(split)] for split, records in sorted(splits.read().items())}
    contents = _contents([record for records in limited.values() for record in records]) if splits.needs_image_files else {}
    for split, records in limited.items():
        over.update(f"\n{split} {len(records)}".encode())
        for record in records:
            over.update(f"\n{record.image_id} {len(record.captions)} {_content(record, contents)}".encode())
    return over.hexdigest()[:16]


def image_fingerprint(records: Sequence[ImageRecord]) -> str:
    """16 hexadecimal digits over the ids and contents of images, in their order.

    Raises:
        InputError: an image file cannot be read.
    """
    contents = _contents(records)
    files = [[record.image_id, _content(record, contents)] for record in records]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def _contents(records: Sequence[ImageRecord]) -> dict[Path, str]:
    return digests(record.path for record in records if record.path is not None)


def _content(record: ImageRecord, contents: Mapping[Path, str]) -> str:
    return "-" if record.path is None else contents.get(record.path, "-")
