"""An index of a folder of images: the unit vector of each, on disk, and searched there.

    INDEX/index.json           which model's it is, of which folder, and which generation counts
    INDEX/generation-000003/   names.npy, name_ends.npy, digests.npy, vectors.npy (float32 [N, D]); ann.usearch where wanted
    INDEX/parts/               what an update that goes on, or was stopped, has encoded; gone when it ends

An image is known by the digest of its content: what was renamed, moved or copied is not encoded again, and what was replaced is.
Rows are in the order of the files' names, so an index that grew in many updates has the bytes of one that was built at once.

A generation is written whole before index.json names it, and is never changed: a search meanwhile reads the one before, and an
update that is stopped anywhere loses no part that it has written. What is searched is mapped into memory, not read.

Legend: N images, D width, Q queries, K results of each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.files.json_file import read_json
from datamodules.formats.typed import read_typed
from experiments.serving import neighbors

if TYPE_CHECKING:
    from lightning_modules.retrieval import RetrievalModule  # a search of vectors needs no torch

Floats = NDArray[np.float32]

SCHEMA, LABEL = "crosslight.index/2", "index.json"
_ROUGH = 1e-5  # more than a product of unit vectors in fp32 is wrong by
_ALIKE = 1e-4  # 1 - cosine of a probe, on devices and in precisions that differ
_BLOCK = 10_000  # vectors that are copied at once


@dataclass(frozen=True)
class Label:
    """What index.json says.

    Args:
        model: `model_key` of the model that made the vectors.
        probe: Its `probe`.
        run: The folder that it was loaded from, absolute.
        backbone: Where else its weights lie, absolute (`--backbone`).
        tokenizer: In place of its own (`--tokenizer`).
        images: The folder of images, absolute.
        generation: Which one counts; 0 = the first is not finished.
        count: Its images.
        ann: Whether approximate search is kept with it.
        no_result: Why nothing of it is a result, of a model of stand-ins or of a rehearsal.
        schema: Of this file.
    """

    model: str
    probe: tuple[float, ...]
    run: str
    images: str
    backbone: str | None = None
    tokenizer: str | None = None
    generation: int = 0
    count: int = 0
    ann: bool = False
    no_result: str | None = None
    schema: str = SCHEMA


def read_label(index: Path) -> Label:
    """What an index says of itself.

    Raises:
        InputError: There is none, or it is of another version.
    """
    file = index / LABEL
    if not file.is_file():
        raise InputError(f"{index} is no index: it has no {LABEL}. `crosslight index DIR --run RUN --index {index}` makes one.")
    content = read_json(file, "what crosslight index wrote")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{file} is not of this version ({SCHEMA}). Delete {index} and index the folder again.")
    label: Label = read_typed(Label, content, str(file))
    return label


def generation_folder(index: Path, generation: int) -> Path:
    """Where a generation lies."""
    return index / f"generation-{generation:06d}"


def require_key(index: Path, label: Label, key: str, probe: tuple[float, ...], run: str | Path) -> None:
    """See that a model, by its `model_key` and `probe`, is the one that made an index.

    Raises:
        InputError: It is another.
    """
    if key != label.model or len(probe) != len(label.probe) or 1 - np.dot(probe, label.probe) > _ALIKE:
        raise InputError(
            f"{index} was made with another model ({label.run}) than {run}: their vectors cannot be compared. Give that one as "
            f"--run, give another --index, or remove the folder {index} to begin anew."
        )


class ImageIndex:
    """A finished index, mapped into memory.

    Args:
        folder: What `crosslight index` wrote.

    Raises:
        InputError: It is no index, not finished, or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        while True:
            self.label = read_label(self.folder)
            if not self.label.generation:
                raise InputError(f"{self.folder} is not finished: run `crosslight index --index {self.folder}`, which goes on.")
            self.generation = generation_folder(self.folder, self.label.generation)
            damage = self._open()
            if read_label(self.folder).generation == self.label.generation:
                break  # else an update has removed this one meanwhile
        if damage is not None:
            raise InputError(f"{self.generation} is damaged ({damage}). Delete {self.folder} and index again.") from damage
        self._neighbors: neighbors.Neighbors | None = None

    def _open(self) -> Exception | None:
        """Map the files of the generation, all of them: an update may remove them then. Gives what is wrong with them."""
        try:
            self.vectors_ND: Floats = np.load(self.generation / "vectors.npy", "r")
            self.digests_N = np.load(self.generation / "digests.npy", "r")
            self._ends_N = np.load(self.generation / "name_ends.npy", "r")
            self.names = np.load(self.generation / "names.npy", "r")
            if not len(self.vectors_ND) == len(self.digests_N) == len(self._ends_N) == self.label.count:
                raise ValueError(f"its files are not all of {self.label.count:,} images")
        except (OSError, ValueError, EOFError) as error:
            return error
        self._ann: NDArray[np.uint8] | None = None
        if self.label.ann:
            with suppress(OSError, ValueError):  # without it one can search yet
                self._ann = np.memmap(self.generation / neighbors.FILE, np.uint8, "r")
        return None

    def __len__(self) -> int:
        return len(self.vectors_ND)

    @property
    def width(self) -> int:
        """D."""
        return int(self.vectors_ND.shape[1])

    def name(self, row: int) -> str:
        """The image's path below its folder."""
        start = int(self._ends_N[row - 1]) if row else 0
        return os.fsdecode(self.names[start : int(self._ends_N[row])].tobytes())

    def path(self, row: int) -> Path:
        """The image's file, as it lay when the folder was indexed."""
        return Path(self.label.images, self.name(row))

    def require_model(self, model: RetrievalModule, run: str | Path) -> None:
        """See that queries come from the model that made the index.

        Raises:
            InputError: They do not.
        """
        from experiments.serving.models import model_key, probe

        require_key(self.folder, self.label, model_key(model), probe(model), run)

    def search(self, queries_QD: Any, top: int = 10, ann: bool | None = None) -> tuple[NDArray[np.int64], Floats]:
        """The images with the highest cosine, best first; equal ones in the order of their names.

        Args:
            queries_QD: Unit vectors of the model that made the index, of images or texts.
            top: K; fewer where the index has fewer.
            ann: Whether candidates come from the approximate search (their scores are exact, and ordered by those); None = where
                the index has one, False = look at every image.

        Returns:
            Rows [Q, K], and cosines [Q, K].

        Raises:
            InputError: Approximate search is wanted and the index has none.
        """
        queries = np.ascontiguousarray(queries_QD, np.float32)
        top = min(top, len(self))
        if ann is None:
            ann = self.label.ann
        if not ann or top == 0:
            found = [best(self.vectors_ND, query_D, top) for query_D in queries]
        else:
            near = zip(queries, self._near(queries, top), strict=True)
            found = [best(self.vectors_ND, query_D, top, rows if len(rows) >= top else None) for query_D, rows in near]
        rows_QK = np.array([rows for rows, _ in found], np.int64).reshape(len(queries), top)
        return rows_QK, np.array([scores for _, scores in found], np.float32).reshape(len(queries), top)

    def _near(self, queries_QD: Floats, top: int) -> list[NDArray[np.int64]]:
        if self._neighbors is None:
            if not self.label.ann:
                raise InputError(
                    f"{self.folder} has no approximate search: `crosslight index --index {self.folder} --ann` adds it."
                )
            self._neighbors = neighbors.Neighbors(self.generation / neighbors.FILE, self._ann, self.digests_N)
        return self._neighbors.candidates(queries_QD, top)


def best(
    vectors_ND: Floats, query_D: Floats, top: int, rows_C: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], Floats]:
    """The rows with the `top` highest products, best first, and these; equal ones by their row.

    A product of matrices in fp32 differs in its last digits with the row that a vector stands in, so copies of an image would
    come in any order, and with other scores from all rows than from some. It only finds who may be among the best here; these
    are compared by sums in fp64.

    Args:
        vectors_ND: Unit vectors.
        query_D: Likewise.
        top: At most as many as there are rows.
        rows_C: Who is compared, in any order; None = all.
    """
    rough_C = (vectors_ND if rows_C is None else vectors_ND[rows_C]) @ query_D
    inside = np.arange(len(rough_C))
    if top < len(rough_C):
        least = np.partition(rough_C, -top)[-top] if top else np.inf
        inside = np.flatnonzero(rough_C >= least - _ROUGH)
    rows = inside if rows_C is None else rows_C[inside]
    scores = np.concatenate([np.zeros(0), *((vectors_ND[some].astype(np.float64) * query_D).sum(1) for some in _blocks(rows))])
    order = np.lexsort((rows, -scores))[:top]
    return rows[order], scores[order].astype(np.float32)


def _blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows, a few at a time: of a folder of copies all are among the best."""
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK]
