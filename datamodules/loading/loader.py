"""Loaders of whole batches: errors of workers come back as they were, and training resumes inside an epoch."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from datamodules.errors import InputError
from datamodules.loading.order import GlobalBatches

PATIENCE = 1800.0  # seconds: a disk that hangs for so long, or a worker, does not come back


def _when_no_thread_begins() -> None:
    """Before a fork. In Python 3.11 a worker waits for ever that is forked while another thread, such as one of gloo's, enters
    Python: it inherits the lock on the list of threads taken (github.com/python/cpython/issues/112275; mended in 3.12). Who asks
    for that list waits until the lock is free."""
    sys._current_frames()


if sys.version_info < (3, 12):
    os.register_at_fork(before=_when_no_thread_begins)


@contextlib.contextmanager
def workers_of(batches: Iterator[Any]) -> Iterator[None]:
    """Ends the workers behind the batches of a DataLoader when the block ends, however. Left to the garbage collector, each takes
    five seconds to notice."""
    try:
        yield
    finally:
        if (shut_down := getattr(batches, "_shutdown_workers", None)) is not None:  # none where this process makes the batches
            shut_down()


@cache
def leave_alone_what_is_inherited(process: int) -> None:
    """Once in a data worker: Python's search for cycles passes by, from now on, what the worker has of the process that it was
    forked from. It writes into each object that it looks at, and so would make a copy of nearly all of them."""
    gc.freeze()


@dataclass(frozen=True, slots=True)
class _Failure:
    """An `InputError` on its way out of a worker: PyTorch would wrap the message into the worker's traceback."""

    message: str


class BatchDataset(Dataset[Any]):
    """Turns a list of keys into a batch; in a worker, an `InputError` travels as `_Failure`."""

    def make(self, keys: Any) -> Any:
        raise NotImplementedError

    def __getitem__(self, keys: Any) -> Any:
        if get_worker_info() is None:
            return self.make(keys)
        leave_alone_what_is_inherited(os.getpid())
        try:
            return self.make(keys)
        except InputError as error:
            return _Failure(str(error))


class BatchLoader(DataLoader[Any]):
    """A DataLoader that raises a worker's `InputError` with its own message, in the process that reads the batches, and waits
    PATIENCE for a batch and not for ever."""

    def __init__(self, dataset: Dataset[Any], *, num_workers: int = 0, **options: Any) -> None:
        super().__init__(dataset, num_workers=num_workers, **{"timeout": PATIENCE if num_workers else 0, **options})

    def __iter__(self) -> Any:
        return _Unwrapped(super().__iter__(), self)

    def _took_batch(self) -> None:
        """Called for each batch handed out."""


class _Unwrapped(Iterator[Any]):
    def __init__(self, batches: Iterator[Any], loader: BatchLoader) -> None:
        self._batches, self._loader = batches, loader

    def __next__(self) -> Any:
        batch = next(self._batches)
        if isinstance(batch, _Failure):
            # Now, while everything is in place: left to the garbage collector, each worker takes five seconds to notice.
            self._batches._shutdown_workers()  # type: ignore[attr-defined]
            self._loader._iterator = None
            raise InputError(batch.message)
        self._loader._took_batch()
        return batch


class TrainLoader(BatchLoader):
    """Training batches that can start in the middle of an epoch.

    It counts the batches it hands out, not those its workers prefetch. `state_dict` is the position of the next batch;
    `load_state_dict` moves there. Lightning sees both methods and so knows that the loader resumes; but it restores a loader
    only when a checkpoint was taken in mid-epoch, and makes the iterator before it sets the epoch, so the data module's own
    `load_state_dict` sets the position first.
    """

    # (batches handed out that the Trainer has not finished, batches it uses of an epoch); set under a Trainer.
    progress: Callable[[], tuple[int, float]] | None = None
    _epoch = 0
    _batch = 0

    @property
    def order(self) -> GlobalBatches:
        assert isinstance(self.sampler, GlobalBatches)
        return self.sampler

    def __iter__(self) -> Any:
        self._epoch, self._batch = self.order.epoch, self.order.start
        batches = super().__iter__()
        # A start counts once. (Not in the sampler: a DataLoader with workers iterates it twice before the first batch.)
        self.order.start = 0
        return batches

    def _took_batch(self) -> None:
        self._batch += 1

    def state_dict(self) -> dict[str, int]:
        """`epoch` and `batch` (global batches already trained on in it) of the next batch."""
        unfinished, length = (0, len(self)) if self.progress is None else self.progress()
        batch = self._batch - unfinished
        if batch >= length:
            return {"epoch": self._epoch + 1, "batch": 0}
        return {"epoch": self._epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.order.epoch, self.order.start = state["epoch"], state["batch"]
