"""A file of captions with a row an image, which grows by batches: who is stopped goes on where the file ends.

A row says what it was made of (`content`, the digest of the image's content) and by what (`job`: weights, settings, transform,
decoding), so that a caption that is there already is known, and captions of another model are never beside it.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.locks import take_lock
from datamodules.formats.caption_results import json_text
from datamodules.formats.typed import read_typed

ENDINGS = (".jsonl", ".csv")


@dataclass(frozen=True)
class Row:
    """A caption of an image file.

    Args:
        file: As it was given.
        caption: The text.
        log_prob: log P(caption | image), natural, summed over its tokens (and its end).
        tokens: How many; without the end.
        ended: Whether it ended by itself, and not because it may be no longer.
        content: Digest of the file's content.
        job: Digest of what made it.
    """

    file: str
    caption: str
    log_prob: float
    tokens: int
    ended: bool
    content: str
    job: str


_COLUMNS = tuple(field.name for field in fields(Row))


class CaptionFile:
    """The rows of a file, JSON lines (.jsonl) or CSV, which this process alone writes until it is closed.

    Args:
        path: The file; made with the first row.
        job: Of the captions that are added.

    Raises:
        InputError: It holds captions of another job, or no captions; or another process writes it.
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path, self.job = path, job
        lock = take_lock(path.with_name(f".{path.name}.lock"))
        if lock is None:
            raise InputError(f"--out {path} is being written by another process; wait for it, or give another --out.")
        self._lock = lock
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write."""
        self._lock.close()

    def _begin(self) -> None:
        path, job = self.path, self.job
        self._csv = path.suffix.lower() == ".csv"
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]  # a killed process may have left half a row
        self.rows = self._parse(whole)
        if any(row.job != job for row in self.rows):
            raise InputError(f"{path} has captions of another model or decoding. Give another --out, or delete it.")
        self._new = not whole
        if whole != content:
            self._write(self.rows)

    def keep(self, contents: Mapping[str, str]) -> set[str]:
        """Drop rows of files whose content is another now, and give those files, of these, that have a caption.

        Args:
            contents: Digests by file.
        """
        given = {os.path.abspath(file): file for file in contents}  # a folder may be named otherwise today
        own = {row.file: given.get(os.path.abspath(row.file), row.file) for row in self.rows}
        kept = [row for row in self.rows if contents.get(own[row.file], row.content) == row.content]
        if len(kept) < len(self.rows):
            self._write(kept)
        return {own[row.file] for row in kept} & contents.keys()

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows: all of them, or where the process is killed now at most some.

        Raises:
            InputError: It cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(self._format(rows, self._new))
        except OSError as error:
            raise InputError(f"--out {self.path} cannot be written ({error.strerror}).") from error
        self._new = False
        self.rows += rows

    def _write(self, rows: list[Row]) -> None:
        self.rows = rows
        self._new = not rows
        write_atomically(self.path, self._format(rows, bool(rows)))

    def _format(self, rows: Iterable[Row], heading: bool) -> bytes:
        if not self._csv:
            return "".join(json_text(asdict(row)) + "\n" for row in rows).encode()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([_COLUMNS] if heading else [])
        writer.writerows(astuple(row) for row in rows)
        return text.getvalue().encode()

    def _parse(self, content: bytes) -> list[Row]:
        rows: list[Row] = []
        try:
            text = content.decode()
            if self._csv:
                table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
                if text and tuple(table.fieldnames or ()) != _COLUMNS:
                    raise ValueError("other columns")
                entries: Iterable[Any] = map(_typed, table)
            else:
                entries = map(json.loads, text.split("\n")[:-1])
            rows.extend(read_typed(Row, entry, str(self.path)) for entry in entries)
        except (ValueError, KeyError, TypeError, RecursionError, csv.Error, InputError):
            raise InputError(
                f"{self.path} holds no captions of this command (row {len(rows) + 1}). Give another --out, or delete it."
            ) from None
        return rows


def _typed(entry: Mapping[str, str]) -> dict[str, Any]:
    """A row of a CSV file with its numbers."""
    ended = {"True": True, "False": False}[entry["ended"]]
    return {**entry, "log_prob": float(entry["log_prob"]), "tokens": int(entry["tokens"]), "ended": ended}
