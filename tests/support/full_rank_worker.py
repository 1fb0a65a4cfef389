"""A pair scorer that notes what it was asked, and one process of the two-process test of FullRank (see test_full_rank.py)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import ImageBatch, TextBatch
from lightning_modules.metrics.full_rank import FullRank
from lightning_modules.metrics.rerank import Rerank
from lightning_modules.networks.pair_scorer import Ragged

IMAGES, TEXTS, WIDTH = 11, 23, 6
UNIT_TOKENS = 30


def items(count: int, longest: int, seed: int, changed: float = 0.0) -> Ragged:
    """Random embeddings of random lengths (1 .. longest); the first number of every token is its item's row."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=draw)
    states = torch.randn(int(lengths.sum()), WIDTH, generator=draw) + changed
    states[:, 0] = torch.repeat_interleave(torch.arange(count), lengths).float()
    return Ragged(states, lengths)


class Recorder:
    """Scores of a pair from all its numbers; notes every pair it is asked for in `pairs` and, one line a call, in `log`.

    Args:
        log: File to append to.
        calls: So many calls are answered; the next one ends in `death`.
        death: "error" or "kill" (SIGKILL).
    """

    training = False

    def __init__(self, log: Path | None = None, calls: int = 10**9, death: str = "error") -> None:
        self.log, self.calls, self.death = log, calls, death
        self.pairs: list[tuple[int, int]] = []
        self.totals: list[set[int]] = []

    def embed_images(self, batch: ImageBatch) -> Ragged:
        raise NotImplementedError

    def embed_texts(self, batch: TextBatch) -> Ragged:
        raise NotImplementedError

    def score_pairs(self, images: Ragged, texts: Ragged, image_P: Tensor, text_P: Tensor) -> Tensor:
        if self.calls == 0:
            if self.death == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        self.calls -= 1
        scores, asked = [], []
        for image, text in zip(image_P.tolist(), text_P.tolist(), strict=True):
            regions, words = images.take(torch.tensor([image])).states_ND, texts.take(torch.tensor([text])).states_ND
            scores.append((regions.mean(0) * words.mean(0))[1:].sum())
            asked.append((int(regions[0, 0]), int(words[0, 0])))
        self.totals.append(set((images.lengths_B[image_P] + texts.lengths_B[text_P]).tolist()))
        self.pairs += asked
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(" ".join(f"{image},{text}" for image, text in asked) + "\n")
        return torch.stack(scores)


class TwoStage(Recorder):
    """With vectors of its own, which see half of what the scores see."""

    def image_vectors(self, images: Ragged) -> Tensor:
        means = torch.stack([images.take(torch.tensor([row])).states_ND.mean(0)[1:4] for row in range(len(images))])
        return means / means.norm(dim=1, keepdim=True)

    text_vectors = image_vectors

    def first_stage_parameters(self) -> frozenset[str]:
        return frozenset()


def owners() -> Tensor:
    return torch.arange(TEXTS) * IMAGES // TEXTS


def filled(rank: int = 0, world: int = 1, changed: float = 0.0) -> FullRank:
    """A metric with one process's items, in an order of its own."""
    metric = FullRank(IMAGES, TEXTS, progress=False, unit_tokens=UNIT_TOKENS)
    images, texts = items(IMAGES, 9, 1, changed), items(TEXTS, 5, 2)
    for rows in torch.arange(IMAGES).flip(0)[rank::world].split(4):
        metric.add_images(images.take(rows), rows, [f"image {row}" for row in rows.tolist()])
    for rows in torch.arange(TEXTS)[rank::world].split(6):
        metric.add_texts(texts.take(rows), rows, owners()[rows], [f"caption {row}" for row in rows.tolist()])
    return metric


def main(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    answers = {}
    for name, store in (("memory", None), ("store", folder / "store")):
        metric, scorer = filled(rank, world), Recorder()
        values = metric.compute(scorer, store, weights="a")
        answers[name] = {
            "values": values,
            "scores": metric.scores().clone(),
            "ranks": metric.query_ranks(),
            "pairs": scorer.pairs,
            "tokens": metric.scored,
        }
    metric, two_stage = filled(rank, world), TwoStage()
    values = metric.compute(two_stage, folder / "reranked", weights="a", rerank=Rerank(3))
    answers["reranked"] = {"values": values, "scores": metric.scores().clone(), "pairs": two_stage.pairs}
    # the first process has everything, the second nothing
    metric = filled() if rank == 0 else FullRank(IMAGES, TEXTS, progress=False, unit_tokens=UNIT_TOKENS)
    answers["one-sided"] = {"values": metric.compute(Recorder()), "scores": metric.scores()}
    for name, broken, weights in (("repeat", filled(0, 1), "a"), ("weights", filled(rank, world), "b")):
        try:
            broken.compute(Recorder(), folder / "store", weights=weights)
        except InputError as error:
            answers[name] = {"error": str(error)}
    torch.save(answers, folder / f"answers-{rank}.pt")
    dist.barrier()
    # both die in the middle of a unit, at different places
    scorer = Recorder(folder / f"log-{rank}", calls=9 + 4 * rank, death="kill")
    filled(rank, world).compute(scorer, folder / "killed", weights="a", tokens=10)
