"""Which files a file was made of, in a note beside it: so that what is left of a replaced file is not taken for its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.digests import digests
from datamodules.files.json_file import read_json


def note_origins(note: Path, made: Iterable[Path], of: Iterable[Path]) -> None:
    """Writes the note: digests of what was made, and of what it was made of, by file name."""
    contents = {key: {path.name: found for path, found in digests(paths).items()} for key, paths in (("made", made), ("of", of))}
    write_atomically(note, json.dumps(contents, indent=1) + "\n")


def require_current(note: Path, made: Iterable[Path], of: Iterable[Path], remedy: str) -> None:
    """See that files were made of those that are there now. Where there is no note, or it is of other files (released ones have
    taken their place), nobody knows; a file that is not there any more cannot differ.

    Args:
        note: What `note_origins` wrote.
        made: The files that are going to be used.
        of: What they may have been made of.
        remedy: How to make them again, a sentence.

    Raises:
        InputError: one of those has another content now.
    """
    if not os.path.lexists(note):
        return
    try:
        noted = read_json(note, "digests of files")
        its_made, its_of = dict(noted["made"]), dict(noted["of"])
    except (InputError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{note} cannot be read ({error}). {remedy}") from error
    if any(its_made.get(path.name) != found for path, found in digests(made).items()):
        return
    for path, found in digests(of).items():
        if its_of.get(path.name, found) != found:
            names = ", ".join(sorted(its_made))
            raise InputError(f"{note.parent}: {names}: made of another {path.name} than {path} is now. {remedy}")
