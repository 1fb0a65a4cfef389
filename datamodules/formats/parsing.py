"""What the readers share: what came of a file, the list of what is wrong inside it, and typed access to JSON objects.

A reader collects every `Problem` it meets instead of stopping at the first, so that `crosslight data check` can list them all;
training calls `Parsed.valid()`, which turns them into one `InputError`.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.errors import InputError, shown
from datamodules.formats.problems import Problem, ProblemKind, broken_rules
from datamodules.records import ImageRecord

_LEAVES_ITS_FOLDER = re.compile(r"^/|(?:^|[/\\])\.\.(?:[/\\]|$)|^[./]*$|[\0\ud800-\udfff]")


@contextmanager
def without_collecting() -> Iterator[None]:
    """Without Python's search for cycles: parsing makes millions of objects and no cycle, and to look through them again and
    again takes twice as long as to make them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(slots=True)
class Parsed:
    """Records by split name, and what its reader found wrong with them."""

    path: Path
    splits: dict[str, list[ImageRecord]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: ProblemKind, text: str) -> None:
        self.problems.append(Problem(kind, str(self.path), text))

    def all_problems(self) -> list[Problem]:
        """What the reader found, and what breaks a rule of all data sets."""
        return [*self.problems, *(Problem(kind, str(self.path), text) for kind, text in broken_rules(self.splits))]

    def valid(self) -> dict[str, list[ImageRecord]]:
        """The splits.

        Raises:
            InputError: there are problems; the message shows the first three and how to list the others.
        """
        if problems := self.all_problems():
            first = "\n  ".join(f"{problem.kind}: {problem.text}" for problem in problems[:3])
            more = len(problems) - 3
            rest = f"\n  and {more} more (`crosslight data check` lists all)" if more > 0 else ""
            raise InputError(f"{self.path} has {len(problems)} problem(s); mend or remove these entries:\n  {first}{rest}")
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
                else:
                    known.add(record.image_id)
                    records.append(record)
    return joined


class Entry:
    """A JSON object with typed access: a missing or mistyped key is an `InputError` that names file, place and key."""

    __slots__ = ("expected", "path", "place", "value")

    def __init__(self, value: object, path: Path, place: str, expected: str) -> None:
        if not isinstance(value, Mapping):
            raise InputError(f"{path}: {place} is {_json_type(value)}, not an object; expected {expected}.")
        self.value, self.path, self.place, self.expected = value, path, place, expected

    def text(self, key: str) -> str:
        return self._get(key, str, "a string")

    def items(self, key: str) -> list[Any]:
        return self._get(key, list, "a list")

    def identity(self, key: str) -> str:
        """An integer or string id, as a string."""
        value = self.value.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
            self._fail(key, value, "an integer or a string")
        return str(value)

    def number_or_null(self, key: str) -> str | None:
        """A whole number from 0, as a string; null is none, and must be there."""
        if key in self.value and self.value[key] is None:
            return None
        number = self.identity(key)
        if not (number.isascii() and number.isdecimal()):
            raise InputError(f"{self.path}: {self.place}: {key!r} is {shown(number)}, not a number; expected {self.expected}.")
        return number

    def file(self, key: str) -> str:
        """The name of a file, or its path inside of a folder."""
        name = self.text(key)
        if (name[:1] in "/." or ".." in name or "\0" in name or not name.isascii()) and _LEAVES_ITS_FOLDER.search(name):
            raise InputError(
                f"{self.path}: {self.place}: {key!r} is {shown(name)}, which names no file inside of its folder; "
                f"expected {self.expected}."
            )
        return name

    def _get(self, key: str, kind: type, name: str) -> Any:
        value = self.value.get(key)
        if not isinstance(value, kind):
            self._fail(key, value, name)
        return value

    def _fail(self, key: str, value: object, name: str) -> None:
        found = f"{key!r} is {_json_type(value)}, not {name}" if key in self.value else f"has no {key!r}"
        raise InputError(f"{self.path}: {self.place}: {found}; expected {self.expected}.")


def _json_type(value: object) -> str:
    if value is None or value == "":
        return "null" if value is None else "empty"
    names = {dict: "object", list: "list", str: "string", int: "number", float: "number", bool: "boolean"}
    return f"a JSON {names.get(type(value), type(value).__name__)}"
