"""FLOPs of a transformer by hand: what the benchmarks predict, and compare with what torch counts."""

from __future__ import annotations

from collections.abc import Sequence


def transformer_flops(
    width: int, ffn_width: int, layers: int, tokens: int, mids: Sequence[int] = (), *,
    stem: int = 0, pooled: bool = False, fused: bool = False,
) -> tuple[int, int]:  # fmt: skip
    """FLOPs of one item's pass through a transformer: (forward, backward).

    Per token and layer, forward: 8 d^2 in queries, keys, values and output, 4 d f in the FFN, 4 N d in attention, 4 d m in an
    adapter of width m. Backward: a linear layer once for its input and once for its weight (frozen: only for its input),
    attention twice its forward (a fused kernel 2.5 times), an adapter twice. Below the first adapter nothing is
    back-propagated: not through layer 0's attention and FFN, nor to that adapter's input.

    Args:
        width: d.
        ffn_width: f.
        layers: How many.
        tokens: N, of the item.
        mids: Middle widths of the adapters of a frozen network; none = everything trains.
        stem: FLOPs of the patch embedding.
        pooled: The last layer computes one query, and output, FFN and adapters of one token.
        fused: Attention is one kernel, which recomputes its scores in the backward pass.
    """
    again = 2.5 if fused else 2
    forward, backward = float(stem), 0.0 if mids else float(stem)
    for layer in range(layers):
        rows = 1 if pooled and layer == layers - 1 else tokens
        linear = tokens * 6 * width**2 + rows * (2 * width**2 + 4 * width * ffn_width)
        attention = rows * 4 * tokens * width
        adapters = sum(rows * 4 * width * mid for mid in mids)
        forward += linear + attention + adapters
        backward += 2 * adapters
        if not mids:
            backward += 2 * linear + again * attention
        elif layer > 0:
            backward += linear + again * attention
        else:
            backward -= rows * 2 * width * mids[0]
    return round(forward), round(backward)
