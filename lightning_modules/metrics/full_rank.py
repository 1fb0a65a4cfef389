"""Every caption against every image through a pair scorer: exact, shared out over processes, resumable, nothing padded.

A pair's cost is its tokens (words + regions), and pairs of equally many tokens run without padding and without a mask. So items
are sorted by length; all pairs of texts of one length and images of one length form a tile; tiles are ordered by total length,
longest first (what does not fit into memory fails at once); and this order gives every pair its place. Units, the work between
two writes, are stretches of places within one total length: they depend on the lengths alone, not on the number of processes.
125 million pairs (COCO) never exist as index tensors: a mini-batch's rows are computed from its places.

Legend: I images, T texts (captions), P pairs, D width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import Positives
from lightning_modules import collectives
from lightning_modules.metrics.gather import gather_rows, joined, split_order
from lightning_modules.metrics.pair_batches import UNIT_TOKENS, Plan, score_pairs_by_length
from lightning_modules.metrics.positives import score_measures
from lightning_modules.metrics.ranks import Ranks, Ties, score_ranks
from lightning_modules.metrics.recalls import recalls, score_fold_recalls
from lightning_modules.metrics.rerank import UNSCORED, Chosen, Rerank, choose
from lightning_modules.metrics.score_store import Floats, Integers, Job, ScoreStore
from lightning_modules.networks.network import FirstStage
from lightning_modules.networks.pair_scorer import PairScorer, Ragged

# Numbers of an item's fingerprint, see `Job`.
PRINTS = 4


class FullRank:
    """Recalls of a pair scorer over a split, exact on any number of processes.

    Each process adds the embedded images and captions it has, each exactly once over all processes (a hole or a repeat is an
    error); `compute` gathers the embeddings, scores all pairs, and ranks.
    """

    def __init__(
        self,
        expected_images: int | None = None,
        expected_texts: int | None = None,
        ties: Ties = "pessimistic",
        progress: bool = True,
        unit_tokens: int = UNIT_TOKENS,
    ) -> None:
        """Starts empty.

        Args:
            expected_images: Images of the split; may be set later as an attribute. None checks for repeats and holes only.
            expected_texts: Captions of the split, likewise.
            ties: How equal scores are placed, as for `score_ranks`.
            progress: Show a bar with pairs/s (first process only).
            unit_tokens: Tokens between two writes to the store.
        """
        self.expected_images = expected_images
        self.expected_texts = expected_texts
        self.ties: Ties = ties
        self.progress = progress
        self.unit_tokens = unit_tokens
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._images: list[tuple[Ragged, Tensor, tuple[str, ...]]] = []
        self._texts: list[tuple[Ragged, Tensor, tuple[str, ...]]] = []
        self._owners: list[Tensor] = []
        self._scores_IT: Tensor | None = None
        self._image_index_T: Tensor | None = None
        self._chosen: Chosen | None = None
        self.scored = 0

    def add_images(self, images: Ragged, index: Tensor, ids: Sequence[str] = ()) -> None:
        """Adds embedded images with their rows [B] in the split, and their ids if these are to be kept with the scores."""
        self._images.append(self._checked(images, index, ids))

    def add_texts(self, texts: Ragged, index: Tensor, image_index: Tensor, ids: Sequence[str] = ()) -> None:
        """Adds embedded captions, their rows [B], their images' rows [B], and their ids if these are to be kept."""
        self._texts.append(self._checked(texts, index, ids))
        if image_index.shape != index.shape:
            raise InputError(f"{len(index)} captions need one image index each, got {tuple(image_index.shape)}")
        self._owners.append(image_index.long())

    @staticmethod
    def _checked(items: Ragged, index: Tensor, ids: Sequence[str]) -> tuple[Ragged, Tensor, tuple[str, ...]]:
        if index.shape != (len(items),) or (ids and len(ids) != len(items)):
            raise InputError(f"{len(items)} embedded items need one index each, got {tuple(index.shape)} and {len(ids)} ids")
        return Ragged(items.states_ND.detach(), items.lengths_B), index.long(), tuple(ids)

    # ------------------------------------------------------------------------------------------------ scoring

    def compute(
        self,
        scorer: PairScorer,
        store: Path | None = None,
        *,
        weights: str = "",
        tokens: int | None = None,
        rerank: Rerank | None = None,
    ) -> dict[str, Tensor]:
        """Scores what is not yet scored and gives the recalls, as `recalls` names them.

        Runs without gradients; mixed precision is the caller's (`torch.autocast` around the call).

        Args:
            scorer: In eval mode, the same in all processes.
            store: Folder for the scores, seen by all processes: a killed run goes on there, a finished one is only read. None:
                memory.
            weights: Which weights and which precision these are (a fingerprint): kept with the scores and compared.
            tokens: Tokens of a mini-batch, as for `score_pairs_by_length`.
            rerank: Score only what the scorer's own vectors put first (then it is a `FirstStage`). None = every pair.

        Raises:
            InputError: Rows that are missing or there more than once, a store that belongs to something else, a NaN score.
        """
        if getattr(scorer, "training", False):
            raise RuntimeError("the scorer is in training mode: its dropout would make every score another; call eval() first")
        world, rank = collectives.world_size(), collectives.rank()
        with torch.no_grad():
            images, image_ids, _ = _gathered(self._images, None, self.expected_images, "image")
            texts, text_ids, owners = _gathered(self._texts, self._owners, self.expected_texts, "caption")
            assert owners is not None
            outside = (owners < 0) | (owners >= len(images))
            if bool(outside.any()):
                row = int(outside.nonzero()[0])
                raise InputError(f"caption row {row} points at image row {int(owners[row])}, but there are {len(images)} images")
            unit_tokens, extra = self.unit_tokens, {}
            self._chosen = None
            if rerank is not None:
                assert isinstance(scorer, FirstStage)
                self._chosen = choose(scorer, images, texts, rerank)
                # of a unit's pairs only those are scored that were chosen: as much work as without
                unit_tokens = max(unit_tokens * len(images) * len(texts) // rerank.most(len(images), len(texts)), unit_tokens)
                extra = {"k_test": rerank.k_test}
            plan = Plan(images.lengths_B.cpu().numpy(), texts.lengths_B.cpu().numpy(), unit_tokens)
            with ScoreStore(store, plan.pairs, rank) as scores:
                todo = _begun(scores, plan, images, texts, (image_ids, text_ids, owners), weights, extra)
                self.scored = self._score(scorer, images, texts, plan, scores, todo, tokens, world, rank)
                matrix = _finished(scores, plan)
        self._scores_IT, self._image_index_T = torch.from_numpy(matrix), owners.cpu()
        values = self.recalls()
        return {name: value.to(images.states_ND.device) for name, value in values.items()}

    def _score(
        self,
        scorer: PairScorer,
        images: Ragged,
        texts: Ragged,
        plan: Plan,
        scores: ScoreStore,
        todo: Integers,
        tokens: int | None,
        world: int,
        rank: int,
    ) -> int:
        """Scores this process's share; how many pairs that were."""
        mine = plan.share(todo, rank, world)
        unit_tokens, pairs = plan.unit_tokens(), 0
        columns = (
            TextColumn("every pair"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[speed]} pairs/s"),
            TimeRemainingColumn(),
        )  # fmt: skip
        wanted = self.progress and rank == 0 and len(mine)
        shown = Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) if wanted else nullcontext()
        with shown as bar:
            # How far: in tokens, which take equally long; all units, so that a resumed job starts where it was.
            done = int(unit_tokens.sum() - unit_tokens[todo].sum()) // world
            total = done + int(unit_tokens[mine].sum())
            task = bar.add_task("", total=total, completed=done, speed="-") if bar else None
            begun = time.perf_counter()
            for unit in mine.tolist():
                start, stop = int(plan.edges[unit]), int(plan.edges[unit + 1])
                image_P, text_P = plan.rows(start, stop)
                image_rows, text_rows = torch.from_numpy(image_P), torch.from_numpy(text_P)
                if self._chosen is None:
                    found = (
                        score_pairs_by_length(scorer, images, texts, image_rows, text_rows, tokens=tokens).float().cpu().numpy()
                    )
                else:
                    taken_P = self._chosen.pairs_IT[image_rows, text_rows]
                    some = score_pairs_by_length(scorer, images, texts, image_rows[taken_P], text_rows[taken_P], tokens=tokens)
                    found = np.full(stop - start, UNSCORED, np.float32)
                    found[taken_P.numpy()] = some.float().cpu().numpy()
                if (wrong := np.flatnonzero(np.isnan(found))).size:
                    raise InputError(
                        f"the score of image row {image_P[wrong[0]]} and caption row {text_P[wrong[0]]} is NaN, which no ranking "
                        "can order: the model has diverged (lower the learning rate) or runs in too small a precision"
                    )
                scores.write(start, found)
                pairs += int((found != UNSCORED).sum())
                if bar and task is not None:
                    # the others go about as fast
                    speed = world * pairs / (time.perf_counter() - begun)
                    bar.update(task, advance=int(unit_tokens[unit]), speed=f"{speed:,.{0 if speed >= 100 else 1}f}")
        return pairs

    # ------------------------------------------------------------------------------------------------- results

    def _computed(self) -> tuple[Tensor, Tensor]:
        if self._scores_IT is None or self._image_index_T is None:
            raise RuntimeError("compute() comes first")
        return self._scores_IT, self._image_index_T

    def scores(self) -> Tensor:
        """Scores of the last `compute`, float32 [images, captions] on the CPU (a memory map where there is a store). With
        `rerank` the scorer's own, -inf where a pair was not scored."""
        return self._computed()[0]

    def recalls(self, folds: int | None = None, compat: bool = False) -> dict[str, Tensor]:
        """Recalls of the last `compute`.

        Args:
            folds: COCO's 1K protocol: the mean over this many galleries (`score_fold_recalls`).
            compat: The released code's count, see `recalls` of metrics/retrieval.py.
        """
        scores_IT, image_index_T = self._computed()
        if folds is not None:
            if self._chosen is not None:
                raise InputError("folds: candidates were chosen from the whole gallery, so there are no scores of smaller ones")
            return score_fold_recalls(scores_IT, image_index_T, folds=folds, ties=self.ties, compat=compat)
        return recalls(self._ranks(), compat=compat)

    def _ranks(self) -> Ranks:
        scores_IT, image_index_T = self._computed()
        if self._chosen is not None:
            return self._chosen.ranks(scores_IT, image_index_T, self.ties)
        return score_ranks(scores_IT, image_index_T, ties=self.ties)

    def positives(self, sets: Mapping[str, Positives]) -> dict[str, Tensor]:
        """Of the last `compute`, with further right answers: the measures of metrics/positives.py."""
        if self._chosen is None:
            return score_measures(self.scores(), sets, self.ties)
        sides = zip(("i2t", "t2i"), self._chosen.values(self.scores()), strict=True)
        found = {side: score_measures(values_IT, sets, self.ties) for side, values_IT in sides}
        return {name: value for side, each in found.items() for name, value in each.items() if f"_{side}_" in name}

    def query_ranks(self) -> dict[str, Tensor]:
        """Per-query ranks of the last `compute`, under the names of `RetrievalRecall.query_ranks`."""
        ranks, image_index_T = self._ranks(), self._computed()[1]
        return {
            "i2t_image_index": ranks.i2t_image_Q,
            "i2t_rank": ranks.i2t_Q,
            "t2i_text_index": torch.arange(len(image_index_T)),
            "t2i_image_index": image_index_T,
            "t2i_rank": ranks.t2i_T,
        }


# ------------------------------------------------------------------------------------------------------------ over processes


def _gathered(
    items: list[tuple[Ragged, Tensor, tuple[str, ...]]], owners: list[Tensor] | None, expected: int | None, what: str
) -> tuple[Ragged, list[str], Tensor | None]:
    """All processes' items in the order of the split, their ids ([] if not all have one), their images' rows."""
    rows = [
        joined([ragged.states_ND for ragged, _, _ in items]) if items else torch.empty(0, 0),
        joined([ragged.lengths_B for ragged, _, _ in items]),
        joined([index for _, index, _ in items]),
        *([] if owners is None else [joined(owners)]),
    ]
    ids = [name for _, _, names in items for name in names]
    if collectives.several():
        device = collectives.device_of_group(rows[0])  # a process without items does not know it from them
        rows = [torch.cat(gather_rows(each.to(device).contiguous())) for each in rows]
        ids = [name for names in collectives.told_objects(ids) for name in names]
    states, lengths, index = rows[:3]
    if not len(index):
        raise InputError(f"full rank needs images and captions, got no {what}: the evaluation loaders must give both")
    order = split_order(index, expected, what)
    in_order = [ids[row] for row in order.tolist()] if len(ids) == len(index) else []
    return Ragged(states, lengths).take(order), in_order, None if owners is None else rows[3][order]


def _begun(
    scores: ScoreStore,
    plan: Plan,
    images: Ragged,
    texts: Ragged,
    about: tuple[list[str], list[str], Tensor],
    weights: str,
    extra: dict[str, Any],
) -> Integers:
    """Units that are left to do; the first process looks into the store, the others believe it.

    Raises:
        InputError: What `ScoreStore.prepare` refuses, in all processes.
    """

    def look() -> Integers:
        image_ids, text_ids, owners = about
        facts = {
            "weights": weights,
            "images": len(images),
            "captions": len(texts),
            "width": images.states_ND.shape[1],
            "dtype": str(images.states_ND.dtype),
            "regions": images.lengths_B.tolist(),
            "words": texts.lengths_B.tolist(),
            "image_of_caption": owners.tolist(),
            "image_ids": image_ids,
            "caption_ids": text_ids,
            **extra,
        }
        if scores.folder is not None:
            scores.prepare(Job(facts, np.concatenate([_prints(images), _prints(texts)])))
        complete = scores.matrix_path is not None
        return np.zeros(0, np.int64) if complete else np.flatnonzero(~scores.done(plan.edges))

    return collectives.by_first(look)


def _prints(items: Ragged) -> Floats:
    """[B, PRINTS]: the mean of every item's tokens, seen from a few fixed directions."""
    states_ND = items.states_ND.float()
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(states_ND.shape[1], PRINTS, generator=generator).to(states_ND.device) / states_ND.shape[1] ** 0.5
    # Weighted by place, so that the order of tokens counts.
    place_N = torch.arange(len(states_ND), device=states_ND.device) - torch.repeat_interleave(items.starts(), items.lengths_B)
    with torch.autocast(states_ND.device.type, enabled=False):
        seen_NK = states_ND @ directions * (1 + place_N.remainder(7))[:, None] / 4
    owner_N = torch.repeat_interleave(torch.arange(len(items), device=states_ND.device), items.lengths_B)
    sums = torch.zeros(len(items), PRINTS, device=states_ND.device).index_add_(0, owner_N, seen_NK)
    return (sums / items.lengths_B.clamp_min(1)[:, None]).cpu().numpy()


def _finished(scores: ScoreStore, plan: Plan) -> Floats:
    """The matrix [images, captions], in every process, after all have scored their share."""
    collectives.meet()
    if scores.folder is None:
        if collectives.several():
            flat = torch.from_numpy(scores.read(0, plan.pairs))
            for chunk in flat.split(2**24):  # everyone else has 0 there
                chunk.copy_(collectives.reduced(chunk))
        matrix = np.empty(plan.shape, np.float32)
        plan.unsort(scores, matrix)
        return matrix

    def finish() -> None:
        if scores.matrix_path is None:
            scores.finish(lambda matrix: plan.unsort(scores, matrix), plan.shape)

    collectives.by_first(finish)
    assert scores.matrix_path is not None
    # copy on write: torch wants to be able to write
    return np.load(scores.matrix_path, mmap_mode="c", allow_pickle=False)
