"""Recalls from ranks, of a whole split and over folds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.errors import InputError
from lightning_modules.metrics.ranks import Ranks, Ties, check_index, embedding_ranks, score_ranks

# of `recalls`, and which of them is better
BETTER: dict[str, Literal["max", "min"] | None] = {
    **{f"{direction}_r{k}": "max" for direction in ("i2t", "t2i") for k in (1, 5, 10)},
    "rsum": "max", "mean_recall": "max", "i2t_medr": "min", "t2i_medr": "min",
}  # fmt: skip


def recalls(ranks: Ranks, *, compat: bool = False) -> dict[str, Tensor]:
    """Recalls in percent and median ranks, as float64 scalars on the CPU.

    Keys: `i2t_r1 i2t_r5 i2t_r10 t2i_r1 t2i_r5 t2i_r10`; `rsum` their sum (the papers' Meta-Sum or RSum); `mean_recall`
    their mean (the official `average_score`); `i2t_medr t2i_medr` the median ranks as VSE++ rounds them (the lower whole
    rank for an even count).

    Args:
        ranks: From `embedding_ranks` or `score_ranks`.
        compat: Count text to image as UNITER and IAIS published it (`utils/itm_eval.py`): `(rank < k).sum()` there runs over
            both columns of `nonzero()`, the ranks and the caption rows, so each of the captions 0 .. k-1 that finds its image
            among the first ten counts once more. R@k is up to k captions too high, on 5,000 captions 0.02, 0.1 and 0.2 points.
    """
    values: dict[str, float] = {}
    for direction, rank_Q in (("i2t", ranks.i2t_Q), ("t2i", ranks.t2i_T)):
        for k in (1, 5, 10):
            hits = int((rank_Q <= k).sum())
            if compat and direction == "t2i":
                hits += int((rank_Q[:k] <= 10).sum())
            values[f"{direction}_r{k}"] = 100.0 * hits / len(rank_Q)
    values["rsum"] = sum(values.values())
    values["mean_recall"] = values["rsum"] / 6
    for direction, rank_Q in (("i2t", ranks.i2t_Q), ("t2i", ranks.t2i_T)):
        sorted_Q, count = rank_Q.sort().values, len(rank_Q)
        values[f"{direction}_medr"] = float((int(sorted_Q[(count - 1) // 2]) + int(sorted_Q[count // 2])) // 2)
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def certain_recalls(images: int, image_index_T: Tensor) -> str:
    """A remark on recalls that are 100 for any model, since nothing can be placed behind their K; "" where there are none.

    Args:
        images: Of the gallery.
        image_index_T: int64 [captions], the image row that each caption describes.
    """
    texts = len(image_index_T)
    own = torch.bincount(image_index_T)
    fewest = int(own[own > 0].min()) if texts else 0
    last = {"i2t": texts - fewest + 1, "t2i": images}  # the last place that any query's target can have
    certain = [f"{direction} R@{k}" for direction, worst in last.items() for k in (1, 5, 10) if worst <= k]
    if not certain:
        return ""
    return (
        f"of {images:,} images and {texts:,} captions any model has 100 in {', '.join(certain)}, so {100 * len(certain)} of rsum "
        "say nothing; evaluate on more images"
    )


def require_folds(folds: int, images: int) -> None:
    """Whether images divide into folds, which a test asks before it begins.

    Raises:
        InputError: They do not.
    """
    if folds < 1 or images == 0 or images % folds:
        raise InputError(
            f"folds is {folds}, and {images} images do not divide into as many of equal size: choose another number of folds, or "
            "null"
        )


def fold_notes(folds: int, images: int) -> dict[str, Any]:
    """What results.json says of recalls over folds (`folds_...`) of so many images in all: how they were made, and the headings
    that a table gives them, which name the size of the gallery ("1000 i2t R@1")."""
    size = images // folds
    headings = {f"{side}_r{k}": f"{size} {side} R@{k}" for side in ("i2t", "t2i") for k in (1, 5, 10)} | {"rsum": f"{size} rsum"}
    return {
        "folds": f"mean over {folds} galleries of {size} images, consecutive in the split, with their captions",
        "columns": {f"folds_{name}": heading for name, heading in headings.items()},
    }


def fold_recalls(
    images_ID: Tensor,
    texts_TD: Tensor,
    image_index_T: Tensor,
    *,
    folds: int = 5,
    ties: Ties = "pessimistic",
) -> dict[str, Tensor]:
    """The 1K protocol of COCO: `recalls` of each of `folds` galleries of consecutive images with their captions, averaged.

    With 5,000 images and five folds a query searches 1,000 images (or their captions): numbers of this protocol are far
    higher than, and never comparable with, those of the full 5K gallery. Order of images as in the split (VSE++
    `evaluation.py`, fold5).

    Raises:
        InputError: The images do not divide into `folds`, or what `embedding_ranks` refuses.
    """
    check_index(image_index_T, len(images_ID), len(texts_TD))

    def ranks(fold: slice, own_T: Tensor, index: Tensor) -> Ranks:
        return embedding_ranks(images_ID[fold], texts_TD[own_T], index, ties=ties)

    return _mean_recalls(ranks, len(images_ID), image_index_T, folds)


def score_fold_recalls(
    scores_IT: Tensor,
    image_index_T: Tensor,
    *,
    folds: int = 5,
    ties: Ties = "pessimistic",
    compat: bool = False,
) -> dict[str, Tensor]:
    """The protocol of `fold_recalls` from the scores [images, captions] of all pairs, as a pair scorer gives them.

    Args:
        scores_IT: As for `score_ranks`.
        image_index_T: int64, the image row that each caption describes.
        folds: Galleries of consecutive images.
        ties: How equal scores are placed (module docstring).
        compat: As in `recalls`, within every fold.

    Raises:
        InputError: The images do not divide into `folds`, or what `score_ranks` refuses.
    """
    if scores_IT.ndim != 2:
        raise InputError(f"scores must be a matrix [images, captions], not of shape {tuple(scores_IT.shape)}")
    check_index(image_index_T, *scores_IT.shape)

    def ranks(fold: slice, own_T: Tensor, index: Tensor) -> Ranks:
        return score_ranks(scores_IT[fold][:, own_T], index, ties=ties)

    return _mean_recalls(ranks, len(scores_IT), image_index_T, folds, compat)


def _mean_recalls(
    ranks: Callable[[slice, Tensor, Tensor], Ranks], images: int, image_index_T: Tensor, folds: int, compat: bool = False
) -> dict[str, Tensor]:
    """`recalls` averaged over folds; `ranks(images of the fold, its captions, their image rows in the fold)`."""
    require_folds(folds, images)
    size = images // folds
    parts = []
    for start in range(0, images, size):
        own_T = ((image_index_T >= start) & (image_index_T < start + size)).nonzero().squeeze(1)
        parts.append(recalls(ranks(slice(start, start + size), own_T, image_index_T[own_T] - start), compat=compat))
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
