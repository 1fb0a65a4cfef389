"""Layers of BERT's shape in models of Hugging Face, run through our one door to attention (attention.py).

VisualBERT, BLIP's text side and BridgeTower have layers with the same parts, and each multiplies out its own attention maps.
Here their parts are called one by one: attention is fused, and hands out queries and keys where they are asked for. Adapters
find the parts where they were: a wrapped linear layer is called in its place, and hooks on `output` and its norm are called.

    attention   h = LN(x + Out(softmax(q k^T / sqrt(d)) v))        of x itself, or of other states (cross-attention)
    FFN         y = LN(h + Fc2(GELU(Fc1(h))))

Legend: B rows, T tokens, M tokens that are looked at, U memories (rows may share one), D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_modules.networks.attention import Attended, attend


@dataclass(frozen=True)
class Memory:
    """What a cross-attention looks at.

    Args:
        states_UMD: The states. Keys and values are made of them once, however many rows look at them.
        mask_BM: bool, True = a real token; None = all are.
        row_B: The memory of every row (int64); None = row i looks at memory i.
    """

    states_UMD: Tensor
    mask_BM: Tensor | None = None
    row_B: Tensor | None = None


def self_attention(
    attention: nn.Module, x_BTD: Tensor, mask_BT: Tensor | None, *, wanted: bool = False, first: bool = False
) -> tuple[Tensor, Attended | None]:
    """A layer's attention with its residual and norm.

    Args:
        attention: Of a layer: it has `self.query`, `self.key`, `self.value` and `output`.
        x_BTD: States.
        mask_BT: bool, True = a real token; None = all are.
        wanted: Also give queries and keys.
        first: Compute only the first token, which looks at all.
    """
    part: Any = attention
    queries, keys, values = (_heads(part, linear(x_BTD)) for linear in (part.self.query, part.self.key, part.self.value))
    access = Attended(queries, keys, mask_BT) if wanted else None
    if first:
        x_BTD, queries = x_BTD[:, :1], queries[:, :, :1]
    return part.output(attend(queries, keys, values, mask_BT, _dropout(part)), x_BTD), access


def cross_attention(attention: nn.Module, x_BTD: Tensor, memory: Memory) -> Tensor:
    """Likewise, of what another model saw.

    Args:
        attention: As of `self_attention`.
        x_BTD: States.
        memory: What they look at.
    """
    part: Any = attention
    queries = _heads(part, part.self.query(x_BTD))
    keys, values = (_heads(part, linear(memory.states_UMD)) for linear in (part.self.key, part.self.value))
    if memory.row_B is not None:
        keys, values = keys.index_select(0, memory.row_B), values.index_select(0, memory.row_B)
    return part.output(attend(queries, keys, values, memory.mask_BM, _dropout(part)), x_BTD)


def feed_forward(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    """A layer's FFN with its residual and norm."""
    part: Any = layer
    return part.output(part.intermediate(x_BTD), x_BTD)


def _heads(attention: Any, states_BTD: Tensor) -> Tensor:
    """[B, H, T, D of a head]."""
    return states_BTD.unflatten(-1, (attention.self.num_attention_heads, -1)).transpose(1, 2)


def _dropout(attention: Any) -> float:
    return float(attention.self.dropout.p) if attention.self.training else 0.0
