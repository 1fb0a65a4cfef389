"""The one door to a transformer's attention (losses, metrics, figures and notebooks all come through here).

Our transformers run fused attention, which never forms a map. Asked for named layers, they also hand out those layers' queries
and keys, from which maps are made where they are needed, with gradients, and nowhere else.

Legend: B batch, H heads, T tokens (Q of queries, K of keys), D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.records import PairBatch


@dataclass(frozen=True)
class Attended:
    """Queries and keys of one layer as its attention used them, carrying gradients when the forward pass did.

    Args:
        queries_BHQD: Queries, not scaled.
        keys_BHKD: Keys.
        mask_BK: bool, True = a real token; None = all are.
    """

    queries_BHQD: Tensor
    keys_BHKD: Tensor
    mask_BK: Tensor | None = None

    def rows(self, rows: Tensor) -> Attended:
        """Of these pairs (int64) only."""
        mask_BK = None if self.mask_BK is None else self.mask_BK[rows]
        return Attended(self.queries_BHQD[rows], self.keys_BHKD[rows], mask_BK)

    def scores(self) -> Tensor:
        """[B, H, Q, K]: q k^T / sqrt(D) in fp32, -inf at padded keys."""
        with torch.autocast(self.queries_BHQD.device.type, enabled=False):  # it would take the product back to half precision
            queries, keys = self.queries_BHQD.float(), self.keys_BHKD.float()
            scores_BHQK = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
        if self.mask_BK is not None:
            scores_BHQK = scores_BHQK.masked_fill(~self.mask_BK[:, None, None, :], float("-inf"))
        return scores_BHQK

    def maps(self) -> Tensor:
        """[B, H, Q, K]: softmax over the keys, rows sum to 1. Rows of padded queries are computed as well; mask them."""
        return torch.softmax(self.scores(), dim=-1)


@dataclass(frozen=True)
class Items:
    """Where the words or regions of each pair are in the sequence: `place_BN` (int64) and `mask_BN` (bool, True = an item).

    Words are the content tokens: begin, end and padding are no items.
    """

    place_BN: Tensor
    mask_BN: Tensor

    def of(self, states_BHSD: Tensor) -> Tensor:
        """The items' rows of queries or keys: [B, H, N, D], contiguous."""
        batch, _, length, _ = states_BHSD.shape
        row_BN = torch.arange(batch, device=self.place_BN.device)[:, None] * length + self.place_BN
        # all heads of a token lie side by side in memory: selecting tokens is several times faster than gathering single numbers
        states_XHD = states_BHSD.transpose(1, 2).flatten(0, 1)
        return states_XHD.index_select(0, row_BN.flatten()).unflatten(0, row_BN.shape).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class Relations:
    """The attention of some layers over joint sequences of words and regions, and where these are.

    Args:
        attention: By layer (0-based).
        words: The captions' content tokens, in order.
        regions: The images' regions or patches, in order.
    """

    attention: dict[int, Attended]
    words: Items
    regions: Items


class HasRelations(Protocol):
    """A network with one sequence of words and regions: what IAIS and ISDa ask of it."""

    @property
    def num_layers(self) -> int: ...

    def relations(self, batch: PairBatch, layers: Sequence[int]) -> Relations:
        """Attention of these layers for every pair of the batch."""


def attend(
    queries_BHQD: Tensor, keys_BHKD: Tensor, values_BHKD: Tensor, mask_BK: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v as [B, Q, H * D], in one fused kernel. `mask_BK`: bool, True = a real token."""
    mask_B11K = None if mask_BK is None else mask_BK[:, None, None, :]
    context_BHQD = F.scaled_dot_product_attention(queries_BHQD, keys_BHKD, values_BHKD, attn_mask=mask_B11K, dropout_p=dropout)
    return context_BHQD.transpose(1, 2).flatten(2)
