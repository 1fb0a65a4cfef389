"""Frozen weights in bfloat16: half the memory. What is computed stays in the precision that the run has.

A linear layer, embedding or convolution whose parameters are all frozen keeps its weight in bfloat16 and makes it as precise as
its input at use, a layer at a time; what the backward pass keeps is the bfloat16 weight. Everything else stays in fp32: norms,
biases, bare parameters, convolutions over pixels, and all that trains. So the only difference is the rounding of these weights
(8 bits of mantissa).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.networks.mixed import mixed


def halve_frozen(network: nn.Module) -> int:
    """Turn the frozen weights into bfloat16, in place; call it when `requires_grad` is set. Keys stay as they are.

    Args:
        network: Any network. Layers that compute in a way of their own, and those inside torch's attention, are left alone.

    Returns:
        Parameters that are in bfloat16 now.
    """
    inside = {id(part) for module in network.modules() if isinstance(module, nn.MultiheadAttention) for part in module.modules()}
    halved = 0
    for module in network.modules():
        mixin = _mixin_of(module)
        if mixin is None or id(module) in inside or any(parameter.requires_grad for parameter in module.parameters()):
            continue
        weight: Any = module.weight
        weight.data = weight.data.to(torch.bfloat16)
        untyped: Any = module
        untyped.__class__ = mixed("Half", mixin, type(module))
        halved += weight.numel()
    return halved


_COLORS = 3


class _Linear(torch.autograd.Function):
    """`F.linear` with a frozen weight, which is kept for the backward pass as it is stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, _as_precise(weight, x), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,), grad = ctx.saved_tensors, grads[0]
        return grad @ weight.to(grad.dtype), None, None


def _as_precise(weight: Tensor, x: Tensor) -> Tensor:
    """Under autocast as it is: the operation is done in half precision anyway."""
    return weight if torch.is_autocast_enabled(x.device.type) else weight.to(x.dtype)


class _HalfLinear:
    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        if own.bias is not None and not torch.is_autocast_enabled(x.device.type):
            x = x.to(own.bias.dtype)  # SigLIP 2 rounds its patches to what it finds the weight to be
        result: Tensor = _Linear.apply(x, own.weight, own.bias)
        return result


class _HalfEmbedding:
    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = super().forward(ids)  # type: ignore[misc]
        return found.float()


class _HalfConv:
    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        result: Tensor = own._conv_forward(x, _as_precise(own.weight, x), own.bias)
        return result


_MIXINS: dict[Any, Any] = {
    nn.Linear.forward: _HalfLinear,
    nn.Embedding.forward: _HalfEmbedding,
    nn.Conv2d.forward: _HalfConv,
}


def _mixin_of(module: nn.Module) -> Any:
    """By what a layer computes, not by its class: a library's subclass may do the same. None for all others, and for what reads
    pixels: it is small, and some models round their pixels to what they find its weight to be."""
    if getattr(module, "in_channels", None) == _COLORS:
        return None
    return _MIXINS.get(type(module).forward) if not getattr(module, "max_norm", None) else None
