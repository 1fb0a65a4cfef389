"""Unfinished files and folders have names that say which process makes them, so that those of killed processes can be removed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import time
import zlib
from functools import lru_cache
from pathlib import Path

_NAME = re.compile(
    r"\..*\.unfinished-(?P<place>[0-9a-f]{8})-(?P<process>[0-9a-f]+)-(?P<began>[0-9a-f]+)-[0-9a-f]{8}(\.[^.]*)?", re.DOTALL
)
_FORGOTTEN = 24 * 3600.0  # seconds after which nobody is still at it, wherever it was begun
_LONGEST = 180  # characters of a name; with what is added it must stay below 255 bytes


def unfinished(path: Path) -> Path:
    """A name beside `path` for what is being written, of this process; it ends like that of `path`."""
    suffix = path.suffix[:20]
    owner = f"{_place()}-{os.getpid():x}-{_began(os.getpid()) or 0:x}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name.encode()[:_LONGEST].decode(errors='ignore')}.unfinished-{owner}{suffix}")


def remove_leftovers(folder: Path, alone: bool = False) -> None:
    """Remove what processes that are gone left unfinished in a folder. What another machine began may go on there: that is kept
    for a day. What cannot be removed stays: it is in nobody's way.

    Args:
        folder: Not what is below it.
        alone: Whether the caller has the folder to itself, by a lock: then all that is unfinished was left.
    """
    try:
        names = [name for name in os.listdir(folder) if ".unfinished-" in name]
    except OSError:
        return
    for name in names:
        found = _NAME.fullmatch(name)
        if found is not None and (alone or _is_dead(folder / name, found)):
            with contextlib.suppress(OSError):
                if (folder / name).is_dir() and not (folder / name).is_symlink():
                    shutil.rmtree(folder / name)
                else:
                    (folder / name).unlink()


def _is_dead(path: Path, found: re.Match[str]) -> bool:
    if found["place"] == _place():
        process = int(found["process"], 16)
        return _began(process) != int(found["began"], 16)
    with contextlib.suppress(OSError):
        return time.time() - path.lstat().st_mtime > _FORGOTTEN
    return False


@lru_cache(maxsize=1)
def _place() -> str:
    """Where numbers of processes mean the same processes: this start of this machine, and of a container in it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return f"{zlib.crc32(' '.join(parts).encode()):08x}"


def _began(process: int) -> int | None:
    """When a process began, in the kernel's ticks; None where there is none. Another one may have its number later."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        with contextlib.suppress(OSError):  # not Linux: that it is there must do
            os.kill(process, 0)
            return 0
        return None
    state, *fields = status.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])  # a zombie has ended
