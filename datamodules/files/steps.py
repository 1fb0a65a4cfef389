"""How what a data set needs comes to be there, one file or folder at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.download import Remote, fetch, is_lacking, unpack


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


def carry_out(step: Step) -> None:
    """Fetch what is not there, where that can be; an archive is removed when it is unpacked.

    Raises:
        InputError: It cannot be fetched or unpacked, or brings something else.
    """
    if step.remote is None or not step.lacks:
        return
    if step.archive is None:
        fetch(step.remote, step.path.parent)
        return
    archive = fetch(step.remote, step.archive)
    unpack(archive, step.unpack or step.archive)
    if step.lacks:
        raise InputError(f"{archive} did not bring {step.path}; unpack it by hand and look.")
    archive.unlink()  # what it held is unpacked
