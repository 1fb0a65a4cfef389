"""Where else a data set's captions and photographs are to be had, by name: other layouts of the same content.

Sizes are those that the Hugging Face Hub shows; checksums are those of a published file, named beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.download import Remote, fetch
from datamodules.files.steps import Step, carry_out
from datamodules.prepare.data_sets import open_source
from datamodules.prepare.karpathy_split import write_karpathy

_HUB = "https://huggingface.co/datasets"
_YEREVANN = f"{_HUB}/yerevann/coco-karpathy/resolve/main/data"
_NLPHUJI = f"{_HUB}/nlphuji/flickr30k/resolve/main"
_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/datasets"


@dataclass(frozen=True)
class Alternative:
    """Files in another layout that bring Karpathy's split, and photographs where it has them.

    Args:
        about: What it is, and what it lacks.
        files: What is converted.
        sizes: Of `files`, for a person, where the exact ones are not known.
        images: An archive of the photographs, with the data set's own folder in it.
        images_size: Likewise.
    """

    about: str
    files: tuple[Remote, ...]
    sizes: str
    images: Remote | None = None
    images_size: str = ""


# The sums are of LAVIS's own configuration, lavis/configs/datasets/coco/defaults_cap.yaml in salesforce/LAVIS.
ALTERNATIVES: dict[str, dict[str, Alternative]] = {
    "coco": {
        "yerevann": Alternative(
            "Karpathy's split from the Hugging Face Hub, complete (Parquet)",
            tuple(
                Remote(f"{_YEREVANN}/{name}-00000-of-00001.parquet") for name in ("train", "restval", "validation", "test")
            ),
            "25.5 MB",
        ),
        "lavis": Alternative(
            "Karpathy's split of BLIP and LAVIS, without ids of captions and without restval (it is in train)",
            (
                Remote(f"{_LAVIS}/coco_karpathy_train.json", md5="aa31ac474cf6250ebb81d18348a07ed8"),
                Remote(f"{_LAVIS}/coco_karpathy_val.json", md5="b273847456ef5580e33713b1f7de52a0"),
                Remote(f"{_LAVIS}/coco_karpathy_test.json", md5="3ff34b0ef2db02d01c37399f6a2a6cd1"),
            ),
            "size not published",
        ),
    },
    "flickr30k": {
        "nlphuji": Alternative(
            "Karpathy's split and the photographs from the Hugging Face Hub; the photographs' terms are as with the form",
            (Remote(f"{_NLPHUJI}/flickr_annotations_30k.csv"),),
            "12.9 MB",
            Remote(f"{_NLPHUJI}/flickr30k-images.zip"),
            "4.39 GB",
        ),
        "lavis": Alternative(
            "Karpathy's split of BLIP and LAVIS, without ids of captions",
            tuple(Remote(f"{_LAVIS}/flickr30k_{split}.json") for split in ("train", "val", "test")),
            "size not published",
        ),
    },
}  # fmt: skip


def alternative(kind: str, name: str) -> Alternative:
    """By its name.

    Raises:
        InputError: There is none; lists those that the data set has.
    """
    known = ALTERNATIVES.get(kind, {})
    if name not in known:
        has = f"{kind} is also to be had from {' and '.join(known)}" if known else f"{kind} has no other place"
        raise InputError(f"--from {name}: {has}.")
    return known[name]


def take_alternative(kind: str, name: str, root: Path) -> dict[str, int]:
    """Fetch an alternative's files into ROOT/from_NAME, convert them, and fetch its photographs.

    Returns:
        Images of each split; none where Karpathy's file is there already.

    Raises:
        InputError: See `alternative`; something cannot be fetched, or is not of its layout.
    """
    found = alternative(kind, name)
    source = open_source(kind, root)
    counts: dict[str, int] = {}
    if not source.karpathy_file().exists():
        files = [fetch(remote, root / f"from_{name}") for remote in found.files]
        counts = write_karpathy(kind, root, files)
    if found.images is not None:
        carry_out(Step(source.image_dir, found.images, root, root))
    return counts
