"""What tells one split from another: contents of its files, options, contents of its images."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from pathlib import Path

from datamodules.files.digests import digest, digests_in
from datamodules.formats.positives import positive_files
from datamodules.loading.splits import Splits
from datamodules.loading.whole_split import counts_of, files_of, ids_of
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
    contents = _contents(limited.values()) if splits.needs_image_files else {}
    for split, records in limited.items():
        over.update(f"\n{split} {len(records)}".encode())
        files = files_of(records) if contents else repeat(None, len(records))
        for image_id, count, file in zip(ids_of(records), counts_of(records).tolist(), files, strict=True):
            over.update(f"\n{image_id} {count} {_content(file, contents)}".encode())
    return over.hexdigest()[:16]


def image_fingerprint(records: Sequence[ImageRecord]) -> str:
    """16 hexadecimal digits over the ids and contents of images, in their order.

    Raises:
        InputError: an image file cannot be read.
    """
    contents = _contents([records])
    files = [[name, _content(file, contents)] for name, file in zip(ids_of(records), files_of(records), strict=True)]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def image_contents(records: Sequence[ImageRecord]) -> list[str]:
    """What each image holds, as digits that two images share only where their files do; "" of one without a file.

    Raises:
        InputError: an image file cannot be read.
    """
    contents = _contents([records])
    return [_content(file, contents).removesuffix("-") for file in files_of(records)]


_Contents = Mapping[str, Mapping[str, str]]
"""Digests by folder and name."""


def _contents(splits: Iterable[Sequence[ImageRecord]]) -> _Contents:
    names: dict[str, set[str]] = defaultdict(set)
    for records in splits:
        for file in files_of(records):
            if file is not None:
                names[file[0]].add(file[1])
    return {folder: digests_in(Path(folder), its) for folder, its in names.items()}


def _content(file: tuple[str, str] | None, contents: _Contents) -> str:
    return "-" if file is None else contents[file[0]].get(file[1], "-")
