"""Reads a list in a JSON file element by element, for files too large to be held as Python objects.

The standard library's decoder does the work on one element at a time; the files that need this (Visual Genome's 700 MB of region
descriptions, Karpathy's 150 MB) are long lists of small objects, so nothing is gained by a parser of events such as ijson.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from datamodules.errors import InputError
from datamodules.files.json_file import CUT, DECODER, remedy, why
from datamodules.files.text import open_text

_CHUNK = 1 << 20  # characters
_LONGEST = 1 << 25  # characters of one element: more is taken for a file that is not what it should be


def stream_list(path: Path, expected: str, key: str | None = None, chunk: int = _CHUNK) -> Iterator[Any]:
    """The elements of the list that is the file, or that its object holds under `key`.

    Elements come as soon as they are read, so an error in the file is raised after those before it.

    Args:
        path: The file.
        expected: What the file should have been, for errors.
        key: Of the top-level object; None: the top level is the list.
        chunk: Characters to read at a time.

    Raises:
        InputError: the file is missing, unreadable, not UTF-8, not JSON (most often: a download cut short), has no such list, or
            an element is longer than 32 million characters.
    """
    with open_text(path, expected) as file:
        reader = _Reader(file, path, expected, chunk)
        if key is None:
            reader.require("[", "the top level is not a list")
            yield from reader.elements()
        else:
            reader.require("{", "the top level is not an object")
            reader.go_to(key)
            reader.require("[", f"{key!r} is not a list")
            yield from reader.elements()
            reader.finish_object(key)
        if reader.peek():
            reader.fail("there is more after its end")


class _Reader:
    """A file's text, of which only a piece is in memory; `place` counts characters of that piece."""

    def __init__(self, file: TextIO, path: Path, expected: str, chunk: int) -> None:
        self.file, self.path, self.expected, self.chunk = file, path, expected, chunk
        self.text = ""
        self.place = 0
        self.ended = False
        self.count = 0  # elements so far, for errors

    def more(self) -> None:
        """Read on: as much as is there already, so that a long element is not begun again for every chunk of it."""
        rest = self.text[self.place :]
        read = self.file.read(max(self.chunk, len(rest)))
        self.text, self.place, self.ended = rest + read, 0, not read

    def peek(self) -> str:
        """The next character that is not white space, or "" at the file's end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in " \t\n\r":
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if self.ended:
                return ""
            self.more()

    def require(self, character: str, otherwise: str) -> None:
        found = self.peek()
        if found != character:
            self.fail(otherwise if found else "the file ends too early")
        self.place += 1

    def value(self) -> Any:
        """The next JSON value."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                if self.ended:
                    self.fail(why(error), remedy(error))
                if len(self.text) - self.place > _LONGEST:
                    self.fail(f"{error.msg}, or this element is longer than {_LONGEST:,} characters")
            except (ValueError, RecursionError) as error:
                self.fail(why(error))
            else:
                if end + 2 < len(self.text) or self.ended:  # otherwise a number may go on in the next chunk: "1", "1e-", "1e-5"
                    self.place = end
                    return value
            self.more()

    def elements(self) -> Iterator[Any]:
        """The elements up to the list's end; its opening bracket has been read."""
        if self.peek() == "]":
            self.place += 1
            return
        while True:
            value = self.value()
            self.count += 1
            yield value
            if self.peek() == "]":
                self.place += 1
                return
            self.require(",", "no comma or closing bracket after an element")

    def go_to(self, key: str) -> None:
        """To the value of a key of the object whose opening brace has been read; values before it are read and left."""
        while self.peek() == '"':
            name = self.value()
            self.require(":", f"no colon after key {name!r}")
            if name == key:
                return
            self.value()
            if self.peek() == "}":
                break
            self.require(",", f"no comma after the value of {name!r}")
        self.fail(f"has no {key!r}" if self.peek() else "the file ends too early")

    def finish_object(self, key: str) -> None:
        """To the end of the object whose list has been read; values after it are read and left."""
        while self.peek() == ",":
            self.place += 1
            if self.peek() != '"':
                self.fail("no key after a comma")
            name = self.value()
            self.require(":", f"no colon after key {name!r}")
            if name == key:
                self.fail(f"has the key {key!r} twice")
            self.value()
        self.require("}", "no comma or closing brace after a value")

    def fail(self, reason: str, advice: str | None = None) -> NoReturn:
        after = f" after {self.count:,} elements" if self.count else ""
        if advice is None:
            advice = CUT if self.ended and self.place >= len(self.text.rstrip()) else ""
        raise InputError(f"{self.path}: {reason}{after} ({self.path.stat().st_size:,} bytes); expected {self.expected}.{advice}")
