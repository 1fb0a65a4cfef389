"""Which photographs the regions of an image database were made of: `sources.jsonl` beside its data.mdb, which released databases
do not have. A line is [image name, digest of the photograph, digest of its boxes' file or null]; the last line of a name counts.

Lines are appended after the regions are on the disk. A killed writer may leave regions without a line, or cut one: those are of
nobody knows what, and made anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

Sources = tuple[str, str | None]
"""Digests (`files.digests`) of a photograph, and of the file that its boxes come from, if there is one."""

_NAME = "sources.jsonl"


def read_sources(folder: Path) -> dict[str, Sources]:
    """By image name; without those that the database does not say."""
    sources: dict[str, Sources] = {}
    if (folder / _NAME).exists():
        for line in (folder / _NAME).read_bytes().split(b"\n"):
            try:
                name, photograph, boxes = json.loads(line)
                sources[str(name)] = (photograph, boxes)
            except (ValueError, TypeError, RecursionError):
                continue
    return sources


def append_sources(folder: Path, sources: Mapping[str, Sources]) -> None:
    """Adds lines."""
    with (folder / _NAME).open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # cut
                file.write(b"\n")
        file.write("".join(json.dumps([name, *digests]) + "\n" for name, digests in sources.items()).encode())
