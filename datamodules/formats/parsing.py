"""What the JSON readers share: opening a file with a readable error, and the list of what is wrong inside it.

A reader collects every `Problem` it meets instead of stopping at the first, so that `crosslight data check` can list them all;
training calls `Parsed.valid()`, which turns them into one `InputError`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datamodules.errors import InputError
from datamodules.records import ImageRecord

ProblemKind = Literal[
    "missing image",
    "unreadable image",
    "duplicated id",
    "caption without image",
    "image without captions",
    "empty caption",
    "image in several splits",
    "unreadable annotation",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `where` names the file, `text` says what (with the key or id)."""

    kind: ProblemKind
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.text}"


@dataclass(slots=True)
class Parsed:
    """Records by split name, and what is wrong with them."""

    path: Path
    splits: dict[str, list[ImageRecord]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: ProblemKind, text: str) -> None:
        self.problems.append(Problem(kind, str(self.path), text))

    def valid(self) -> dict[str, list[ImageRecord]]:
        """The splits.

        Raises:
            InputError: there are problems; the message shows the first three and how to list the others.
        """
        if self.problems:
            shown = "\n  ".join(f"{problem.kind}: {problem.text}" for problem in self.problems[:3])
            more = len(self.problems) - 3
            rest = f"\n  and {more} more (`crosslight data check` lists all)" if more > 0 else ""
            raise InputError(f"{self.path} has {len(self.problems)} problem(s); mend or remove these entries:\n  {shown}{rest}")
        return self.splits


def join(root: Path, files: Mapping[str, Sequence[Parsed]]) -> Parsed:
    """Files of one split each (all their images under "all") as splits of these names; an image in two files of a split is a
    problem."""
    joined = Parsed(root)
    for split, parts in files.items():
        records = joined.splits.setdefault(split, [])
        known: set[str] = set()
        for part in parts:
            joined.problems += part.problems
            for record in part.splits["all"]:
                if record.image_id in known:
                    joined.add("duplicated id", f"{part.path.name} repeats image {record.image_id} of split {split}")
                known.add(record.image_id)
                records.append(record)
    return joined


def read_json(path: Path, expected: str) -> Any:
    """The parsed JSON of a file; `expected` says in an error what the file should have been.

    Raises:
        InputError: the file is missing, unreadable, not UTF-8 or not JSON (most often: a download cut short).
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected {expected} there.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected {expected}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; expected {expected}.") from error
    except json.JSONDecodeError as error:
        size = path.stat().st_size
        raise InputError(
            f"{path} is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno} of {size:,} bytes); "
            f"expected {expected}. A file that ends too early was not downloaded completely: fetch it again."
        ) from error
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to be {expected}.") from None


class Entry:
    """A JSON object with typed access: a missing or mistyped key is an `InputError` that names file, place and key."""

    __slots__ = ("expected", "path", "place", "value")

    def __init__(self, value: object, path: Path, place: str, expected: str) -> None:
        if not isinstance(value, Mapping):
            raise InputError(f"{path}: {place} is a JSON {_json_type(value)}, not an object; expected {expected}.")
        self.value, self.path, self.place, self.expected = value, path, place, expected

    def text(self, key: str) -> str:
        return self._get(key, str, "a string")

    def items(self, key: str) -> list[Any]:
        return self._get(key, list, "a list")

    def identity(self, key: str) -> str:
        """An integer or string id, as a string."""
        value = self.value.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            self._fail(key, value, "an integer or a string")
        return str(value)

    def _get(self, key: str, kind: type, name: str) -> Any:
        value = self.value.get(key)
        if not isinstance(value, kind):
            self._fail(key, value, name)
        return value

    def _fail(self, key: str, value: object, name: str) -> None:
        found = f"{key!r} is a JSON {_json_type(value)}, not {name}" if key in self.value else f"has no {key!r}"
        raise InputError(f"{self.path}: {self.place}: {found}; expected {self.expected}.")


def _json_type(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", int: "number", float: "number", bool: "boolean"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
