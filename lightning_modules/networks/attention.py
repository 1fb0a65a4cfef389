"""The one door to a transformer's attention (losses, metrics, figures and notebooks all come through here).

Our transformers run fused attention, which never forms a map. Asked for named layers, they also hand out those layers' queries
and keys, from which maps are made where they are needed, with gradients, and nowhere else.

Legend: B batch, H heads, T tokens (Q of queries, K of keys), D head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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


def attend(
    queries_BHQD: Tensor, keys_BHKD: Tensor, values_BHKD: Tensor, mask_BK: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v as [B, Q, H * D], in one fused kernel. `mask_BK`: bool, True = a real token."""
    mask_B11K = None if mask_BK is None else mask_BK[:, None, None, :]
    context_BHQD = F.scaled_dot_product_attention(queries_BHQD, keys_BHKD, values_BHKD, attn_mask=mask_B11K, dropout_p=dropout)
    return context_BHQD.transpose(1, 2).flatten(2)
