"""Attention in bf16 on a processor: small separate products against torch's fused kernel, forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/attention.py --out attention.json

Ours is `lightning_modules.networks.attention.attention_context`, which takes separate products for maps of up to 128 x 128, and
the fused kernel above. Outputs and gradients of both are compared first. Prediction: a backward pass is five products for two,
so no kernel should need more than about 2.5 times its forward pass; the fused one takes five to ten times as long in bf16. Goal:
ours not slower than it by more than a tenth, and at most half of it for maps of up to 64 x 64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness

# what: batch, heads, queries, keys, width of a head
SHAPES = {
    "I-Tuning, 80 captions on a 7 x 7 grid": (80, 9, 20, 49, 64),
    "I-Tuning, 4 images of 5 captions, CLIP-ViT": (4, 12, 100, 197, 64),
    "UNITER, 64 pairs": (64, 12, 48, 48, 64),
    "UNITER, 16 pairs of 100 regions": (16, 12, 120, 120, 64),
    "BEiT-3, 16 captions": (16, 12, 64, 64, 64),
    "BEiT-3, 8 images at 224 px": (8, 12, 197, 197, 64),
}
GOAL, GOAL_SMALL = 1.1, 0.5


def turns(shape: Sequence[int]) -> dict[str, Callable[[], Mapping[str, float]]]:
    """A forward and a backward pass of either way.

    Raises:
        SystemExit: They do not agree.
    """
    import torch
    import torch.nn.functional as F

    from lightning_modules.networks.attention import attention_context

    batch, heads, queries, keys, width = shape
    draw = torch.Generator().manual_seed(0)

    def random(length: int) -> torch.Tensor:
        return torch.randn(batch, length, heads, width, generator=draw).bfloat16().transpose(1, 2)

    inputs = [random(length).requires_grad_() for length in (queries, keys, keys)]
    upstream = random(queries)

    def step(way: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        context = way(*inputs)
        return [context, *torch.autograd.grad(context, inputs, upstream)]

    for mine, theirs in zip(step(attention_context), step(F.scaled_dot_product_attention), strict=True):
        apart = float((mine - theirs).float().norm() / theirs.float().norm())
        if apart > 0.02:
            raise SystemExit(f"{shape}: ours differs from the fused kernel by {apart:.1%}")
    return {
        "fused": lambda: harness.timed(lambda: step(F.scaled_dot_product_attention)),
        "ours": lambda: harness.timed(lambda: step(attention_context)),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, return what --out would hold."""
    options = harness.command_line(__doc__, threads=1, rounds=15).parse_args(arguments)
    import torch

    torch.set_num_threads(options.threads)
    rows, steps = [], []
    for what, shape in SHAPES.items():
        of_shape = harness.interleave(turns(shape), options.rounds)
        found = {name: harness.summary(of_shape, name, "fused") for name in ("fused", "ours")}
        goal = GOAL_SMALL if shape[2] * shape[3] <= 64**2 else GOAL
        rows.append({"what": what, "shape": shape, "goal": goal, **found})
        steps += [{"what": what, **step} for step in of_shape]
    result = {**harness.heading("attention", "cpu", {"rounds": options.rounds}), "rows": rows, "steps": steps}
    cells = [
        (
            row["what"], f"{row['shape'][2]} x {row['shape'][3]}", f"{1000 * row['fused']['cpu_s']:.1f}",
            f"{1000 * row['ours']['cpu_s']:.1f}", harness.spread(row["ours"]["cpu_ratio"], ".2f"), f"{row['goal']}",
        )
        for row in rows
    ]  # fmt: skip
    print(harness.machine_line(result, steps), "", sep="\n")
    print(harness.table(("what", "map", "fused CPU ms", "ours CPU ms", "ours / fused", "goal"), cells))
    harness.write(result, options.out)
    return result


if __name__ == "__main__":
    main()
