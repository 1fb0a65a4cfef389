"""Image-text retrieval: ranks, recalls, the five-fold protocol of COCO, and the metric that gathers them over devices.

One rank computation serves both kinds of scorer: pairs of encoders (`embedding_ranks`, cosine by matmul) and pair scorers
(`score_ranks`, a full score matrix). Recall@k of either direction is the share of queries whose rank is at most k.

What a rank is, and how ties count:

- Image to text: the place (1 = first) of the best-placed caption of the image. Its other captions never stand in its way, so
  `rank <= k` says "one of the first k captions is the image's own" (TR@k of BEiT-3's `RetrievalHandler`, of VSE++, of UNITER).
- Text to image: the place of the caption's own image.
- ties="pessimistic" (default): a competitor with an equal score is placed before the target, so a model that gives every pair
  the same score gets no hit it did not earn (its ranks are the worst ones).
- ties="index": equal scores are placed by their row number, smaller first: the order of a stable descending argsort, and what
  `torch.topk` of the official code gives where nothing ties.
- NaN scores are refused: they compare as "not ahead" and would win every query.

Any number of captions an image is fine. An image without captions is no query of image-to-text (it has nothing to find), and
still a candidate that text-to-image has to beat.

Legend of the shape letters: I images, T texts (captions), Q image queries (images that have captions), D embedding width,
R rows of one block of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from datamodules.errors import InputError

Ties = Literal["pessimistic", "index"]

# Rows of the score matrix that are made and counted at a time. 256 x 25,000 float32 scores are 26 MB: the matmul is
# within 25 % of its best speed, and counting reads the block while it is still (mostly) cached, several times faster than
# over the full matrix.
BLOCK_ROWS = 256
# Up to this size the score matrix is kept between the two counting passes (5,000 x 25,000 float32 = 0.5 GB); larger ones are
# computed twice, block by block, in memory that does not grow with the number of images.
KEEP_BYTES = 2**30

_GATHERED_DTYPES = (torch.float32, torch.float64, torch.int64, torch.float16, torch.bfloat16)


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
        images_ID: Image embeddings, L2-normalised for cosine scores. Row = image row of the split.
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
    _check_index(image_index_T, images, texts)
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
    _check_index(image_index_T, *scores_IT.shape)

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
    _check_index(image_index_T, len(images_ID), len(texts_TD))

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
    _check_index(image_index_T, *scores_IT.shape)

    def ranks(fold: slice, own_T: Tensor, index: Tensor) -> Ranks:
        return score_ranks(scores_IT[fold][:, own_T], index, ties=ties)

    return _mean_recalls(ranks, len(scores_IT), image_index_T, folds, compat)


def _mean_recalls(
    ranks: Callable[[slice, Tensor, Tensor], Ranks], images: int, image_index_T: Tensor, folds: int, compat: bool = False
) -> dict[str, Tensor]:
    """`recalls` averaged over folds; `ranks(images of the fold, its captions, their image rows in the fold)`."""
    if folds < 1 or images == 0 or images % folds:
        raise InputError(f"{images} images do not divide into {folds} folds of equal size: choose another number of folds")
    size = images // folds
    parts = []
    for start in range(0, images, size):
        own_T = ((image_index_T >= start) & (image_index_T < start + size)).nonzero().squeeze(1)
        parts.append(recalls(ranks(slice(start, start + size), own_T, image_index_T[own_T] - start), compat=compat))
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def _check_index(image_index_T: Tensor, images: int, texts: int) -> None:
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
    if ties not in ("pessimistic", "index"):
        raise InputError(f"ties={ties!r} is not known: choose 'pessimistic' or 'index'")
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


# ------------------------------------------------------------------------------------------------------------ over devices


class RetrievalRecall(Metric):
    """Recall@1/5/10 both ways over a whole split, exact on any number of devices.

    Every process adds the images and captions it encoded, each exactly once over all processes, in any order and number
    (none is fine); `compute` gathers them, puts them into the order of the split, and ranks everything against
    everything. A sampler that repeats or drops samples is an error, not a slightly wrong number. Use `update_images` and
    `update_texts`, not `forward`: a recall of one batch has no meaning.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    image_embeddings: list[Tensor]
    image_index: list[Tensor]
    text_embeddings: list[Tensor]
    text_index: list[Tensor]
    text_image_index: list[Tensor]

    def __init__(
        self,
        expected_images: int | None = None,
        expected_texts: int | None = None,
        ties: Ties = "pessimistic",
    ) -> None:
        """Starts empty.

        Args:
            expected_images: Images of the split; may be set later as an attribute. None checks for repeats and holes only.
            expected_texts: Captions of the split, likewise.
            ties: How equal scores are placed: "pessimistic" before the target, "index" by row number.
        """
        super().__init__(dist_sync_fn=gather_rows)
        self.expected_images = expected_images
        self.expected_texts = expected_texts
        self.ties: Ties = ties
        self._last: dict[str, Tensor] | None = None
        self.add_state("image_embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("image_index", default=[], dist_reduce_fx="cat")
        self.add_state("text_embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("text_index", default=[], dist_reduce_fx="cat")
        self.add_state("text_image_index", default=[], dist_reduce_fx="cat")

    def update_images(self, embeddings: Tensor, index: Tensor) -> None:
        """Adds image embeddings [B, D] (L2-normalised) with their rows [B] in the split (`ImageBatch.index_B`)."""
        self.update(embeddings, index)

    def update_texts(self, embeddings: Tensor, index: Tensor, image_index: Tensor) -> None:
        """Adds caption embeddings [B, D], their rows [B] and their images' rows [B] (`TextBatch.index_B`,
        `.image_index_B`)."""
        self.update(embeddings, index, image_index)

    def update(self, embeddings: Tensor, index: Tensor, image_index: Tensor | None = None) -> None:
        """Adds images, or with `image_index` captions. See `update_images` and `update_texts`."""
        rows = (len(embeddings),)
        if embeddings.ndim != 2 or index.shape != rows or (image_index is not None and image_index.shape != rows):
            raise InputError(
                f"embeddings {tuple(embeddings.shape)} need two dimensions and one index each, got indices {tuple(index.shape)}"
                + ("" if image_index is None else f" and image indices {tuple(image_index.shape)}")
            )
        # Half precision is stored as float32 (exact): all processes then gather one type.
        kept = embeddings.detach().to(torch.float64 if embeddings.dtype == torch.float64 else torch.float32)
        if image_index is None:
            self.image_embeddings.append(kept)
            self.image_index.append(index.long())
        else:
            self.text_embeddings.append(kept)
            self.text_index.append(index.long())
            self.text_image_index.append(image_index.long())

    def compute(self) -> dict[str, Tensor]:
        """Recalls of everything added so far, as `recalls` names them.

        Raises:
            InputError: Rows that are missing or there more than once, or what `embedding_ranks` refuses.
        """
        image_index, text_index = joined(self.image_index), joined(self.text_index)
        if not len(image_index) or not len(text_index):
            raise InputError(
                f"recall needs images and captions, got {len(image_index)} and {len(text_index)}: "
                "the evaluation loaders must give both"
            )
        image_order = split_order(image_index, self.expected_images, "image")
        text_order = split_order(text_index, self.expected_texts, "caption")
        text_image_index = joined(self.text_image_index)[text_order]
        ranks = embedding_ranks(
            joined(self.image_embeddings)[image_order],
            joined(self.text_embeddings)[text_order],
            text_image_index,
            ties=self.ties,
        )
        self._last = {
            "i2t_image_index": ranks.i2t_image_Q.cpu(),
            "i2t_rank": ranks.i2t_Q.cpu(),
            "t2i_text_index": torch.arange(len(text_index)),
            "t2i_image_index": text_image_index.cpu(),
            "t2i_rank": ranks.t2i_T.cpu(),
        }
        return {name: value.to(image_index.device) for name, value in recalls(ranks).items()}

    def query_ranks(self) -> dict[str, Tensor]:
        """Per-query ranks of the last `compute`, on every process, int64 on the CPU.

        `i2t_rank` [Q] of the images `i2t_image_index` [Q]; `t2i_rank` [T] of the captions `t2i_text_index` [T] (0..T-1),
        whose images are `t2i_image_index` [T].
        """
        if self._last is None:
            raise RuntimeError("query_ranks() needs compute() first")
        return dict(self._last)

    def reset(self) -> None:
        """Forgets everything, the ranks of the last `compute` too."""
        super().reset()
        self._last = None


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """All processes' `rows` [N_r] or [N_r, D], in the order of ranks, the number of rows differing and possibly 0.

    torchmetrics' own gather fails where a process saw no data: its placeholder is float32 of one dimension, the others'
    tensors are not. Here a process without rows learns type and width from those that have some.

    Raises:
        InputError: Processes whose rows differ in width or type (raised in all of them).
    """
    world = dist.get_world_size(group)
    wide = rows.ndim == 2
    mine = (len(rows), rows.shape[1] if wide else -1, _GATHERED_DTYPES.index(rows.dtype))
    header = torch.tensor(mine, device=rows.device)
    headers = [torch.empty_like(header) for _ in range(world)]
    dist.all_gather(headers, header, group=group)
    counts, layouts = [], set()
    for count, *layout in (entry.tolist() for entry in headers):
        counts.append(count)
        if count:
            layouts.add(tuple(layout))
    if len(layouts) > 1:
        raise InputError(f"processes disagree on embedding width or type: {sorted(layouts)} (width, type)")
    if not layouts:
        return [rows] * world
    width, dtype = layouts.pop()
    padded = torch.zeros((max(counts),) if width < 0 else (max(counts), width), dtype=_GATHERED_DTYPES[dtype], device=rows.device)
    if len(rows):
        padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded, group=group)
    return [part[:count] for part, count in zip(gathered, counts, strict=True)]


def joined(state: list[Tensor] | Tensor) -> Tensor:
    """A state as one tensor: a list before synchronisation, a tensor after it."""
    return dim_zero_cat(state) if len(state) else torch.empty(0, dtype=torch.int64)


def split_order(index: Tensor, expected: int | None, what: str) -> Tensor:
    """The permutation that puts rows into the order of the split; refuses repeats and holes."""
    count = len(index) if expected is None else expected
    seen = torch.bincount(index.clamp_min(0), minlength=count)
    remedy = "every process must evaluate its own slice, nothing padded, repeated or dropped (check the sampler)"
    if bool((index < 0).any()) or len(seen) > count:
        wrong = int(index.min()) if bool((index < 0).any()) else int(index.max())
        raise InputError(
            f"{what} row {wrong} is outside 0..{count - 1}: "
            + (f"{len(index)} were evaluated, so rows are missing; {remedy}" if expected is None else f"{expected} were expected")
        )
    if bool((seen != 1).any()):
        holes, repeats = (seen == 0).nonzero().flatten().tolist(), (seen > 1).nonzero().flatten().tolist()
        said = [
            f"{len(rows)} {verb} (first: {', '.join(map(str, rows[:5]))})"
            for verb, rows in (("missing", holes), ("there more than once", repeats))
            if rows
        ]
        raise InputError(f"of {count} {what} rows {' and '.join(said)}: {remedy}")
    return torch.argsort(index)
