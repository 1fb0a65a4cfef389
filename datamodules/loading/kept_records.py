"""What came of parsing a data set's files, kept: COCO's JSON takes many seconds of each start of each process, a file of its
records (formats/record_file.py) a fraction of one.

These files lie in `$CROSSLIGHT_CACHE/records` (~/.cache/crosslight/records), which may be deleted at any time. The name of each
holds a hash of all that decides what is in it: the contents of the parsed files, the options, and the code that parses. So
another content, option or version has another file; one that is damaged is made again, and one that nobody has opened for a month
goes when another is written. Of processes that start together one parses, and the others wait for it.

Little data are parsed at each start, and leave nothing here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.digests import changed_since, digests
from datamodules.files.locks import locked
from datamodules.files.releases import CACHE_VARIABLE, cache_folder
from datamodules.formats.parsing import without_collecting
from datamodules.formats.record_file import open_records, write_records
from datamodules.formats.record_table import RecordTable
from datamodules.records import ImageRecord

_WORTH_KEEPING = 4 * 1024**2  # bytes; fewer are parsed in less time than it takes to notice
_MANY_FILES = 2000  # likewise
_MANY_CAPTIONS = 100_000  # as objects they are a burden to each process
_FORGOTTEN = 30 * 24 * 3600.0  # seconds

log = logging.getLogger("crosslight")


@dataclass(frozen=True)
class Origins:
    """What decides what parsing gives, beside our code.

    Args:
        name: Of the data set.
        files: That are parsed.
        options: As JSON.
    """

    name: str
    files: Sequence[Path]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ReadSplits:
    """What parsing gave.

    Args:
        splits: Records by the name of their split.
        facts: What else is to be known, as JSON.
    """

    splits: Mapping[str, Sequence[ImageRecord]]
    facts: Mapping[str, Any]


def read_splits(origins: Origins | None, parse: Callable[[], ReadSplits]) -> ReadSplits:
    """What `parse` gives, or has given before.

    Args:
        origins: What decides it; None: nobody can say, and nothing is kept.
        parse: Called where it is not kept.

    Raises:
        InputError: As `parse`; or a file cannot be read.
    """
    if origins is None or not _worth_keeping(origins.files):
        return _in_arrays(_parsed(parse), least=_MANY_CAPTIONS)
    began = time.time_ns()
    contents = digests(origins.files)
    folder = cache_folder() / "records"
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', origins.name)}-{_key(origins, contents)}.safetensors"
    with ExitStack() as held:
        try:
            if (kept := _opened(path, say=False)) is not None:
                return kept
            lock = folder / f".{path.stem}.lock"
            waits = partial(log.info, "another process is reading the files of %s; waiting for it", origins.name)
            held.enter_context(locked(lock, waits))
            if (kept := _opened(path)) is not None:  # the process that this one waited for has written it
                return kept
        except (OSError, InputError) as error:
            _say_unkept(origins, folder, error)
            return _in_arrays(_parsed(parse))
        read = _in_arrays(_parsed(parse))
        tables = {split: table for split, table in read.splits.items() if isinstance(table, RecordTable)}
        if len(tables) < len(read.splits) or changed_since(contents, began):
            return read
        try:
            _remove_forgotten(folder)
            write_records(path, tables, read.facts)
            return _opened(path) or read
        except OSError as error:
            _say_unkept(origins, folder, error)
            return read


def _parsed(parse: Callable[[], ReadSplits]) -> ReadSplits:
    with without_collecting():
        return parse()


def _in_arrays(read: ReadSplits, least: int = 0) -> ReadSplits:
    """With the records as tables, where that loses nothing and there are at least so many captions."""
    captions = sum(len(record.captions) for records in read.splits.values() for record in records)
    if captions < least:
        return read
    return ReadSplits({split: RecordTable.of(records) or records for split, records in read.splits.items()}, read.facts)


def _opened(path: Path, say: bool = True) -> ReadSplits | None:
    """What is kept in a file; None where there is none that is whole, which is said if asked for.

    Raises:
        OSError: It is there, and cannot be read.
    """
    try:
        splits, facts = open_records(path)
    except FileNotFoundError:
        return None
    except InputError as error:
        if say:
            log.warning("%s: the data set's files are parsed again.", str(error).removesuffix(". Remove it."))
        return None
    with suppress(OSError):
        os.utime(path)  # it is in use: see `_remove_forgotten`
    return ReadSplits(splits, facts)


def _say_unkept(origins: Origins, folder: Path, error: OSError | InputError) -> None:
    reason = error.strerror or error if isinstance(error, OSError) else error
    log.warning(
        "the records of %s cannot be kept in %s (%s): each process parses the files at each start. Set %s to a folder that can "
        "be written to.", origins.name, folder, reason, CACHE_VARIABLE,
    )  # fmt: skip


def _remove_forgotten(folder: Path) -> None:
    """Remove what nobody has opened for a month. (Not at once what another content has replaced: a running process may look at
    it, and over a network that would be its end. Whoever reads another user's file may not set its time, but has read it.)"""
    for file in folder.iterdir():
        if file.suffix in (".safetensors", ".lock"):
            with suppress(OSError):
                status = file.stat()
                if time.time() - max(status.st_mtime, status.st_atime) > _FORGOTTEN:
                    file.unlink()


# ------------------------------------------------------------------------------------------------------------ what decides


def _worth_keeping(files: Sequence[Path]) -> bool:
    return len(files) >= _MANY_FILES or sum(file.stat().st_size for file in files if file.exists()) >= _WORTH_KEEPING


def _key(origins: Origins, contents: Mapping[Path, str]) -> str:
    """24 hexadecimal digits over what decides what parsing gives."""
    over = hashlib.sha256(json.dumps([_code(), origins.options], sort_keys=True).encode())
    for file in origins.files:
        over.update(os.fsencode(f"{file}\0{contents.get(file, '-')}\n"))
    return over.hexdigest()[:24]


@cache
def _code() -> str:
    """64 hexadecimal digits over the code that parses: a number of a version could be forgotten."""
    package = Path(__file__).resolve().parents[1]
    ours = ("errors.py", "records.py", "source.py", "loading/region_files.py", "loading/splits.py")
    rooms = (file for room in ("files", "formats", "sources") for file in sorted((package / room).rglob("*.py")))
    over = hashlib.sha256(f"{sys.version_info[:2]}\n".encode())
    for file in (*(package / name for name in ours), *rooms):
        over.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return over.hexdigest()
