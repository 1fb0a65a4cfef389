"""Activation checkpointing for the blocks of any library's transformer.

The libraries' own switches do not fit adapters on frozen towers. Hugging Face checkpoints a layer only while the layer is in
training mode, but frozen layers stay in eval mode, so its switch silently does nothing; and since transformers 5.23 it wraps
`forward`, so that adapters put on with hooks fall outside. Here the whole call of a block, hooks included, is checkpointed,
whenever gradients are recorded and whatever mode the block is in. Always non-reentrant: the reentrant kind returns no gradient
when the block's input needs none, and behind frozen embeddings it never does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_modules.networks.mixed import mixed

Call = Callable[..., Any]
_BINDS = "_call_binds"  # the attribute of a block that holds what `bind_calls` was given


def bind_calls(block: nn.Module, bind: Callable[[Call], Call]) -> None:
    """Say what a call of this block reads besides its arguments: state that may be another by the time of the backward pass.

    Args:
        block: The block, checkpointed or not (yet).
        bind: Gives the call with the state of now, whenever it is called again. A bound method, so that copies follow.
    """
    vars(block).setdefault(_BINDS, []).append(bind)


class _Checkpointed:
    """Mixed in before a block's class: same parameters, same keys, but the call keeps only its input, and what is bound to it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = super().__call__  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return call(*args, **kwargs)
        for bind in vars(self).get(_BINDS, ()):
            call = bind(call)
        return checkpoint(call, *args, use_reentrant=False, **kwargs)


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Make every block recompute its activations in the backward pass (in place; keys and parameters stay as they are)."""
    for block in blocks:
        if not isinstance(block, _Checkpointed):
            block.__class__ = mixed("Checkpointed", _Checkpointed, type(block))
