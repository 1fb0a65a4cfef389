"""Vectors of images or texts as one file: Parquet, or npz under the names that `crosslight predict` uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file
from datamodules.formats.problems import is_sound
from datamodules.loading.image_files import read_image_files
from experiments.serving.index import Floats
from lightning_modules.extraction.progress import progress_bar
from lightning_modules.retrieval import RetrievalModule

ENDINGS = (".parquet", ".npz")


def embed_images(
    model: RetrievalModule, paths: Sequence[Path], batch_size: int = 32, workers: int = 0, progress: bool = False
) -> tuple[list[int], Floats, list[str]]:
    """Unit vectors [M, D] of the image files that can be read, the rows of these, and what is wrong with the others.

    Args:
        model: What encodes, on its device.
        paths: The files.
        batch_size: Images at once.
        workers: Processes that decode.
        progress: Show a bar on stderr.
    """
    rows: list[int] = []
    vectors: list[Any] = []
    broken: list[str] = []
    with progress_bar(progress) as bar:
        task = bar.add_task("encoding images", total=len(paths))
        for read in read_image_files(paths, model.image_input, batch_size, workers):
            broken += read.broken.values()
            if read.images is not None:
                rows += read.images.index_B.tolist()
                vectors.append(model.encode_batch(read.images))
            bar.advance(task, len(read.broken) + len(read.images or ()))
    return rows, torch.cat(vectors).numpy() if vectors else np.zeros((0, 0), np.float32), broken


_MOST_NAMES = 2**28  # bytes


def write_vectors(
    out: Path, kind: Literal["image", "text"], names: Sequence[str], vectors_ND: Floats, no_result: str | None = None
) -> None:
    """Write vectors with what they are of, whole or not at all.

    Args:
        out: .parquet has columns `image` or `text`, and `vector` (a list of D float32); .npz arrays `image_ids` and `images`, or
            `text_ids` and `texts`.
        kind: What they are of.
        names: Files or texts.
        vectors_ND: In their order.
        no_result: Of the model, where it says so: goes along as metadata of that name, or as an array.

    Raises:
        InputError: pyarrow is not installed, a name is no Unicode, or the file cannot be written.
    """
    try:
        with whole_file(out) as part:
            if out.suffix == ".npz":
                arrays: dict[str, Any] = {f"{kind}_ids": np.array(names), f"{kind}s": vectors_ND}
                arrays |= {} if no_result is None else {"no_result": np.array(no_result)}
                np.savez(part, **arrays)
            else:
                _write_parquet(part, kind, names, vectors_ND, {} if no_result is None else {"no_result": no_result})
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror or error}).") from error


def require_parquet(out: Path) -> None:
    """See that a Parquet file can be written, before anything takes time.

    Raises:
        InputError: pyarrow is not installed.
    """
    if out.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise InputError(
                f"{out} needs pyarrow: uv pip install 'crosslight[serve]', or give a name that ends in .npz."
            ) from None


def require_even(out: Path, names: Sequence[str]) -> None:
    """See that the names fit into an .npz file, where each has the room of the longest, before anything takes time.

    Raises:
        InputError: They would take a quarter of a gigabyte.
    """
    longest = max(map(len, names), default=0)
    if out.suffix == ".npz" and (size := 4 * longest * len(names)) > _MOST_NAMES:
        raise InputError(
            f"{out}: an .npz file gives each of {len(names):,} names the room of the longest, which has {longest:,} characters: "
            f"{size / 2**30:.1f} GB. Give a name that ends in .parquet, or shorten it."
        )


def _write_parquet(part: Path, kind: str, names: Sequence[str], vectors_ND: Floats, metadata: Mapping[str, str]) -> None:
    import pyarrow
    from pyarrow import parquet

    if broken := next((name for name in names if not is_sound(name)), None):
        raise InputError(f"{broken!r} is no sound Unicode, which Parquet cannot hold; rename it, or write an .npz file.")
    flat = pyarrow.array(np.ascontiguousarray(vectors_ND).ravel())
    vectors = pyarrow.FixedSizeListArray.from_arrays(flat, max(vectors_ND.shape[1], 1))
    columns = {kind: pyarrow.array(names, pyarrow.string()), "vector": vectors}
    parquet.write_table(pyarrow.table(columns, metadata=dict(metadata) or None), part)
