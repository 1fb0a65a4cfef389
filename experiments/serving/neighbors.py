"""Approximate search in an index, with usearch (HNSW): candidates, whose exact scores are then compared.

Vectors are kept under the first 8 bytes of the digest of what they are of: files of one content are one vector here, and all of
them are candidates.

Legend: N images, D width, Q queries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file
from lightning_modules.extraction.progress import progress_bar

FILE = "ann.usearch"
DTYPE = "i8"  # a quarter of float32: only which images are candidates depends on it
CANDIDATES = 2048  # a text is far from all images, so its neighbors are hard to find: docs/use_a_model.md has what more bring
_BLOCK = 20_000  # vectors that are added at once
_WORN = 0.2  # of the vectors removed, above which it is built anew: what is removed stays in the way


def require_library() -> Any:
    """usearch's `Index`.

    Raises:
        InputError: It is not installed.
    """
    try:
        from usearch.index import Index
    except ImportError:
        raise InputError("approximate search needs usearch: uv pip install 'crosslight[serve]', or leave out --ann.") from None
    return Index


class Neighbors:
    """A written one.

    Args:
        file: What `write` wrote, for errors.
        content: The file's bytes, mapped into memory; None where it is not there.
        digests_N: Of the index's images.

    Raises:
        InputError: It is damaged, or usearch is not installed.
    """

    def __init__(self, file: Path, content: NDArray[np.uint8] | None, digests_N: NDArray[np.bytes_]) -> None:
        index = require_library()
        self._content = content  # what usearch looks into must stay
        try:
            self._found: Any = None if content is None else index.restore(content, view=True)
        except Exception as error:  # of the library and of what is below it
            raise InputError(f"{file} cannot be read ({error}). Delete it and run `crosslight index --ann`.") from error
        if self._found is None:
            raise InputError(f"{file} cannot be read. Delete it and run `crosslight index --ann`.")
        keys_N = _keys(digests_N)
        self._order_N = np.argsort(keys_N, kind="stable")
        self._keys_N = keys_N[self._order_N]

    def candidates(self, queries_QD: NDArray[np.float32], top: int) -> list[NDArray[np.int64]]:
        """For each query rows of images among which the `top` best are likely to be; seldom fewer than those, where the graph
        does not lead to all."""
        wanted = min(max(16 * top, CANDIDATES), len(self._found))
        rows = []
        for query_D in queries_QD:
            keys = np.asarray(self._found.search(query_D, wanted).keys, np.uint64)
            first, last = (np.searchsorted(self._keys_N, keys, side) for side in ("left", "right"))
            rows.append(np.concatenate([self._order_N[a:b] for a, b in zip(first, last, strict=True)]))
        return rows


def write(
    file: Path, vectors_ND: NDArray[np.float32], digests_N: NDArray[np.bytes_], previous: Path, progress: bool = False
) -> None:
    """Make one of these vectors, from that of the generation before where there is one.

    Args:
        file: To write.
        vectors_ND: Unit vectors.
        digests_N: Of what they are of.
        previous: Of the generation before; need not be there.
        progress: Show a bar on stderr.
    """
    kind = require_library()
    keys, first = np.unique(_keys(digests_N), return_index=True)
    index = kind.restore(str(previous)) if previous.exists() else None
    if index is not None:
        there = np.array(index.keys, np.uint64)
        gone = np.setdiff1d(there, keys)
        if len(gone) > _WORN * len(there):
            index = None
        elif len(gone):
            index.remove(gone)
    if index is None:
        index, there = kind(ndim=vectors_ND.shape[1], metric="ip", dtype=DTYPE), np.zeros(0, np.uint64)
    new = np.flatnonzero(~np.isin(keys, there))
    with progress_bar(progress) as bar:
        task = bar.add_task("approximate search", total=len(new))
        for start in range(0, len(new), _BLOCK):
            chosen = new[start : start + _BLOCK]
            index.add(keys[chosen], np.ascontiguousarray(vectors_ND[first[chosen]]))
            bar.advance(task, len(chosen))
    with whole_file(file) as unfinished:
        index.save(str(unfinished))


def _keys(digests_N: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(digests_N).view(np.uint64).reshape(len(digests_N), 2)[:, 0].copy()
