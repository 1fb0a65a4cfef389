"""What a training step keeps in memory, in pure torch: saved activations, gradients, optimizer state.

These are the columns of MultiWay-Adapter's Table 1 (tunable parameters, their percent of all, memory). On a GPU the
memory column is the allocator's peak; a CPU process has no such number (its resident size is mostly libraries and
caches), so there the sum of what training has to keep stands in: saved activations + gradients + optimizer state. It
leaves out the parameters themselves and the work space of single operations, which is why CPU and device bytes are never
compared with each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

_CASTS = frozenset({"ToCopyBackward0", "TBackward0", "TransposeBackward0", "PermuteBackward0", "ViewBackward0"})


def gradient_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of the gradients that exist now."""
    return sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None)


def optimizer_state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state (moments, step counters)."""
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))


class _Saved:
    """What autograd keeps instead of a saved tensor: dies when the graph lets go of it, and says so to the counter."""

    __slots__ = ("counter", "key", "tensor")

    def __init__(self, counter: SavedBytes, key: int, tensor: Tensor) -> None:
        self.counter, self.key, self.tensor = counter, key, tensor

    def __del__(self) -> None:
        self.counter._release(self.key)


class SavedBytes:
    """Counts the bytes that autograd saves for backward while it is entered.

        with SavedBytes(exclude=model) as saved:
            model(batch).sum().backward()
        saved.peak_bytes

    A storage counts once however many saved tensors are views of it, and as long as one of them lives, so `peak_bytes` is
    the largest amount held at one moment: several forward-backward rounds (gradient accumulation, chunked encoding) are
    not added up. Storages of the parameters and buffers of `exclude` do not count; copies of them (autocast's bf16
    weights) and input batches do. The bits that backward sees are the same tensors, so results do not change.

    `peak_copy_bytes` are those copies at that moment, and what an adapter makes of weights (DoRA's sums, VeRA's slices): the
    part that stays as it is where the batch grows. It is known by what it is made of and looks like: no gradient comes to it
    but a weight's own, and its sides are those of weights. (So is, rarely, a batch that no trained layer has seen yet.)

    Activation checkpointing: what a checkpointed segment keeps (its inputs) counts. What it recomputes in backward counts
    with the reentrant variant; the non-reentrant one (torch's default) hides it from outer hooks, so there `peak_bytes`
    lacks the activations of one segment. Compiled regions count what the compiled graph saves.
    """

    def __init__(self, exclude: nn.Module | None = None) -> None:
        """Counts nothing yet.

        Args:
            exclude: Module whose parameters and buffers do not count.
        """
        tensors = [] if exclude is None else [*exclude.parameters(), *exclude.buffers()]
        self._excluded = {_storage_key(tensor) for tensor in tensors}
        self._sides = {side for tensor in tensors if tensor.ndim > 1 for side in tensor.shape}
        self._holders: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._copies: set[int] = set()
        self._hooks: saved_tensors_hooks | None = None
        self.live_bytes = self._live_copy_bytes = 0
        self.peak_bytes = self.peak_copy_bytes = 0

    def __enter__(self) -> Self:
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Stops counting; what is saved already keeps working."""
        if self._hooks is not None:
            self._hooks.__exit__(kind, error, trace)
            self._hooks = None

    def _pack(self, tensor: Tensor) -> Tensor | _Saved:
        key, source = _storage_key(tensor), tensor
        # Detached (same memory): a saved output that still knew its graph would keep that graph alive in a cycle.
        tensor = tensor.detach()
        if key in self._excluded or key == 0:
            return tensor
        if key not in self._holders:
            self._holders[key] = 0
            self._sizes[key] = tensor.untyped_storage().nbytes()
            self.live_bytes += self._sizes[key]
            if self._is_made_of_weights(source):
                self._copies.add(key)
                self._live_copy_bytes += self._sizes[key]
            if self.live_bytes > self.peak_bytes:
                self.peak_bytes, self.peak_copy_bytes = self.live_bytes, self._live_copy_bytes
        self._holders[key] += 1
        return _Saved(self, key, tensor)

    @staticmethod
    def _unpack(saved: Tensor | _Saved) -> Tensor:
        return saved.tensor if isinstance(saved, _Saved) else saved

    def _release(self, key: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            size = self._sizes.pop(key)
            self.live_bytes -= size
            if key in self._copies:
                self._copies.remove(key)
                self._live_copy_bytes -= size

    def _is_made_of_weights(self, tensor: Tensor) -> bool:
        if tensor.ndim < 2 or not tensor.is_floating_point() or not self._sides.issuperset(tensor.shape):
            return False
        node: Any = tensor.grad_fn
        while node is not None and type(node).__name__ in _CASTS:
            node = node.next_functions[0][0]
        if node is None:
            return not tensor.requires_grad
        return type(node).__name__ == "AccumulateGrad" and _storage_key(node.variable) in self._excluded


def _storage_key(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, while it lives; 0 for tensors without memory of their own (empty, fake,
    meta)."""
    if tensor.is_sparse or tensor.device.type == "meta":
        return 0
    return tensor.untyped_storage().data_ptr()
