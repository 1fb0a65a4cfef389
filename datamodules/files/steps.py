"""How what a data set needs comes to be there, one file or folder at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.download import Remote, fetch, is_lacking, unpack
from datamodules.files.locks import locked

log = logging.getLogger("crosslight")


@dataclass(frozen=True, slots=True)
class Step:
    """One file or folder.

    Args:
        path: What must be there.
        remote: What brings it; None: nothing that can be fetched alone.
        archive: Where an archive is put until it is unpacked; None: `remote` is the file itself.
        unpack: Where it is unpacked.
        about: Its size, where the exact one is not known.
        by_hand: What to do where nothing brings it, or what the data set does itself.
    """

    path: Path
    remote: Remote | None = None
    archive: Path | None = None
    unpack: Path | None = None
    about: str = ""
    by_hand: str = "put it there yourself, or correct the option"

    @property
    def lacks(self) -> bool:
        return is_lacking(self.path)


@contextmanager
def in_turn(lock: Path, name: str) -> Iterator[None]:
    """One process at a time fetches: on two machines of one run, or started twice, two would write one `.part` and empty each
    other's folder of what is unpacked. Where nothing can be locked it goes on alone: a folder that cannot be written says so.

    Args:
        lock: The file, which goes with the work.
        name: Of what is fetched.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, partial(log.info, "another process is fetching %s; waiting for it", name)))
        except InputError as error:
            log.info("%s is fetched without a lock: %s", name, error)
        yield
        with suppress(OSError):
            lock.unlink(missing_ok=True)  # who waits has it open


def carry_out(step: Step) -> None:
    """Fetch what is not there, where that can be; an archive is removed when it is unpacked.

    Raises:
        InputError: It cannot be fetched or unpacked, or brings something else.
    """
    if step.remote is None or not step.lacks:
        return
    with in_turn((step.archive or step.path.parent) / f".{step.remote.name}.lock", step.remote.name):
        if step.lacks:  # and no other process has fetched it while this one waited
            _fetch(step, step.remote)


def _fetch(step: Step, remote: Remote) -> None:
    if step.archive is None:
        fetch(remote, step.path.parent)
        return
    archive = fetch(remote, step.archive)
    unpack(archive, step.unpack or step.archive)
    if step.lacks:
        raise InputError(f"{archive} did not bring {step.path}; unpack it by hand and look.")
    archive.unlink()  # what it held is unpacked
