"""NCCL of two processes that is not there: it takes tensors of the pretended GPU and nothing else, as the real one.

    with pretended_gpu(), strict_nccl() as calls:
        module.to("cuda"); module.training_step(batch.to("cuda"), 0)

The other process has what this one has, or with `empty` nothing but zeros. Objects and barriers may go over the group of gloo
only; `calls` counts what was called. Not seen, as with the pretended GPU: what happens inside of a backward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pretended_gpu
import pytest
import torch
import torch.distributed
from torch import Tensor

from lightning_modules import collectives

SIZE = 2


@contextmanager
def strict_nccl(rank: int = 0, empty: bool = False) -> Iterator[Counter[str]]:
    """Yields how often each collective was called."""
    calls: Counter[str] = Counter()
    gloo = object()

    def on_gpu(name: str, *tensors: Tensor) -> None:
        calls[name] += 1
        for tensor in () if pretended_gpu._in_backward else tensors:
            if not tensor.is_cuda:
                raise RuntimeError(f"{name}: No backend type associated with device type cpu")
            if not tensor.is_contiguous():
                raise RuntimeError(f"{name}: Tensors must be contiguous")

    def all_reduce(tensor: Tensor, op: Any = None, group: Any = None, async_op: bool = False) -> Any:
        on_gpu("all_reduce", tensor)
        if op == torch.distributed.ReduceOp.SUM and not empty:
            tensor.mul_(SIZE)
        return SimpleNamespace(wait=lambda: None) if async_op else None

    def all_gather(parts: Sequence[Tensor], tensor: Tensor, group: Any = None) -> None:
        on_gpu("all_gather", *parts, tensor)
        for place, part in enumerate(parts):
            part.copy_(torch.zeros_like(tensor) if empty and place != rank else tensor)

    def over_gloo(name: str, group: Any) -> None:
        calls[name] += 1
        if group is not gloo:
            raise RuntimeError(f"{name}: over NCCL, where it has a time-out and a GPU's memory")

    def new_group(backend: str, timeout: timedelta) -> Any:
        assert backend == "gloo"
        assert timeout > timedelta(days=1)
        return gloo

    def all_gather_object(told: list[Any], own: Any, group: Any = None) -> None:
        over_gloo("all_gather_object", group)
        told[:] = [type(own)() if empty and place != rank else own for place in range(SIZE)]

    pretended = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: SIZE, get_rank=lambda: rank,
        get_backend=lambda: "gloo" if pretended_gpu._in_backward else "nccl", group=SimpleNamespace(WORLD=object()),
        new_group=new_group, all_reduce=all_reduce, all_gather=all_gather, all_gather_object=all_gather_object,
        barrier=lambda group=None: over_gloo("barrier", group),
        broadcast_object_list=lambda box, source, group=None: over_gloo("broadcast_object_list", group),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "dist", pretended)
        patch.setattr(collectives, "_Patient", type("Patient", (), {"of": None, "group": None}))
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        yield calls
