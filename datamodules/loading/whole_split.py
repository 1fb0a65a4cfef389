"""What can be had of all images of a split without making a record of any, where they are in arrays.

Legend: I images of the split.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from datamodules.formats.columns import Integers
from datamodules.formats.record_table import Records
from datamodules.records import ImageRecord


def ids_of(records: Sequence[ImageRecord]) -> Iterator[str]:
    """Ids of the images."""
    return records.image_ids() if isinstance(records, Records) else (record.image_id for record in records)


def counts_of(records: Sequence[ImageRecord]) -> Integers:
    """Captions of each image, int64 [I]."""
    if isinstance(records, Records):
        return records.counts()
    return np.array([len(record.captions) for record in records], dtype=np.int64)


def files_of(records: Sequence[ImageRecord]) -> Iterator[tuple[str, str] | None]:
    """Folder and name of each image's file; None where it has none."""
    if isinstance(records, Records):
        return records.files()
    return (None if record.path is None else os.path.split(record.path) for record in records)
