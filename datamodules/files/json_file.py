"""Parses JSON strictly for all readers: no NaN, no key twice, no numbers of thousands of digits, and an error says where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from datamodules.errors import InputError, shown
from datamodules.files.text import read_text

CUT = " It ends too early: it was not copied or downloaded completely."


class _RefusedError(ValueError):
    """Python's decoder would take it; it is no JSON, or would lose something."""


def _no_constant(name: str) -> NoReturn:
    raise _RefusedError(f"it holds {name}, which is no JSON")


def _all_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RefusedError(f"an object has the key {max(keys, key=keys.count)[:80]!r} twice")
    return content


DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_all_keys)
"""Its errors are ValueErrors (`why` says them) and RecursionErrors."""


def read_json(path: Path, expected: str) -> Any:
    """The parsed JSON of a file.

    Args:
        path: The file.
        expected: What it should be, for errors.

    Raises:
        InputError: the file is missing, empty, unreadable, no text, not JSON (most often: cut short), JSON lines, nested too
            deeply, or has a key twice, NaN, or a number of thousands of digits.
    """
    text = read_text(path, expected)
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[error.pos] in "{[" and "\n" in text[: error.pos]:
            reason = "is JSON lines, with a value on each, not one JSON value"
            raise InputError(f"{path} {reason}; expected {expected}. `jq -s . FILE` makes one list of it.") from None
        where = f"{why(error)} at line {error.lineno}, column {error.colno} of {len(text):,} characters"
        if not text[: error.pos].strip():  # a table, say
            where += f", which begin {shown(text.lstrip()[:40].partition(chr(10))[0])}"
        raise InputError(f"{path} is not valid JSON ({where}); expected {expected}.{remedy(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({why(error)}); expected {expected}.") from None


def why(error: ValueError | RecursionError) -> str:
    """What is wrong, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error) if isinstance(error, _RefusedError) else "it holds a number of thousands of digits"


def remedy(error: json.JSONDecodeError) -> str:
    """What to do where the text ends too early; else nothing: the place is enough."""
    if error.msg.startswith("Unterminated string") or error.pos >= len(error.doc.rstrip()):
        return CUT
    return ""
