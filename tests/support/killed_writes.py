"""Kills a process before and after each change that it makes to the disk."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 9


def kill_at_writes(act: Callable[[], object], every: int = 1, most: int = 2000) -> int:
    """Runs `act` in one child after another, on what the one before has left. The first is killed at once, each further one
    `every` changes later: before a file is made or takes its name, and after. Until one gets to its end.

    Returns how many were killed.
    """
    for kills, moment in enumerate(range(0, most, every)):
        child = os.fork()
        if child == 0:
            try:
                _kill_at(moment)
                act()
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return kills
        assert status == KILLED, f"moment {moment}: exit status {status}"
    raise AssertionError(f"no end after {most} changes")


def _kill_at(moment: int) -> None:
    passed = -1

    def count() -> None:
        nonlocal passed
        passed += 1
        if passed == moment:
            os._exit(KILLED)

    def counted(call: Callable[..., Any], changes: Callable[..., bool]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if not changes(*arguments, **options):
                return call(*arguments, **options)
            count()
            made = call(*arguments, **options)
            count()
            return made

        return wrapped

    for name in ("replace", "rename", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name), lambda *_, **__: True))
    os.open = counted(os.open, lambda path, flags, *_, **__: bool(flags & os.O_CREAT))
    writes = lambda file, mode="r", *_, **__: isinstance(file, (str, Path)) and set(mode) & set("wax")  # noqa: E731
    builtins.open = io.open = counted(io.open, writes)  # type: ignore[assignment]


def leftovers(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if ".unfinished-" in file.name]


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
