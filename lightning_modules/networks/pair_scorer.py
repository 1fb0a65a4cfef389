"""Contract 3's second kind of scorer: a network that looks at an image and a caption together and gives the pair a score.

What does not depend on the other side (embedding words, embedding regions) is computed once an item and kept without padding;
`score_pairs` then scores any list of pairs of them.

Legend: B items, N their tokens end to end, T tokens of a padded item, D width, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from datamodules.records import ImageBatch, TextBatch


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths end to end, nothing padded.

    Args:
        states_ND: All tokens.
        lengths_B: int64, tokens of every sequence.
    """

    states_ND: Tensor
    lengths_B: Tensor

    @classmethod
    def of(cls, states_BTD: Tensor, mask_BT: Tensor) -> Ragged:
        """The real tokens (True) of padded sequences."""
        return cls(states_BTD[mask_BT], mask_BT.sum(1))

    @classmethod
    def even(cls, states_BTD: Tensor) -> Ragged:
        """Sequences of one length."""
        lengths_B = torch.full(states_BTD.shape[:1], states_BTD.shape[1], device=states_BTD.device)
        return cls(states_BTD.flatten(0, 1), lengths_B)

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """One after the other."""
        return cls(torch.cat([part.states_ND for part in parts]), torch.cat([part.lengths_B for part in parts]))

    def __len__(self) -> int:
        return len(self.lengths_B)

    def starts(self) -> Tensor:
        """[B]: row of the first token of every sequence."""
        return self.lengths_B.cumsum(0) - self.lengths_B

    def take(self, rows_P: Tensor) -> Ragged:
        """These sequences, in this order; a row may be there several times."""
        lengths_P = self.lengths_B[rows_P]
        ends_P = lengths_P.cumsum(0)
        shift_P = self.starts()[rows_P] - (ends_P - lengths_P)
        tokens = int(lengths_P.sum())
        index_N = torch.repeat_interleave(shift_P, lengths_P, output_size=tokens) + torch.arange(tokens, device=rows_P.device)
        return Ragged(self.states_ND[index_N], lengths_P)

    def padded(self, rows_P: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """These sequences (by default all), padded at the end: [P, T, D], and [P, T] with True on real tokens (None: all are)."""
        chosen = self if rows_P is None else self.take(rows_P)
        place_T = torch.arange(int(chosen.lengths_B.max()), device=self.lengths_B.device)
        mask_PT = place_T < chosen.lengths_B[:, None]
        if bool(mask_PT.all()):
            return chosen.states_ND.unflatten(0, mask_PT.shape), None
        row_PT = torch.where(mask_PT, chosen.starts()[:, None] + place_T, 0)  # padding repeats the first: nothing looks at it
        return chosen.states_ND.index_select(0, row_PT.flatten()).unflatten(0, row_PT.shape), mask_PT


class PairScorer(Protocol):
    """What full-rank evaluation and the mining of hard negatives ask of a network."""

    def embed_images(self, batch: ImageBatch) -> Ragged:
        """Embedded regions."""

    def embed_texts(self, batch: TextBatch) -> Ragged:
        """Embedded words."""

    def score_pairs(self, images: Ragged, texts: Ragged, image_P: Tensor, text_P: Tensor) -> Tensor:
        """Raw scores [P], fp32; fastest where all pairs have equally many tokens (then nothing is padded or masked)."""
