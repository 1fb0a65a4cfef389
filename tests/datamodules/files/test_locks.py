"""Locks between processes. An open file of its own locks like another process."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.files.locks import is_held, locked, take_lock


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    file = tmp_path / "a" / "lock"
    assert not is_held(file)
    lock = take_lock(file)
    assert lock is not None
    assert is_held(file)
    assert take_lock(file) is None
    lock.close()
    assert not is_held(file)
    assert take_lock(file) is not None


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path / "b" / "lock"):
            order.append("second")

    with locked(tmp_path / "b" / "lock"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.05)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_who_waits_says_so_and_who_need_not_says_nothing(tmp_path: Path) -> None:
    file, said = tmp_path / "lock", threading.Event()

    def second() -> None:
        with locked(file, said.set):
            pass

    second()
    assert not said.is_set()
    with locked(file):
        waiting = threading.Thread(target=second)
        waiting.start()
        assert said.wait(60)
    waiting.join()


def test_a_file_system_without_locks_is_named_and_nobody_holds_one_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, how: int) -> None:  # as Lustre that was mounted without -o flock
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    file = tmp_path / "lock"
    file.touch()
    monkeypatch.setattr(fcntl, "flock", flock)
    assert not is_held(file)
    with pytest.raises(InputError, match=r"lock cannot be locked .*Function not implemented.*flock"):
        take_lock(file)
    with pytest.raises(InputError, match="lock cannot be locked"), locked(file):
        pass
