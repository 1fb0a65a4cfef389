"""What the processes of a run tell each other: the one door to `torch.distributed`.

Three things that go wrong elsewhere cannot go wrong behind it:

- **NCCL takes tensors of its own GPU only.** A tensor goes to where the process group computes, and what comes back to where the
  tensor was.
- **Objects need no GPU.** They travel over a second group, of gloo, which every process of a run is in.
- **A collective has a time-out** (half an hour under Lightning), and the processes do not always come to it together: one
  scores captions, writes a checkpoint or a matrix of scores, or has more left to do than the others. They `meet` first, or one
  does the work `by_first`. Both wait over the second group, which has no time-out, so no collective of the first is ever held.
  A process that ends tears its connections: those that wait for it end as well, at once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from datamodules.errors import AgreedError, InputError

_Result = TypeVar("_Result")
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN} if dist.is_available() else {}
_NO_LIMIT = timedelta(days=10_000)  # as Lightning's own barrier around `prepare_data`


def several() -> bool:
    """Whether there are other processes to talk to."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Of this process; 0 where it is alone."""
    return dist.get_rank() if several() else 0


def world_size() -> int:
    """Processes."""
    return dist.get_world_size() if several() else 1


# ------------------------------------------------------------------------------------------------------------------ tensors


def device_of_group(tensor: Tensor) -> torch.device:
    """Where the process group wants a tensor: NCCL on this process's GPU, others where it is."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else tensor.device


def reduced_later(tensor: Tensor, operation: Literal["sum", "max", "min"]) -> Callable[[], Tensor]:
    """Begin a reduction over all processes and go on. What comes back waits for it and gives the result, where the tensor is."""
    if not several():
        return tensor.clone
    there = tensor.to(device_of_group(tensor), copy=True)
    work = dist.all_reduce(there, op=_OPERATIONS[operation], async_op=True)

    def result() -> Tensor:
        work.wait()
        return there.to(tensor.device)

    return result


def reduced(tensor: Tensor, operation: Literal["sum", "max", "min"] = "sum") -> Tensor:
    """The sum, largest or smallest of all processes' tensors, in all of them, where the tensor is."""
    return reduced_later(tensor, operation)()


def gathered(tensor: Tensor) -> list[Tensor]:
    """All processes' tensors in the order of ranks, where the tensor is: of one shape and type everywhere."""
    if not several():
        return [tensor]
    there = tensor.to(device_of_group(tensor)).contiguous()
    parts = [torch.empty_like(there) for _ in range(world_size())]
    dist.all_gather(parts, there)
    return [part.to(tensor.device) for part in parts]


def gathered_with_gradient(rows: Tensor) -> Tensor:
    """The rows of all processes (of each as many), in the order of ranks; a row's gradient is the sum over all of them."""
    return _Gathered.apply(rows) if several() else rows


class _Gathered(torch.autograd.Function):
    """torch's own (`torch.distributed.nn.functional`) is deprecated since 2.15."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return torch.cat(gathered(rows))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        share = len(gradients[0]) // world_size()
        return reduced(gradients[0])[rank() * share : (rank() + 1) * share]


# ------------------------------------------------------------------------------------------------------- objects, and waiting


class _Patient:
    """The second group, and the first one that it belongs to."""

    of: Any = None
    group: Any = None


def connect() -> None:
    """Make the second group, where there is none yet. All processes make it together, so the sooner the better: what they wait
    for here has the first group's time-out still."""
    if several() and _Patient.of is not dist.group.WORLD:
        _Patient.group = dist.new_group(backend="gloo", timeout=_NO_LIMIT)
        _Patient.of = dist.group.WORLD


def meet() -> None:
    """Wait for all processes, however long that takes. Before a collective behind work that takes some longer than others."""
    if several():
        connect()
        dist.barrier(_Patient.group)


def told_objects(own: Any) -> list[Any]:
    """What each process tells, in the order of ranks."""
    if not several():
        return [own]
    connect()
    told: list[Any] = [None] * world_size()
    dist.all_gather_object(told, own, group=_Patient.group)
    return told


def told_by(value: Any, source: int = 0) -> Any:
    """What one process tells all; the value of the others is not looked at."""
    if not several():
        return value
    connect()
    box = [value]
    dist.broadcast_object_list(box, source, group=_Patient.group)
    return box[0]


def by_first(work: Callable[[], _Result]) -> _Result:
    """Work that the first process does alone, however long it takes: all get its result.

    Raises:
        AgreedError: In all processes, where the work raises an `InputError`; in the others, where it raises something else.
    """
    if not several():
        return work()
    connect()
    if rank():
        result, error = told_by(None)
        if error is not None:
            raise AgreedError(error)
        return result
    try:
        result = work()
    except InputError as error:
        told_by((None, str(error)))
        raise AgreedError(str(error)) from error
    except Exception as error:
        told_by((None, f"process 0: {type(error).__name__}: {error}"))
        raise
    told_by((result, None))
    return result
