"""What is in files, as digests that two files share only where they hold the same bytes, wherever they lie.

What is derived from files (kept features, region databases, text databases) is kept under these, and so is a run's word for its
data. COCO's photographs are 19 GB, too much to read at every start, so a digest is remembered with the file's size, mtime and
ctime: a start costs one listing of each folder and one stat a file (attributes that a listing over a network brings along; 20,000
files take 0.2 s of processor time), and only files that are new or have changed are read. A file that is replaced by one of the
same size and mtime has another ctime, and is read again; so is a folder that was moved or copied, once, and its digests are what
they were.

They are remembered in `$CROSSLIGHT_CACHE/digests` (~/.cache/crosslight/digests), one file a folder, which may be deleted at any
time. Little data are read anew each time and leave nothing there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.releases import cache_folder

# Of a file: size, mtime and ctime, the times in nanoseconds.
_State = tuple[int, int, int]

_THREADS = 8  # a disc, and a network more so, gives several files, or parts of one, faster than one
_PART = 256 * 1024**2  # bytes; a larger file's digest is one over those of its parts
_WORTH_REMEMBERING = 64 * 1024**2  # bytes; fewer are read in less time than it takes to notice
_MANY = 2000  # files, likewise
_WORTH_SHOWING = 2 * 1024**3
_SETTLED = 2 * 10**9  # ns: a file that changed so shortly ago may change again without another time

_known: dict[str, dict[str, tuple[_State, str]]] = {}  # by folder and name, of this process


def digests(files: Iterable[Path]) -> dict[Path, str]:
    """32 hexadecimal digits over the content of each file; files that are not there have none.

    Raises:
        InputError: a file cannot be read.
    """
    by_folder: dict[Path, dict[str, Path]] = defaultdict(dict)
    for file in files:
        by_folder[file.parent][file.name] = file
    found: dict[Path, str] = {}
    for folder, wanted in by_folder.items():
        found |= {wanted[name]: its for name, its in digests_in(folder, wanted.keys()).items()}
    return found


def digests_in(folder: Path, names: Set[str]) -> dict[str, str]:
    """`digests` of files of one folder, by name: for a hundred thousand of them, whose paths take longer than all the rest.

    Raises:
        InputError: a file cannot be read.
    """
    states = _states(folder, names)
    known = _known.get(str(folder)) or _remembered(folder)
    fresh = {name: state for name, state in states.items() if known.get(name, (None,))[0] != state}
    if fresh:
        known = known | _read(folder, fresh)
        if len(fresh) >= _MANY or sum(size for size, _, _ in fresh.values()) >= _WORTH_REMEMBERING:
            _remember(folder, known)
    _known[str(folder)] = known
    return {name: known[name][1] for name in states}


def readable_digests(files: Iterable[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    """`digests` of those files that can be read, and what is wrong with the others, a sentence each."""
    files = list(files)
    wrong = {file: f"{file} cannot be opened." for file in files if file.exists() and not os.access(file, os.R_OK)}
    found = digests(file for file in files if file not in wrong)
    for file in files:
        if file not in found and file not in wrong:
            wrong[file] = f"{file} is no file." if file.exists() else f"{file} does not exist."
    return found, wrong


def changed_since(known: Mapping[Path, str], began: int) -> set[Path]:
    """Files that are gone, or have another content now: what was made of them may be of either.

    Args:
        known: What `digests` gave.
        began: `time.time_ns()` before it did. What was not touched since is not read again.
    """
    changed = set()
    for file, content in known.items():
        try:
            status = file.stat()
            same = (
                status.st_ctime_ns < began - _SETTLED
                or _whole([_part(file, start) for start in range(0, status.st_size or 1, _PART)]) == content
            )
        except (OSError, InputError):
            same = False
        if not same:
            changed.add(file)
    return changed


def digest(file: Path) -> str:
    """`digests` of one file.

    Raises:
        InputError: it is not there, or cannot be read.
    """
    found = digests([file])
    if file not in found:
        raise InputError(f"{file} does not exist.")
    return found[file]


def _states(folder: Path, wanted: Set[str]) -> dict[str, _State]:
    """Of those files that are there, by name."""
    found: dict[str, os.stat_result] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in wanted:
                    with suppress(OSError):  # a link to nothing is no file
                        found[entry.name] = entry.stat()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}).") from error
    return {
        name: (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for name, status in found.items()
        if stat.S_ISREG(status.st_mode)
    }


def _read(folder: Path, states: Mapping[str, _State]) -> dict[str, tuple[_State, str]]:
    """Reads the files; those that changed a moment ago get a state that none has."""
    size = sum(size for size, _, _ in states.values())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, disable=size < _WORTH_SHOWING or not console.is_terminal, transient=True)
    settled = time.time_ns() - _SETTLED
    parts: dict[str, list[bytes]] = defaultdict(list)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        task = bar.add_task(f"reading {folder.name} once, to know its content", total=size)
        places = [(name, start) for name, (size, _, _) in states.items() for start in range(0, size or 1, _PART)]
        for (name, start), part in zip(places, pool.map(lambda place: _part(folder / place[0], place[1]), places), strict=True):
            parts[name].append(part)
            bar.advance(task, min(_PART, states[name][0] - start))
    read: dict[str, tuple[_State, str]] = {}
    for name, state in states.items():
        read[name] = (state if state[2] < settled else (-1, -1, -1), _whole(parts[name]))
    return read


def _whole(parts: Sequence[bytes]) -> str:
    whole = parts[0] if len(parts) == 1 else hashlib.sha256(b"".join(parts)).digest()
    return whole.hex()[:32]


def _part(file: Path, start: int) -> bytes:
    """SHA-256 of a file's bytes from `start` on, `_PART` of them at most."""
    found = hashlib.sha256()
    try:
        with file.open("rb") as content:
            content.seek(start)
            left = _PART
            while left and (block := content.read(min(left, 2**20))):
                found.update(block)
                left -= len(block)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}).") from error
    return found.digest()


def _memory(folder: Path) -> Path:
    return cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"


def _remembered(folder: Path) -> dict[str, tuple[_State, str]]:
    try:
        content = json.loads(_memory(folder).read_bytes())
        return {
            name: ((int(size), int(modified), int(changed)), re.fullmatch("[0-9a-f]{32}", found)[0])  # type: ignore[index]
            for name, (size, modified, changed, found) in content["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}  # none, or none that can be trusted: read anew


def _remember(folder: Path, known: Mapping[str, tuple[_State, str]]) -> None:
    files = {name: [*state, found] for name, (state, found) in known.items() if state[0] >= 0}
    path = _memory(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"folder": str(folder), "files": files}))
    except OSError:  # a home that cannot be written to: read anew the next time
        return
