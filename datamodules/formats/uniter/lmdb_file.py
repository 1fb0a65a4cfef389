"""LMDB environments: opened once a process, safe after a fork, with errors that name the file."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from datamodules.errors import InputError
from datamodules.files.locks import ThreadLock

KEYS = b"__keys__"

_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
_SLACK = 2**20  # bytes that a tree needs besides its values

_open: WeakValueDictionary[tuple[int, int], Environment] = WeakValueDictionary()
_lock = ThreadLock()


class Environment:
    """A read-only LMDB environment, shared by all readers of a process and closed with the last of them.

    No lock file is written (released data often lies on read-only disks) and the kernel does not read ahead (access is random).
    """

    def __init__(self, folder: Path, environment: lmdb.Environment) -> None:
        self.folder = folder
        self._environment = environment
        self._process = os.getpid()

    def _current(self) -> lmdb.Environment:
        if self._process != os.getpid():
            with _lock:
                if self._process != os.getpid():
                    # LMDB must not be used across a fork. Closing first takes the inherited copy out of this process's list of
                    # open files, without which lmdb refuses to open it; the parent's own is untouched.
                    self._environment.close()
                    self._environment = _open_environment(self.folder)
                    self._process = os.getpid()
        return self._environment

    def get(self, key: bytes) -> bytes | None:
        try:
            with self._current().begin() as transaction:
                return transaction.get(key)
        except lmdb.Error as error:
            raise _unreadable(self.folder, error) from error

    def all_keys(self) -> list[bytes]:
        try:
            with self._current().begin() as transaction, transaction.cursor() as cursor:
                return [bytes(key) for key in cursor.iternext(keys=True, values=False)]
        except lmdb.Error as error:
            raise _unreadable(self.folder, error) from error


def _unreadable(folder: Path, error: lmdb.Error) -> InputError:
    return InputError(
        f"{folder / 'data.mdb'} cannot be read ({error}); it is damaged, or it changed while it was open: "
        "fetch or build it again, or open it anew."
    )


def _open_environment(folder: Path) -> lmdb.Environment:
    data = folder / "data.mdb"
    try:
        environment = lmdb.open(str(folder), readonly=True, create=False, lock=False, readahead=False)
    except lmdb.Error as error:
        raise InputError(
            f"{data} ({_size(data):,} bytes) cannot be opened as an LMDB database ({error}); fetch or build it again. "
            "A database made on a machine of another byte order or word size has to be built again as well."
        ) from error
    # LMDB maps the file and touches pages past its end without looking: the kernel would kill the process (SIGBUS).
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if _size(data) < needed:
        environment.close()
        raise InputError(
            f"{data} has {_size(data):,} bytes where its header speaks of {needed:,}: copied incompletely? Fetch it again."
        )
    return environment


def _size(path: Path) -> int:
    return path.stat().st_size


def environment_of(folder: Path, expected: str) -> Environment:
    """The environment of a folder, opened at most once a process: lmdb refuses a second time.

    Raises:
        InputError: there is no `data.mdb`, or it is not a complete LMDB file; `expected` says what should be there.
    """
    try:
        status = (folder / "data.mdb").stat()
    except OSError as error:
        raise InputError(f"{folder / 'data.mdb'} cannot be opened ({error.strerror}); expected {expected}.") from None
    # By file and not by name: a link is the same database, a database that was built anew under its old name is another.
    key = (status.st_dev, status.st_ino)
    with _lock:
        found = _open.get(key)
        if found is None:
            found = _open[key] = Environment(folder, _open_environment(folder))
        return found


def open_for_writing(folder: Path) -> lmdb.Environment:
    """An environment to write to, made where there is none.

    Raises:
        InputError: It is open in this process, or is none.
        OSError: The disk is full, or refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # LMDB takes the size of what is there where that is more; `put_value` makes room as needed. Its files are no programs.
        return lmdb.open(str(folder), map_size=16 * 1024**2, mode=0o666)
    except lmdb.Error as error:
        if (of_disk := _of_disk(folder, error, 0)) is not None:
            raise of_disk from error
        raise InputError(
            f"{folder} cannot be written ({error}); close its readers in this process, "
            "and remove the folder if it is not a database."
        ) from error


def put_value(environment: lmdb.Environment, values: Mapping[bytes, bytes | None]) -> None:
    """Writes values (None removes the key) in one transaction, with as much room as they need.

    Raises:
        OSError: The disk is full, or refuses; what was written before is there.
    """
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in values.items():
                    if value is None:
                        transaction.delete(key)
                    else:
                        transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 2)
        except lmdb.Error as error:
            if (
                of_disk := _of_disk(Path(environment.path()), error, sum(len(value or b"") for value in values.values()))
            ) is None:
                raise
            raise of_disk from error


def _of_disk(folder: Path, error: lmdb.Error, size: int) -> OSError | None:
    """What LMDB says of the disk, as Python does; None where it speaks of something else.

    Args:
        folder: Of the environment.
        error: LMDB's. A write that found room for a part of itself is an input/output error to it.
        size: Bytes that were to be written.
    """
    number = next((number for number in _OF_DISK if os.strerror(number) in str(error)), None)
    if number == errno.EIO and shutil.disk_usage(folder).free < size + _SLACK:
        number = errno.ENOSPC
    return None if number is None else OSError(number, os.strerror(number), str(folder / "data.mdb"))
