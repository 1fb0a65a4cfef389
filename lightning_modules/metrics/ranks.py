"""Ranks of the right answers: the one place for embeddings and for pair scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from datamodules.errors import InputError

Ties = Literal["pessimistic", "index"]

# Rows of the score matrix that are made and counted at a time. 256 x 25,000 float32 scores are 26 MB: the matmul is
# within 25 % of its best speed, and counting reads the block while it is still (mostly) cached, several times faster than
# over the full matrix.
BLOCK_ROWS = 256

# Up to this size the score matrix is kept between the two counting passes (5,000 x 25,000 float32 = 0.5 GB); larger ones are
# computed twice, block by block, in memory that does not grow with the number of images.
KEEP_BYTES = 2**30


@dataclass(frozen=True)
class Ranks:
    """Ranks of every query of a split, 1 = first, int64, on the device of the scores.

    `i2t_Q` belongs to the images `i2t_image_Q` (rows in the split, ascending): images without captions are left out.
    `t2i_T` belongs to the captions in their order.
    """

    i2t_Q: Tensor
    i2t_image_Q: Tensor
    t2i_T: Tensor


def embedding_ranks(
    images_ID: Tensor,
    texts_TD: Tensor,
    image_index_T: Tensor,
    *,
    ties: Ties = "pessimistic",
    block_rows: int = BLOCK_ROWS,
    keep_bytes: int = KEEP_BYTES,
) -> Ranks:
    """Ranks both ways from one embedding an image and one a caption; the score of a pair is their dot product.

    The dot products are float32 (float64 for float64 input), whatever autocast or `float32_matmul_precision` say around
    the call, so that recalls do not depend on the trainer's precision. The matrix is computed once when it fits into
    `keep_bytes`.

    Args:
        images_ID: Image embeddings, L2-normalized for cosine scores. Row = image row of the split.
        texts_TD: Caption embeddings, likewise.
        image_index_T: int64, the image row that each caption describes.
        ties: How equal scores are placed (module docstring).
        block_rows: Images scored at a time.
        keep_bytes: Largest score matrix to keep in memory.

    Raises:
        InputError: Empty or mismatched input, an index out of range, or embeddings that are not finite.
    """
    if images_ID.ndim != 2 or texts_TD.ndim != 2 or images_ID.shape[1] != texts_TD.shape[1]:
        raise InputError(
            f"image embeddings {tuple(images_ID.shape)} and caption embeddings {tuple(texts_TD.shape)} do not match: "
            "both must be matrices of one width (check the projections of the two encoders)"
        )
    dtype = torch.float64 if torch.float64 in (images_ID.dtype, texts_TD.dtype) else torch.float32
    images_ID, texts_TD = images_ID.detach().to(dtype), texts_TD.detach().to(dtype)
    images, texts = len(images_ID), len(texts_TD)
    check_index(image_index_T, images, texts)
    # With finite embeddings whose dot products cannot overflow no score can be NaN: two passes over the embeddings
    # instead of one over the (fifty times larger) score matrix.
    largest = images_ID.abs().max().double() * texts_TD.abs().max().double() * images_ID.shape[1]
    if not bool(largest < torch.finfo(dtype).max):
        name = "image" if not bool(images_ID.isfinite().all()) else "caption"
        raise InputError(
            f"the {name} embeddings hold NaN, infinite or overflowing values, which no ranking can order: "
            "the model has diverged (lower the learning rate) or runs in too small a precision"
        )

    def matmul(start: int, stop: int) -> Tensor:
        return torch.matmul(images_ID[start:stop], texts_TD.T)

    with torch.no_grad(), _full_precision(images_ID.device):
        if images * texts * dtype.itemsize > keep_bytes:
            return _ranks(matmul, images, image_index_T.to(images_ID.device), ties, block_rows)
        scores_IT = images_ID.new_empty(images, texts)
        filled = 0

        def kept(start: int, stop: int) -> Tensor:
            nonlocal filled
            if stop > filled:
                torch.matmul(images_ID[start:stop], texts_TD.T, out=scores_IT[start:stop])
                filled = stop
            return scores_IT[start:stop]

        return _ranks(kept, images, image_index_T.to(images_ID.device), ties, block_rows)


def score_ranks(scores_IT: Tensor, image_index_T: Tensor, *, ties: Ties = "pessimistic", block_rows: int = BLOCK_ROWS) -> Ranks:
    """Ranks both ways from the scores of all pairs (higher = better match), as a pair scorer gives them.

    Infinite scores are ordered like any other number.

    Args:
        scores_IT: Score of image row i and caption row t, any real dtype.
        image_index_T: int64, the image row that each caption describes.
        ties: How equal scores are placed (module docstring).
        block_rows: Images counted at a time.

    Raises:
        InputError: Empty or mismatched input, an index out of range, or a NaN score.
    """
    if scores_IT.ndim != 2:
        raise InputError(f"scores must be a matrix [images, captions], not of shape {tuple(scores_IT.shape)}")
    check_index(image_index_T, *scores_IT.shape)

    def rows(start: int, stop: int) -> Tensor:
        block_RT = scores_IT[start:stop].detach()
        block_RT = block_RT if block_RT.is_floating_point() else block_RT.double()
        nan_RT = block_RT.isnan()
        if bool(nan_RT.any()):
            row, column = nan_RT.nonzero()[0].tolist()
            raise InputError(
                f"the score of image row {start + row} and caption row {column} is NaN, which no ranking can order: "
                "the model has diverged (lower the learning rate) or runs in too small a precision"
            )
        return block_RT

    with torch.no_grad():
        return _ranks(rows, scores_IT.shape[0], image_index_T.to(scores_IT.device), ties, block_rows)


def positive_ranks(
    scores: Callable[[Tensor], Tensor],
    query_P: Tensor,
    candidate_P: Tensor,
    *,
    ties: Ties = "pessimistic",
    block_rows: int = BLOCK_ROWS,
) -> Tensor:
    """Places of all right answers, 1 = first, of queries that may have several: those of a query have different places.

    Right answers with equal scores stand in the order of their rows; where ties are pessimistic, wrong ones with that score stand
    before them.

    Args:
        scores: Gives, of some queries by their rows [R], the scores [R, C] with all candidates.
        query_P: int64, the query's row of each pair of a query and a right answer. Queries without one are not ranked.
        candidate_P: int64, the right answer's row. A pair is there once.
        ties: How equal scores of right and wrong answers are placed (metrics/retrieval.py).
        block_rows: Queries scored and counted at a time.

    Returns:
        int64 [P], on the device of the scores.

    Raises:
        InputError: There is no pair, or a NaN score.
    """
    if not len(query_P):
        raise InputError("there is no right answer to rank: no query of these positives has one")
    _require_ties(ties)
    query_Q, place_P = torch.unique(query_P, return_inverse=True)
    order_P = torch.argsort(place_P, stable=True)
    ends = torch.bincount(place_P).cumsum(0)
    found: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(query_Q), block_rows):
            stop = min(start + block_rows, len(query_Q))
            pairs = order_P[(int(ends[start - 1]) if start else 0) : int(ends[stop - 1])]
            block_RC = scores(query_Q[start:stop])
            if bool(block_RC.isnan().any()):
                raise InputError(
                    "a score is NaN, which no ranking can order: the model has diverged (lower the learning rate) or runs in too "
                    "small a precision"
                )
            row, column = (place_P[pairs] - start).to(block_RC.device), candidate_P[pairs].to(block_RC.device)
            found.append((_places if ties == "index" else _pessimistic_places)(block_RC, row, column))
    ranks_P = torch.empty_like(torch.cat(found))
    ranks_P[order_P.to(ranks_P.device)] = torch.cat(found)
    return ranks_P


def embedding_positive_ranks(
    queries_QD: Tensor, candidates_CD: Tensor, query_P: Tensor, candidate_P: Tensor, *, ties: Ties = "pessimistic"
) -> Tensor:
    """`positive_ranks` where scores are dot products of embeddings, in fp32 as in `embedding_ranks`."""
    dtype = torch.float64 if torch.float64 in (queries_QD.dtype, candidates_CD.dtype) else torch.float32
    queries_QD, candidates_CD = queries_QD.detach().to(dtype), candidates_CD.detach().to(dtype)
    with _full_precision(queries_QD.device):
        return positive_ranks(
            lambda rows: queries_QD[rows.to(queries_QD.device)] @ candidates_CD.T, query_P, candidate_P, ties=ties
        )


def _places(scores_RC: Tensor, row_P: Tensor, column_P: Tensor) -> Tensor:
    """[P]: places in a stable descending sort of each row."""
    order_RC = scores_RC.argsort(dim=1, descending=True, stable=True)
    place_RC = torch.empty_like(order_RC).scatter_(
        1, order_RC, torch.arange(1, scores_RC.shape[1] + 1).to(order_RC).expand_as(order_RC)
    )
    return place_RC[row_P, column_P]


def _pessimistic_places(scores_RC: Tensor, row_P: Tensor, column_P: Tensor) -> Tensor:
    """[P]: places of the right answers `row_P, column_P` (rows ascending). Each wrong one is counted once, at the best right
    answer that it is not behind, and is then ahead of all right answers from there on."""
    own_P = scores_RC[row_P, column_P]
    ascending_P = torch.argsort(-column_P, stable=True)  # of equal ones the later row is the worse place
    ascending_P = ascending_P[own_P[ascending_P].argsort(stable=True)]
    ascending_P = ascending_P[row_P[ascending_P].argsort(stable=True)]
    count_R = torch.bincount(row_P, minlength=len(scores_RC))
    within_P = torch.arange(len(row_P), device=row_P.device) - (count_R.cumsum(0) - count_R)[row_P]  # of `ascending_P`
    right_RK = scores_RC.new_full((len(scores_RC), int(count_R.max())), torch.inf)
    right_RK[row_P, within_P] = own_P[ascending_P]
    reached_RC = torch.searchsorted(right_RK, scores_RC.contiguous(), right=True).clamp_max_(count_R[:, None])
    reached_RC[row_P, column_P] = 0  # right answers are no competitors
    wrong_RM = torch.zeros(len(scores_RC), right_RK.shape[1] + 1, dtype=torch.int64, device=row_P.device)
    wrong_RM.scatter_add_(1, reached_RC, torch.ones_like(reached_RC))
    ahead_RM = wrong_RM.flip(1).cumsum(1).flip(1)
    ranks_P = torch.empty_like(row_P)
    ranks_P[ascending_P] = ahead_RM[row_P, within_P + 1] + count_R[row_P] - within_P
    return ranks_P


def _require_ties(ties: Ties) -> None:
    if ties not in ("pessimistic", "index"):
        raise InputError(f"ties={ties!r} is not known: choose 'pessimistic' or 'index'")


def check_index(image_index_T: Tensor, images: int, texts: int) -> None:
    if images == 0 or texts == 0:
        raise InputError(f"nothing to rank: {images} images and {texts} captions (is the split empty?)")
    if image_index_T.shape != (texts,) or image_index_T.dtype != torch.int64:
        raise InputError(
            f"image_index_T must hold one int64 image row for each of the {texts} captions, "
            f"not {image_index_T.dtype} of shape {tuple(image_index_T.shape)}"
        )
    outside_T = (image_index_T < 0) | (image_index_T >= images)
    if bool(outside_T.any()):
        row = int(outside_T.nonzero()[0])
        raise InputError(
            f"caption row {row} points at image row {int(image_index_T[row])}, but there are {images} images: "
            "evaluate the captions together with all the images they describe"
        )


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Float32 matmuls in float32: neither autocast nor TF32/bf16 shortcuts (which would make ties out of differences)."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _ranks(rows: Callable[[int, int], Tensor], images: int, index_T: Tensor, ties: Ties, block_rows: int) -> Ranks:
    """Counts who is ahead of each target, block by block.

    `rows(start, stop)` gives the scores [R, T] of some images, and the same bits when asked again. A caption's target
    score is read from those very blocks, never recomputed as a dot product of two rows: another summation order would
    round differently, and a target could then lose against (or win over) itself. Hence two passes: the first reads the
    targets and finishes image-to-text, the second, which needs all targets, counts text-to-image.
    """
    _require_ties(ties)
    device = index_T.device
    texts = len(index_T)
    blocks = [(start, min(start + block_rows, images)) for start in range(0, images, block_rows)]
    # The captions of a block of images: a slice of the captions in the order of their images.
    order_T = torch.argsort(index_T, stable=True)
    edges = torch.tensor([0, *(stop for _, stop in blocks)], device=device)
    cuts = torch.searchsorted(index_T[order_T].contiguous(), edges).tolist()
    columns_of = [order_T[low:high] for low, high in pairwise(cuts)]
    column_T = torch.arange(texts, device=device)
    row_I = torch.arange(images, device=device)

    target_T: Tensor | None = None
    i2t_I = torch.ones(images, dtype=torch.int64, device=device)
    for (start, stop), own in zip(blocks, columns_of, strict=True):
        scores_RT = rows(start, stop)
        if target_T is None:
            target_T = scores_RT.new_empty(texts)
        row_of_own = index_T[own] - start
        own_scores = scores_RT[row_of_own, own]
        target_T[own] = own_scores
        best_R = scores_RT.new_full((stop - start,), -torch.inf).scatter_reduce(0, row_of_own, own_scores, "amax")
        is_best = own_scores == best_R[row_of_own]
        if ties == "pessimistic":
            # All that reach the best positive, less the positives among them (no positive is above the best one).
            ahead_R = (scores_RT >= best_R[:, None]).sum(1, dtype=torch.int32).long()
            ahead_R -= torch.zeros_like(ahead_R).index_add_(0, row_of_own, is_best.long())
        else:
            first_R = torch.full_like(row_I[start:stop], texts)
            first_R.scatter_reduce_(0, row_of_own[is_best], own[is_best], "amin")
            before_RT = (scores_RT == best_R[:, None]) & (column_T < first_R[:, None])
            ahead_R = ((scores_RT > best_R[:, None]) | before_RT).sum(1, dtype=torch.int32).long()
        i2t_I[start:stop] += ahead_R
    assert target_T is not None

    t2i_T = torch.ones(texts, dtype=torch.int64, device=device)
    for (start, stop), own in zip(blocks, columns_of, strict=True):
        scores_RT = rows(start, stop)
        if ties == "pessimistic":
            ahead_RT = scores_RT >= target_T
        else:
            ahead_RT = (scores_RT > target_T) | ((scores_RT == target_T) & (row_I[start:stop, None] < index_T))
        t2i_T += ahead_RT.sum(0, dtype=torch.int32)
        t2i_T[own] -= ahead_RT[index_T[own] - start, own].long()  # the target itself is no competitor

    has_captions_I = torch.zeros(images, dtype=torch.bool, device=device)
    has_captions_I[index_T] = True
    image_Q = has_captions_I.nonzero().squeeze(1)
    return Ranks(i2t_Q=i2t_I[image_Q], i2t_image_Q=image_Q, t2i_T=t2i_T)
