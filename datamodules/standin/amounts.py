"""How much of a data set a stand-in has."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from datamodules.errors import InputError
from datamodules.files.stand_in import begin

SEED = 20_26


def require_share(share: float) -> None:
    """See that it is a share.

    Raises:
        InputError: It is none.
    """
    if not 0 < share <= 1:
        raise InputError(f"share is {share}; give the part of a data set that its stand-in has, above 0 and up to 1.")


def begin_share(root: Path, of: str, share: float) -> None:
    """Mark the folder of a data set's stand-in before anything is written to it.

    Args:
        root: The folder.
        of: The data set.
        share: How much of it.

    Raises:
        InputError: It is no share, or `root` holds something else.
    """
    require_share(share)
    begin(root, {"of": of, "share": share})


def part_of(count: int, share: float, least: int = 2) -> int:
    """So many of `count`."""
    return min(count, max(least, round(count * share)))


def generator(*names: object) -> np.random.Generator:
    """Random numbers of one part of a stand-in: what is written in one go or in several is the same."""
    return np.random.default_rng([SEED, *(zlib.crc32(str(name).encode()) for name in names)])
