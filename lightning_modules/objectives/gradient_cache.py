"""Large contrastive batches on small memory: encode in chunks, keep only the embeddings, recompute in the backward pass.

The idea is gradient caching (Gao et al. 2021, arXiv 2101.06983), written as one non-reentrant checkpoint a chunk: autograd
then does the two passes by itself, gradients are exact, random states are restored (dropout is the same in both passes), and
DDP sees one ordinary backward pass. Peak memory is one chunk's activations plus all embeddings; the price is one more forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Batch = TypeVar("Batch")


def slice_batch(batch: Batch, start: int, stop: int) -> Batch:
    """Rows `start:stop` of a batch dataclass: of its tensors, its tuples, and the batches inside it (as views, no copies)."""

    def cut(value: Any) -> Any:
        if isinstance(value, (Tensor, tuple)):
            return value[start:stop]
        return slice_batch(value, start, stop) if is_dataclass(value) and not isinstance(value, type) else value

    changes = {field.name: cut(getattr(batch, field.name)) for field in fields(batch)}  # type: ignore[arg-type]
    return replace(batch, **changes)  # type: ignore[type-var]


def encode_in_chunks(encode: Callable[[Batch], Tensor], batch: Batch, chunk: int | None) -> Tensor:
    """`encode(batch)` [B, D], computed `chunk` rows at a time; values and gradients are those of the whole batch.

    That holds for encoders that treat rows independently; batch norm in training mode does not, it would see chunks
    (`RetrievalModule` refuses it).

    Args:
        encode: Turns a batch into one row an item, e.g. `network.encode_images`.
        batch: A batch dataclass with a length.
        chunk: Rows encoded at once; None (or at least the batch's length) = all, without recomputation.
    """
    rows = len(batch)  # type: ignore[arg-type]
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if chunk is None or chunk >= rows:
        return encode(batch)
    parts = []
    for start in range(0, rows, chunk):
        part = slice_batch(batch, start, start + chunk)
        if torch.is_grad_enabled():
            parts.append(checkpoint(encode, part, use_reentrant=False))
        else:
            parts.append(encode(part))
    return torch.cat(parts)
