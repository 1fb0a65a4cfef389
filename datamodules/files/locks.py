"""Locks between processes, on files: they go with their process, so a killed one leaves nothing to clean up. And one between
threads."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from datamodules.errors import InputError


class ThreadLock:
    """A lock between the threads of a process. A forked process has it anew: it may have copied one that a thread of its parent
    holds. For one that lasts as long as the process."""

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def take_lock(file: Path, *, shared: bool = False) -> IO[Any] | None:
    """A lock on a file, held until what is returned is closed by all who have it; None where another has it.

    Args:
        file: The file.
        shared: Several may have it at once, none of them while one has it for itself.

    Raises:
        InputError: Something that is no file is in its place, it cannot be made, or its file system has no locks.
    """
    lock = _open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        taken = _taken(lock, file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except InputError:
        lock.close()
        raise
    if not taken:
        lock.close()
    return lock if taken else None


@contextlib.contextmanager
def locked(file: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """An exclusive lock on a file, waited for.

    Args:
        file: The file.
        waits: Called where another has it, before this one waits: to say so.

    Raises:
        InputError: As `take_lock`.
    """
    with _open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as lock:
        if not _taken(lock, file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            waits()
            _taken(lock, file, fcntl.LOCK_EX)
        yield


def _taken(lock: IO[Any], file: Path, how: int) -> bool:
    """Whether the lock was had; not where another has it and `how` says not to wait."""
    try:
        fcntl.flock(lock, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _without_locks(file, error) from None
    return True


def is_held(file: Path) -> bool:
    """Whether a process has the lock. Where a file system has no locks, nobody has."""
    if not os.path.lexists(file):
        return False
    with _open(file, os.O_RDONLY) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def _without_locks(file: Path, error: OSError) -> InputError:
    """Lustre has locks where it was mounted with them, NFS where its server runs them."""
    return InputError(
        f"{file} cannot be locked ({error.strerror}): its file system has no locks, which keep two processes from writing the "
        "same files. Choose a folder on another one, or have it mounted with them (Lustre: -o flock)."
    )


def _open(file: Path, how: int) -> IO[Any]:
    """Open, but never wait: a pipe in the file's place has nobody at its other end."""
    try:
        if how & os.O_CREAT:
            file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, how | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise InputError(f"{file} is no file, and a lock is one. Remove it.")
        return os.fdopen(handle, "a" if how & os.O_CREAT else "r")
    except OSError as error:
        raise InputError(f"{file} cannot be opened as a lock ({error.strerror}). Remove it, or choose another folder.") from None
