"""Whose a folder is: it says so itself, in a JSON file (its label). Our own is taken up, an empty one may be begun, anything else
is refused: nothing of somebody else's is mixed with or written over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.json_file import read_json


def take_up(label: Path, about: Mapping[str, Any], *, what: str, strangers: Iterable[Path], remedy: str) -> bool:
    """Whether a folder is ours already. If not it may be begun: `write_label` says whose it is from then on.

    Args:
        label: The file that says whose the folder is.
        about: What it says of ours.
        what: What a folder is of: a job, an extractor.
        strangers: What must not be there without it.
        remedy: What to do about a folder that is refused, a sentence.

    Raises:
        InputError: The folder is of something else, its label cannot be read, or there are strangers.
    """
    if label.exists():
        require_own(label, read_label(label, remedy), about, what, remedy)
        return True
    refuse_strangers(label, strangers, remedy)
    return False


def write_label(label: Path, about: Mapping[str, Any]) -> None:
    """Says whose the folder is."""
    label.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(label, json.dumps(about, indent=1) + "\n")


def read_label(label: Path, remedy: str) -> dict[str, Any]:
    """What a label says.

    Raises:
        InputError: It cannot be read.
    """
    try:
        found = read_json(label, "whose its folder is")
    except InputError as error:
        reason = str(error).partition("; expected")[0].removeprefix(f"{label} ")
        raise InputError(f"{label} cannot be read ({reason}). {remedy}") from None
    if not isinstance(found, dict):
        raise InputError(f"{label} cannot be read (it holds no mapping). {remedy}")
    return found


def require_own(label: Path, found: Mapping[str, Any], about: Mapping[str, Any], what: str, remedy: str) -> None:
    """Refuse a folder whose label says something else than ours.

    Raises:
        InputError: With what differs.
    """
    ours: dict[str, Any] = json.loads(json.dumps(about))  # what was a tuple is a list
    if differing := [key for key in sorted({*ours, *found}) if found.get(key) != ours.get(key)]:
        listed = [f"{key} {_values(found.get(key), ours.get(key))}" for key in differing[:6]]
        more = f"; and {len(differing) - 6} more" if len(differing) > 6 else ""
        raise InputError(f"{label} is of another {what}: {'; '.join(listed)}{more}. {remedy}")


def refuse_strangers(label: Path, strangers: Iterable[Path], remedy: str) -> None:
    """Refuse a folder that has content but no label.

    Raises:
        InputError: With the first stranger.
    """
    if (first := next(iter(strangers), None)) is not None:
        raise InputError(
            f"{label.parent} is not empty and has no {label.name} to say whose it is ({first.name!r} is there). {remedy}"
        )


def _values(there: Any, here: Any) -> str:
    """Both values, where a line has room for them."""
    shown = f"was {there!r} and is {here!r}"
    return shown if len(shown) <= 160 else "differs"
