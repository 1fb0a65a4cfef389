"""Pairs of equal length together: batches of a pair scorer with little padding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.score_store import Floats, Integers, ScoreStore
from lightning_modules.networks.pair_scorer import PairScorer, Ragged

# Tokens of a mini-batch, where throughput saturates (benchmarks/full_rank.py --tokens measures it). Layers of UNITER base on an
# EPYC core, tokens per CPU second relative to 2,048: 0.74 at 100 tokens, 0.89 at 512, 0.97 at 1,024, 0.92 at 4,096.
TOKENS = {"cpu": 2048}
TOKENS_ELSEWHERE = 32768

# Padding that a mini-batch may have, as a share of its tokens, where a total length has too few pairs to fill one. Among the
# candidates for hard negatives this takes 5 % (120 texts) to 14 % (120 images) less CPU time than none; 0.2 is no better.
PADDING = {"cpu": 0.1}

# A GPU waits for launches where mini-batches are small: two or three groups of lengths (a guess, not measured).
PADDING_ELSEWHERE = 0.5

# Tokens of a unit: what a kill costs. Half a minute of UNITER base on two processor cores, a fraction of a second on a GPU.
UNIT_TOKENS = 32768


def score_pairs_by_length(
    scorer: PairScorer,
    images: Ragged,
    texts: Ragged,
    image_P: Tensor,
    text_P: Tensor,
    *,
    tokens: int | None = None,
    padding: float | None = None,
) -> Tensor:
    """Scores [P] (fp32) of any pairs, in the order given, in mini-batches of pairs of the same total length.

    Gradients flow if the caller lets them.

    Args:
        scorer: In eval mode, unless the caller wants its dropout.
        images: Embedded images.
        texts: Embedded texts.
        image_P: int64, rows of the pairs' images, on any device.
        text_P: int64, rows of their texts.
        tokens: Tokens of a mini-batch, padding included (a longer pair is one by itself). None: what saturates the device.
        padding: Share of a mini-batch's tokens that may be padding, where a length's pairs do not fill it: neighbouring lengths
            then share one. 0 = none at all. None: what suits the device.
    """
    device = texts.states_ND.device
    tokens = tokens or TOKENS.get(device.type, TOKENS_ELSEWHERE)
    padding = PADDING.get(device.type, PADDING_ELSEWHERE) if padding is None else padding
    image_P, text_P = image_P.cpu(), text_P.cpu()
    if not len(image_P):
        return torch.zeros(0, device=device)
    total_P = images.lengths_B.cpu()[image_P] + texts.lengths_B.cpu()[text_P]
    order_P = total_P.argsort(descending=True, stable=True)
    parts = []
    for start, stop in _batches(total_P[order_P].numpy(), tokens, padding):
        own = order_P[start:stop]
        # Only the items of the mini-batch: a scorer may well join all the items it is given.
        image_rows, image_places = image_P[own].unique(return_inverse=True)
        text_rows, text_places = text_P[own].unique(return_inverse=True)
        taken = images.take(image_rows.to(device)), texts.take(text_rows.to(device))
        parts.append(scorer.score_pairs(*taken, image_places.to(device), text_places.to(device)))
    return torch.cat(parts)[order_P.argsort().to(device)]


def _batches(lengths_P: Integers, tokens: int, padding: float) -> list[tuple[int, int]]:
    """Cuts pairs sorted by falling length into mini-batches."""
    until_P = np.cumsum(lengths_P)
    cuts, start = [], 0
    while start < len(lengths_P):
        longest = max(int(lengths_P[start]), 1)
        stop = min(start + max(tokens // longest, 1), len(lengths_P))
        before = int(until_P[start - 1]) if start else 0
        padded = longest * np.arange(1, stop - start + 1)
        # The share of padding only grows: the last place where it is allowed. The epsilon is for 0.
        fits = until_P[start:stop] - before >= (1 - padding) * padded - 1e-6
        stop = start + int(np.flatnonzero(fits)[-1]) + 1
        cuts.append((start, stop))
        start = stop
    return cuts


class Plan:
    """The places of all pairs (module docstring) and their units.

    Args:
        image_lengths_I: Regions of every image.
        text_lengths_T: Words of every text.
        unit_tokens: Tokens of a unit.
    """

    def __init__(self, image_lengths_I: Integers, text_lengths_T: Integers, unit_tokens: int = UNIT_TOKENS) -> None:
        self.image_order = np.argsort(image_lengths_I, kind="stable")
        self.text_order = np.argsort(text_lengths_T, kind="stable")
        self.shape = len(image_lengths_I), len(text_lengths_T)
        self.pairs = len(image_lengths_I) * len(text_lengths_T)
        sides = []
        for lengths in (image_lengths_I, text_lengths_T):
            present, counts = np.unique(lengths, return_counts=True)
            sides.append((present, np.cumsum(counts) - counts, counts))
        pick = np.meshgrid(*(np.arange(len(length)) for length, _, _ in sides), indexing="ij")
        image, text = ([column[index.ravel()] for column in side] for side, index in zip(sides, pick, strict=True))
        total = image[0] + text[0]
        order = np.argsort(-total, kind="stable")
        self.total = total[order]
        self.image_start, self.image_count = image[1][order], image[2][order]
        self.text_start, self.text_count = text[1][order], text[2][order]
        size = self.image_count * self.text_count
        self.start = np.cumsum(size) - size
        edges, units = [], []
        for length in reversed(np.unique(self.total).tolist()):
            tiles = np.flatnonzero(self.total == length)
            first, pairs = int(self.start[tiles[0]]), int(size[tiles].sum())
            count = -(-pairs // max(unit_tokens // max(length, 1), 1))
            edges.append(first + pairs * np.arange(count) // count)
            units.append(np.full(count, length))
        self.edges: Integers = np.append(np.concatenate(edges), self.pairs)
        self.unit_total: Integers = np.concatenate(units)

    def rows(self, start: int, stop: int) -> tuple[Integers, Integers]:
        """The pairs at these places: rows of their images, rows of their texts."""
        place = np.arange(start, stop)
        tile = np.searchsorted(self.start, place, side="right") - 1
        image, text = np.divmod(place - self.start[tile], self.text_count[tile])
        return self.image_order[self.image_start[tile] + image], self.text_order[self.text_start[tile] + text]

    def unit_tokens(self) -> Integers:
        """[units]: tokens of every unit."""
        return np.diff(self.edges) * self.unit_total

    def share(self, todo: Integers, rank: int, world: int) -> Integers:
        """This process's part of the units to do: neighbours (its file stays sparse), with equally many tokens as the others'."""
        until = np.cumsum(self.unit_tokens()[todo])
        if not len(todo):
            return todo
        # A unit is where its middle is.
        middle = until - self.unit_tokens()[todo] / 2
        owner = np.minimum((middle * world / until[-1]).astype(np.int64), world - 1)
        return todo[owner == rank]

    def unsort(self, store: ScoreStore, matrix_IT: Floats) -> None:
        """Puts the scores of all places where they belong in [images, texts]."""
        for tile in range(len(self.start)):
            images, texts = int(self.image_count[tile]), int(self.text_count[tile])
            rows = self.image_order[self.image_start[tile] :][:images]
            columns = self.text_order[self.text_start[tile] :][:texts]
            start = int(self.start[tile])
            matrix_IT[np.ix_(rows, columns)] = store.read(start, start + images * texts).reshape(images, texts)
