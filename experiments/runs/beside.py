"""captions/DATA-test.beside.json of a run folder: what it wrote about each image of a test, beside what people wrote."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.errors import InputError, shown
from datamodules.files.json_file import read_json
from datamodules.formats.typed import read_typed


@dataclass(frozen=True)
class Beside:
    """One image.

    Args:
        image_id: Of the data set.
        caption: What the run wrote.
        file: The image, on the machine of the run.
        references: What people wrote.
        scores: Of the caption, where it was scored.
        log_prob: log P(caption | image), natural; None of a run of an earlier version.
    """

    image_id: str
    caption: str
    file: str | None = None
    references: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    log_prob: float | None = None


def beside_file(folder: Path, data: str) -> Path:
    """Where a run has it of its test on a data set."""
    return folder / "captions" / f"{data}-test.beside.json"


def read_beside(folder: Path, data: str) -> list[Beside]:
    """The images in the order of the test; empty where the run has no such file.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    file = beside_file(folder, data)
    if not os.path.lexists(file):
        return []
    rows: Any = read_json(file, "a list of captions beside references")
    if not isinstance(rows, list):
        raise InputError(f"{file} holds {shown(rows)}; expected a list of captions beside references.")
    return [_read(row, f"{file}: entry {place}") for place, row in enumerate(rows, 1)]


def _read(row: Any, where: str) -> Beside:
    known = {name: row[name] for name in Beside.__dataclass_fields__ if name in row} if isinstance(row, dict) else row
    if isinstance(known, dict) and isinstance(known.get("image_id"), int):
        known["image_id"] = str(known["image_id"])
    read: Beside = read_typed(Beside, known, where)
    return read
