"""Official checkpoints by name or by path."""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import InputError


def official_file(source: str | Path) -> Path:
    """The local file behind a path or an official name."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"weights {source}: there is no such file")
    return path
