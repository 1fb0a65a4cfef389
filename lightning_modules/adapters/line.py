"""Tensors between two states: what the dial of a trained run turns (checkpoints/dial.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def line(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Each tensor of `end` on the straight line from `start` (alpha 0) to `end` (alpha 1), both exact to the last bit. Whole
    numbers, such as a count of batches, are those of the end."""
    return {name: torch.lerp(start[name], each, alpha) if each.is_floating_point() else each for name, each in end.items()}


def times(state: Mapping[str, Tensor], alpha: float, turned: Callable[[str], bool]) -> dict[str, Tensor]:
    """A state with the tensors of some names times alpha: those of a last layer, whose output then is alpha times what it was."""
    return {name: each * alpha if turned(name) else each for name, each in state.items()}
