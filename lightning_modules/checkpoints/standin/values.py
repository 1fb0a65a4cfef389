"""Random values of a sane scale, quickly: one block of normal numbers, read again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

_BLOCK = 4_000_037  # numbers, a prime: rows of a matrix are not the same
_STD = 0.02


def random_module(module: nn.Module) -> nn.Module:
    """A module that was built on the meta device, on the processor with random values. (What was tied is not tied any more.)"""
    module.to_empty(device="cpu")
    fill_random(module.state_dict())
    return module


def fill_random(state: Mapping[str, Tensor]) -> None:
    """Values in place: matrices N(0, 0.02), scales and variances of norms 1, biases about 0, CLIP's temperature, counters 0."""
    offset = 0
    with torch.no_grad():
        for name, tensor in state.items():
            leaf = name.rpartition(".")[2]
            if not tensor.is_floating_point():
                if tensor.ndim == 2 and "position_ids" in leaf:
                    tensor.copy_(torch.arange(tensor.shape[1]).expand_as(tensor))
                else:
                    tensor.zero_()
            elif tensor.ndim == 0 or tensor.numel() == 1:
                tensor.fill_(-10.0 if "bias" in leaf else math.log(1 / 0.07))
            else:
                offset = _draw(tensor, offset)
                if leaf in ("running_var", "weight", "gamma") and tensor.ndim == 1:
                    tensor.add_(1.0)


def _draw(tensor: Tensor, offset: int) -> int:
    """Returns where the next tensor goes on reading."""
    flat, done = tensor.view(-1), 0
    while done < len(flat):
        count = min(len(flat) - done, _BLOCK - offset)
        flat[done : done + count] = _block()[offset : offset + count]
        done, offset = done + count, (offset + count) % _BLOCK
    return offset


@cache
def _block() -> Tensor:
    return torch.empty(_BLOCK).normal_(0, _STD, generator=torch.Generator().manual_seed(17))
