"""Activation checkpointing for the blocks of any library's transformer.

The libraries' own switches do not fit adapters on frozen towers. Hugging Face checkpoints a layer only while the layer is in
training mode, but frozen layers stay in eval mode, so its switch silently does nothing; and since transformers 5.23 it wraps
`forward`, so that adapters put on with hooks fall outside. Here the whole call of a block, hooks included, is checkpointed,
whenever gradients are recorded and whatever mode the block is in. Always non-reentrant: the reentrant kind returns no gradient
when the block's input needs none, and behind frozen embeddings it never does.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class _Checkpointed:
    """Mixed in before a block's class: same parameters, same keys, but the call keeps only its input."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = super().__call__  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return call(*args, **kwargs)
        return checkpoint(call, *args, use_reentrant=False, **kwargs)


@cache
def _checkpointed_class(block_class: Any) -> Any:
    return type(f"Checkpointed{block_class.__name__}", (_Checkpointed, block_class), {})


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Make every block recompute its activations in the backward pass (in place; keys and parameters stay as they are)."""
    for block in blocks:
        if not isinstance(block, _Checkpointed):
            kind: Any = type(block)  # mypy does not see that classes are hashable
            block.__class__ = _checkpointed_class(kind)
