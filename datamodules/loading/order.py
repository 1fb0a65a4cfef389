"""Which samples a batch holds: a pure function of (seed, epoch, sample), the same on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from datamodules.errors import AgreedError, InputError

_ORDER, CAPTION, PIXELS = 1, 2, 3  # what a random draw is for, so that no two purposes share a stream
_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 63-bit hash of integers by SplitMix64 (Steele, Lea and Flood 2014, figure 17): the seed of one random draw."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


@dataclass(frozen=True, slots=True)
class BatchKeys:
    """The samples of one process's part of a training batch, and the epoch they are drawn in."""

    epoch: int
    samples: tuple[int, ...]


def require_divided(batch_size: int, world_size: int) -> None:
    """See that each process has an equal share of a batch.

    Raises:
        AgreedError: It has not.
    """
    if batch_size % world_size:
        near = max(world_size, round(batch_size / world_size) * world_size)
        raise AgreedError(
            f"batch_size {batch_size} counts the pairs of all devices and does not divide by {world_size} devices; {near} would."
        )


class GlobalBatches(Sampler[BatchKeys]):
    """Training order: one permutation an epoch, cut into global batches, of which each process takes its contiguous slice.

    The last incomplete global batch is dropped. `len()` is the whole epoch's number of batches, also when it starts later.

    Args:
        samples: Number of samples in an epoch.
        batch_size: Samples in one batch over all processes.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.

    Raises:
        InputError: the batch does not divide among the processes, or an epoch has too few samples for one batch.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give at least 1.")
        require_divided(batch_size, world_size)
        if samples < batch_size:
            raise InputError(
                f"an epoch has {samples} training samples, fewer than one batch of {batch_size} (the last incomplete batch is "
                "dropped): lower batch_size, add samples, or raise limits.train where it is set."
            )
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration (Lightning calls this)."""
        self.epoch = epoch

    def order(self, epoch: int, *stream: int) -> Tensor:
        """The epoch's permutation, int64 [samples]; another for each `stream`, where samples are drawn several times."""
        return torch.randperm(self.samples, generator=torch.Generator().manual_seed(mix(self.seed, epoch, _ORDER, *stream)))

    def __len__(self) -> int:
        return self.samples // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        # Not a generator function: Lightning makes the iterator of a resumed run before it calls set_epoch, so epoch and start
        # are those of this call, however late the first batch is fetched.
        return self._batches(self.epoch, self.start)

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        order = self.order(epoch)
        for mine in self.slices(start):
            yield BatchKeys(epoch, tuple(order[mine].tolist()))

    def slices(self, start: int) -> Iterator[slice]:
        """This process's part of each global batch, as places in the order."""
        share = self.batch_size // self.world_size
        for batch in range(start, len(self)):
            first = batch * self.batch_size + self.rank * share
            yield slice(first, first + share)


def evaluation_batches(
    rows: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    lengths: Sequence[int] | npt.NDArray[np.int64] | None = None,
) -> list[list[int]]:
    """This process's rows (`rank::world_size`: nothing is padded), as batches of nearly equal size.

    Every process gets the same number of batches, because PyTorch's DDP synchronises buffers in each forward and would wait
    for ever for a process that has no more. (Impossible only where a process has fewer rows than batches: then it has fewer.)
    `lengths`, one a row, sorts the rows so that a batch needs little padding.
    """
    mine = list(range(rank, rows, world_size))
    if lengths is not None:
        mine.sort(key=lambda row: lengths[row])
    most = -(-rows // world_size)
    batches = min(-(-most // batch_size), len(mine))
    edges = [len(mine) * batch // batches for batch in range(batches + 1)] if batches else [0]
    return [mine[start:stop] for start, stop in pairwise(edges)]
