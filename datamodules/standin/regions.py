"""Stand-ins for UNITER's databases: regions of some hundred images under the names of all, and text databases of all captions.

Legend: R regions of an image, D feature width, C classes of a detector.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import lmdb
import numpy as np

from datamodules.files.atomic import write_atomically
from datamodules.formats.uniter.image_writer import ImageDatabaseWriter
from datamodules.formats.uniter.layout import Layout
from datamodules.formats.uniter.lmdb_file import KEYS
from datamodules.formats.uniter.text_database import TextDatabaseWriter
from datamodules.standin.amounts import generator
from datamodules.standin.shared_lmdb import write_shared
from datamodules.standin.word_pieces import WordPieces

RELEASED = (2048, 1601)
"""Feature width and classes of the released databases (bottom-up attention)."""
_MEAN = 37.0
"""Regions of an image: the released layout keeps 10 to 100."""


def write_image_database(path: Path, names: Sequence[str], width: int, classes: int | None = None, distinct: int = 128) -> None:
    """An image database of the released layout; one that is complete stays.

    Args:
        path: Its folder.
        names: Of all its images.
        width: D.
        classes: C, for class probabilities; None has none, as `crosslight data regions` writes them.
        distinct: Images whose regions are different.
    """
    layout = Layout()
    data, counts = path / layout.folder / "data.mdb", path / str(layout.counts_file)
    if data.exists():  # written last
        return
    distinct = min(distinct, len(names))
    with tempfile.TemporaryDirectory(prefix="crosslight-regions-") as made:
        kept = _write_few(Path(made), distinct, width, classes, layout)
        with (
            lmdb.open(str(Path(made) / layout.folder), readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            values = [bytes(transaction.get(str(number).encode(), b"")) for number in range(distinct)]
    data.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(counts, json.dumps({name: kept[place % distinct] for place, name in enumerate(names)}))
    place_of = {name.encode(): place % distinct for place, name in enumerate(names)}
    write_shared(data, [*values, json.dumps(list(names)).encode()], {**place_of, KEYS: distinct})


def _write_few(folder: Path, distinct: int, width: int, classes: int | None, layout: Layout) -> list[int]:
    """Images 0, 1, ... by the writer of real ones. Returns how many regions each has."""
    kept = []
    with ImageDatabaseWriter(folder, layout) as writer:
        for number in range(distinct):
            random = generator("regions", number, width)
            count = int(np.clip(random.gamma(4.0, _MEAN / 4.0), 10, 100))
            corners_R4 = np.sort(random.random((count, 2, 2)), axis=1).reshape(count, 4)
            normal_RD = random.standard_normal((count, width), np.float32)
            features_RD = np.maximum(0.8 * normal_RD + 0.3, 0)  # behind a ReLU, as the released ones
            peaked_RC = random.random((count, classes or 1), np.float32) ** 64  # as a detector that is nearly sure
            classes_RC = None if classes is None else peaked_RC / peaked_RC.sum(1, keepdims=True)
            writer.add(str(number), features_RD, corners_R4, random.uniform(0.21, 1.0, count), classes_RC)
            kept.append(count)
    return kept


def write_text_database(path: Path, texts: Iterable[tuple[str, str, str]]) -> None:
    """A text database with the pieces of the stand-in for bert-base-cased; one that is there stays.

    Args:
        path: Its folder.
        texts: Text id, the image's name in the image database, the words.
    """
    if path.exists():
        return
    with TextDatabaseWriter(path, WordPieces().ids) as writer:
        for identity, image, text in texts:
            writer.add(identity, image, text)
