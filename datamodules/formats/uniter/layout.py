"""The layouts of UNITER's image databases: one LMDB sub-folder each, and the options that name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from datamodules.errors import InputError


@dataclass(frozen=True, slots=True)
class Layout:
    """Which of the released sub-folders an image database is read from or written to, and how many regions an image keeps.

    Args:
        kind: "threshold": the regions above a confidence, `feat_th{conf_th}_max{max_bb}_min{min_bb}` (released: 0.2, 100, 10);
            "fixed": the first `num_bb` of every image, `feat_numbb{num_bb}` (the released code's conf_th = -1);
            "all": every region, `all`, in the order in which they were written (without its file of counts, as UNITER's own
            code makes it, the threshold is applied when reading).
        conf_th: threshold on the detector's confidence; counted are the regions above it.
        max_bb: keep at most so many.
        min_bb: keep at least so many, whatever their confidence.
        num_bb: how many "fixed" keeps.
        compressed: values are npz and not msgpack; the folder's name ends in `_compressed`.
    """

    kind: Literal["threshold", "fixed", "all"] = "threshold"
    conf_th: float = 0.2
    max_bb: int = 100
    min_bb: int = 10
    num_bb: int = 36
    compressed: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.min_bb <= self.max_bb or self.num_bb < 1 or not 0 <= self.conf_th <= 1:
            raise InputError(
                f"A layout of region features needs 1 <= min_bb <= max_bb, num_bb >= 1 and conf_th in 0..1, and it got {self}; "
                'the released conf_th = -1 is kind "fixed" here.'
            )

    @property
    def folder(self) -> str:
        names = {
            "threshold": f"feat_{self._threshold}",
            "fixed": f"feat_numbb{self.num_bb}",
            "all": "all",
        }
        return names[self.kind] + ("_compressed" if self.compressed else "")

    @property
    def counts_file(self) -> str | None:
        """The JSON of {image name: number of regions}; "fixed" has none."""
        return {"threshold": f"nbb_{self._threshold}.json", "fixed": None, "all": "nbb.json"}[self.kind]

    @property
    def _threshold(self) -> str:
        return f"th{float(self.conf_th)}_max{self.max_bb}_min{self.min_bb}"

    def count(self, confidences_R: npt.NDArray[Any]) -> int:
        """How many of an image's regions, the most confident first, this layout keeps (convert_imgdir.py `_compute_nbb`)."""
        if self.kind == "all":
            return len(confidences_R)
        if self.kind == "fixed":
            return min(self.num_bb, len(confidences_R))
        above = int((confidences_R > self.conf_th).sum())
        return min(self.max_bb, max(self.min_bb, above), len(confidences_R))


def threshold_of(layout: Layout) -> Layout:
    return Layout("threshold", layout.conf_th, layout.max_bb, layout.min_bb)


def not_a_folder(path: Path) -> str:
    """What is in the place of an image database's folder, for an error message."""
    if not path.is_file():
        return f"{path} is not a folder; expected an image database of UNITER there."
    with path.open("rb") as file:
        beginning = file.read(4096)
    if path.suffix == ".tsv" or beginning.split(b"\n")[0].count(b"\t") >= 2:
        return (
            f"{path} is a TSV file of region features, as LXMERT, Oscar and bottom-up attention have them; expected the folder "
            'of an image database. docs/regions.md ("From a TSV file") writes one of it.'
        )
    return f"{path} is a file; expected the folder of an image database of UNITER, which has feat_*/data.mdb or all/data.mdb."


def layouts_there(path: Path) -> str:
    there = sorted(data.parent.name for data in path.glob("*/data.mdb"))
    if not there:
        return "nor any other: an image database has feat_th0.2_max100_min10/data.mdb or its like."
    return f"it has {', '.join(there)}: set kind, conf_th, max_bb, min_bb and compressed to one of them."
