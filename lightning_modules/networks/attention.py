"""The one door to a transformer's attention (losses, metrics, figures and notebooks all come through here).

Our transformers run attention that keeps no map. Asked for named layers, they also hand out those layers' queries
and keys, from which maps are made where they are needed, with gradients, and nowhere else.

Legend: B batch, H heads, T tokens (Q of queries, K of keys), D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
    """softmax(q k^T / sqrt(D)) v as [B, Q, H * D]. `mask_BK`: bool, True = a real token."""
    mask_B11K = None if mask_BK is None else mask_BK[:, None, None, :]
    return attention_context(queries_BHQD, keys_BHKD, values_BHKD, mask_B11K, dropout).transpose(1, 2).flatten(2)


def attention_context(
    queries_BHQD: Tensor,
    keys_BHKD: Tensor,
    values_BHKD: Tensor,
    mask_B11K: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale q k^T) v as [B, H, Q, D], by whatever is fastest where it runs; no map is kept.

    Args:
        queries_BHQD: Queries.
        keys_BHKD: Keys.
        values_BHKD: Values.
        mask_B11K: bool, True = a real token; None = all are.
        dropout: Of the maps.
        scale: None = 1 / sqrt(D).
    """
    if _is_faster_in_products(queries_BHQD, keys_BHKD, values_BHKD, dropout):
        scale = queries_BHQD.shape[-1] ** -0.5 if scale is None else scale
        return _InProducts.apply(queries_BHQD, keys_BHKD, values_BHKD, mask_B11K, scale)
    return F.scaled_dot_product_attention(
        queries_BHQD, keys_BHKD, values_BHKD, attn_mask=mask_B11K, dropout_p=dropout, scale=scale
    )


_SMALL = 128**2  # entries of a map: from about twice as many on, the fused kernel is as fast


def _is_faster_in_products(queries_BHQD: Tensor, keys_BHKD: Tensor, values_BHKD: Tensor, dropout: float) -> bool:
    """The processor's fused kernel in bf16 takes ten times as long backward as these small products do (docs/speed.md)."""
    return (
        queries_BHQD.device.type == "cpu"
        and queries_BHQD.dtype == keys_BHKD.dtype == values_BHKD.dtype == torch.bfloat16
        and queries_BHQD.shape[-2] * keys_BHKD.shape[-2] <= _SMALL
        and not dropout
    )


class _InProducts(torch.autograd.Function):
    """Attention as separate products, whose backward pass makes the maps anew: it keeps what the fused kernel keeps."""

    @staticmethod
    def forward(
        ctx: Any, queries_BHQD: Tensor, keys_BHKD: Tensor, values_BHKD: Tensor, mask_B11K: Tensor | None, scale: float
    ) -> Tensor:
        context_BHQD = _maps(queries_BHQD, keys_BHKD, mask_B11K, scale).to(values_BHKD.dtype) @ values_BHKD
        ctx.save_for_backward(queries_BHQD, keys_BHKD, values_BHKD, mask_B11K, context_BHQD)
        ctx.scale = scale
        return context_BHQD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries_BHQD, keys_BHKD, values_BHKD, mask_B11K, context_BHQD = ctx.saved_tensors
        (of_context_BHQD,) = gradients
        maps_BHQK = _maps(queries_BHQD, keys_BHKD, mask_B11K, ctx.scale)
        for_queries, for_keys, for_values = ctx.needs_input_grad[:3]
        of_queries = of_keys = of_values = None
        if for_values:
            of_values = maps_BHQK.to(values_BHKD.dtype).transpose(-2, -1) @ of_context_BHQD
        if for_queries or for_keys:
            # of the softmax: map * (its gradient - their sum over the keys, which is the context times its gradient)
            together_BHQ1 = (of_context_BHQD.float() * context_BHQD.float()).sum(-1, keepdim=True)
            of_maps_BHQK = (of_context_BHQD @ values_BHKD.transpose(-2, -1)).float()
            of_scores_BHQK = (maps_BHQK * (of_maps_BHQK - together_BHQ1) * ctx.scale).to(queries_BHQD.dtype)
            of_queries = of_scores_BHQK @ keys_BHKD if for_queries else None
            of_keys = of_scores_BHQK.transpose(-2, -1) @ queries_BHQD if for_keys else None
        return of_queries, of_keys, of_values, None, None


def _maps(queries_BHQD: Tensor, keys_BHKD: Tensor, mask_B11K: Tensor | None, scale: float) -> Tensor:
    """In fp32, as inside the fused kernel: eight bits of a large score would be too few."""
    with torch.autocast(queries_BHQD.device.type, enabled=False):
        scores_BHQK = (queries_BHQD.float() * scale) @ keys_BHKD.float().transpose(-2, -1)
    if mask_B11K is not None:
        scores_BHQK.masked_fill_(~mask_B11K, float("-inf"))
        # a row without any key gets zeros, as in the fused kernel, and not 0 / 0
        return torch.softmax(scores_BHQK, -1).masked_fill_(~mask_B11K.any(-1, keepdim=True), 0.0)
    return torch.softmax(scores_BHQK, -1)
