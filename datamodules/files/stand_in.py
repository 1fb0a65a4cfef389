"""The mark of stand-ins: files of an official layout with random contents, to rehearse runs on before their data and weights are
there. A file STAND-IN marks its folder and everything below it. What a run made of them is no result (see `mark_of`), nor is what
is made of that run: both are marked as well (`mark`), and the run of a rehearsal with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.ownership import read_label, take_up, write_label

MARK = "STAND-IN"


def begin(folder: Path, about: Mapping[str, Any]) -> None:
    """Mark a folder before anything is written to it, or see that it has this very mark.

    Args:
        folder: Made when missing.
        about: What it is a stand-in of, and what decides its contents.

    Raises:
        InputError: It holds something else, or stand-ins of other arguments.
    """
    label = folder / MARK
    there = (entry for entry in folder.iterdir()) if folder.is_dir() else ()
    remedy = "Stand-ins are never written among other files: give another folder, or remove this one."
    content = {"what": "random contents in an official layout: nothing that was computed of them is a result", **about}
    if not take_up(label, content, what="stand-in", strangers=there, remedy=remedy):
        write_label(label, content)


def mark(folder: Path, what: str) -> None:
    """Mark a folder of our own that was made of something marked, or by a rehearsal; one that has a mark keeps it.

    Args:
        folder: It is there.
        what: It is, and that it is no result.
    """
    if not (folder / MARK).exists():
        write_label(folder / MARK, {"what": what})


def said(mark: Path) -> str:
    """What a mark says of its folder. One that cannot be read marks as well."""
    try:
        return str(read_label(mark, "")["what"])
    except (InputError, KeyError):
        return "stand-ins: nothing that is made of them is a result"


def mark_of(path: Path) -> Path | None:
    """The mark that a file or folder has, its own or that of a folder above it. Links are followed."""
    if not path.exists():
        return None
    whole = path.resolve()
    return next((mark for folder in (whole, *whole.parents) if (mark := folder / MARK).is_file()), None)


def marks_of(paths: Iterable[Path]) -> list[Path]:
    """The marks of these files and folders, each once."""
    return list(dict.fromkeys(mark for path in paths if (mark := mark_of(path)) is not None))
