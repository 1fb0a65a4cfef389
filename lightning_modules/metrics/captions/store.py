"""Captions on disk while they are made: a process may be killed at any moment, and no finished batch is made again.

A folder holds `job.json`, what the captions belong to, and one `part-00000.jsonl` a process with a line a batch, a list of
[row, caption, whether it ended by itself, its log-probability]. Rows are those of the split, so any number of processes may go
on. A batch counts only as a whole: rounding may depend on its size, and a caption that is made again should come out as it would
have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from datamodules.errors import InputError, shown
from datamodules.files.ownership import take_up, write_label

VERSION = 3


class CaptionStore:
    """One process's access to the folder, or with `folder=None` to memory of its own.

    One process calls `prepare` before the others read.

    Args:
        folder: Made when missing.
        rank: Of this process.
    """

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self._captions: dict[int, str] = {}
        self.unended: set[int] = set()  # rows of captions that were as long as captions may be, and had no end
        self.log_probs: dict[int, float] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def prepare(self, job: Mapping[str, Any]) -> None:
        """See that the folder's captions belong to this job, or start a new one in an empty folder.

        Raises:
            InputError: Captions of another job, or files without a job.
        """
        if self.folder is None:
            return
        label, about = self.folder / "job.json", {"version": VERSION, **job}
        remedy = "Delete the folder to write all captions anew."
        if not take_up(label, about, what="job", strangers=self._parts(), remedy=remedy):
            write_label(label, about)

    def read(self) -> None:
        """Take in what all processes have written so far.

        Raises:
            InputError: A line is damaged.
        """
        for path in self._parts():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):  # the last one of a killed process may be half
                    continue
                try:
                    batch = [(int(row), "" + text, bool(end), float(log)) for row, text, end, log in json.loads(line)]
                except (ValueError, TypeError, RecursionError):
                    what = f"has a line that is no batch of captions: {shown(line.decode(errors='replace').strip())}"
                    raise InputError(f"{path} {what}. Delete {self.folder} to write all captions anew.") from None
                self._captions |= {row: caption for row, caption, _, _ in batch}
                self.unended |= {row for row, _, ended, _ in batch if not ended}
                self.log_probs |= {row: log_prob for row, _, _, log_prob in batch}

    def found(self, rows: Sequence[int]) -> list[str] | None:
        """The captions of a batch, or None where one of them is missing."""
        captions = [self._captions[row] for row in rows if row in self._captions]
        return captions if len(captions) == len(rows) else None

    def add(
        self,
        rows: Sequence[int],
        captions: Sequence[str],
        ended: Sequence[bool] | None = None,
        log_probs: Sequence[float] | None = None,
    ) -> None:
        """Keep a batch, all of it or, where the process is killed now, nothing; `ended` None: all captions did; `log_probs` None:
        they are not known (nan)."""
        known = log_probs or [math.nan] * len(rows)
        batch = list(zip(rows, captions, ended or [True] * len(rows), known, strict=True))
        self._captions |= dict(zip(rows, captions, strict=True))
        self.unended |= {row for row, _, end, _ in batch if not end}
        self.log_probs |= dict(zip(rows, known, strict=True))
        if self.folder is None:
            return
        if self._file is None:
            self._file = self._open()
        self._file.write(json.dumps(batch).encode() + b"\n")
        self._file.flush()

    def _open(self) -> IO[bytes]:
        """This process's part, without the half line that a killed one may have left."""
        assert self.folder is not None
        path = self.folder / f"part-{self.rank:05d}.jsonl"
        file = open(path, "ab")  # noqa: SIM115 - until close()
        content = path.read_bytes()
        file.truncate(content.rfind(b"\n") + 1)
        return file

    def remove(self) -> None:
        """Delete the folder; for one process, when the captions stand elsewhere."""
        self.close()
        if self.folder is not None and self.folder.exists():
            for path in [*self._parts(), self.folder / "job.json"]:
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    def _parts(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob("part-*.jsonl"))
