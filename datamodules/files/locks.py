"""Locks between processes, on files: they go with their process, so a killed one leaves nothing to clean up."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def take_lock(file: Path) -> IO[Any] | None:
    """An exclusive lock on a file, held until what is returned is closed by all who have it; None where another has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = open(file, "a")  # noqa: SIM115 - open is what it is for
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """An exclusive lock on a file, waited for."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_held(file: Path) -> bool:
    """Whether a process has the lock."""
    if not file.exists():
        return False
    with open(file) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
