"""The per-query file of an evaluation: ranks from 1 of every query, or scores of every image. Arrays in an .npz."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.files.text import open_bytes

Array = npt.NDArray[Any]
_REMEDY = "Restore it, or delete the run's folder to run it again."


def read_arrays(file: Path, expected: str, remedy: str = _REMEDY) -> dict[str, Array]:
    """All arrays of an .npz, nothing of which is unpickled; `expected` and `remedy` (a sentence) are for errors.

    Raises:
        InputError: It is missing, no file, or damaged.
    """
    with open_bytes(file, expected, archives=True) as opened:
        try:
            with np.load(opened, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except Exception as error:  # of numpy, zip and zlib: a damaged file can raise anything
            why = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{file} is no sound .npz file ({why}); expected {expected}. {remedy}") from error


def read_per_query(file: Path, metrics: Mapping[str, float]) -> dict[str, Array]:
    """The arrays of one dimension of a per-query file.

    Args:
        file: The file.
        metrics: Of the evaluation: recalls that its ranks do not give were changed, or the file was.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    arrays = read_arrays(file, "ranks or scores of an evaluation")
    found = {name: array for name, array in arrays.items() if array.ndim == 1}
    for name, array in found.items():
        if array.dtype.kind not in "iuf" or not len(array):
            raise InputError(f"{file}: {name!r} holds no numbers. {_REMEDY}")
    images = max((len(array) for array in found.values()), default=0)
    for side in ("i2t", "t2i"):
        if (rank_Q := found.get(f"{side}_rank")) is None:
            continue
        image_Q = found.get(f"{side}_image_index", rank_Q[:0])
        whole = rank_Q.dtype.kind in "iu" and image_Q.dtype.kind in "iu" and len(rank_Q) == len(image_Q)
        if not whole or rank_Q.min() < 1 or image_Q.min() < 0 or image_Q.max() >= images:
            raise InputError(f"{file}: {side}_rank and {side}_image_index are no ranks and images of queries. {_REMEDY}")
        for k in (1, 5, 10):
            hits = 100 * float((rank_Q <= k).mean())
            more = 100 * k / len(rank_Q) if side == "t2i" else 0.0  # UNITER's count has up to k captions more
            said = metrics.get(f"{side}_r{k}", hits)
            if not hits - 1e-3 <= said <= hits + more + 1e-3:
                raise InputError(f"{file}: {side}_r{k} is {hits:.6g} by its ranks, and {said:.6g} in results.json. {_REMEDY}")
    return found
