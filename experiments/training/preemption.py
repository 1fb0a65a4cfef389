"""A run that Slurm wants to stop: its notice is a signal, which this module turns into an orderly end between two steps.

Slurm sends SIGUSR1 before the time limit (`--signal=USR1@SECONDS`) and before it gives the nodes to another job (on clusters
with `preempt_send_user_signal`), and SIGTERM when it is in earnest. The handler only takes a note. Lightning's would save
wherever each rank happens to be, and ranks at different places wait for each other for ever; so would its broadcast on SIGTERM.

- Training: at every optimizer step all ranks hear whether one of them was told (`Agreement`), save `last.ckpt` at the same step,
  and leave before the next one. A validation that follows that step is completed first: no checkpoint can stand in its middle.
- Testing in one process: it leaves at once; what is scored is on disk. Several processes leave between two data sets, since their
  numbers of batches differ.

A run that left so has the exit status PREEMPTED and, in results.json, status interrupted and an error that begins with
"preempted". Whoever started it decides whether it is queued again (`experiments/sweep/slurm.py` does).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the handler is there before torch is
    import torch

PREEMPTED = 75  # sysexits.h: EX_TEMPFAIL, try again later
_NOTICES = (signal.SIGUSR1, signal.SIGTERM)


class Preempted(BaseException):
    """The run leaves because it was told to, and all that it needs to go on is on disk."""


class _Notice:
    listener: int | None = None  # the process that listens: its forks (workers of data loaders) do not
    told: signal.Signals | None = None
    at_once = False


def listen() -> None:
    """Take Slurm's signals from now on. Outside of Slurm: nothing. Call it before anything heavy is imported."""
    under_slurm = "SLURM_JOB_ID" in os.environ and "SLURM_PROCID" in os.environ
    _Notice.listener, _Notice.told = os.getpid() if under_slurm else None, None
    for number in _NOTICES if under_slurm else ():
        signal.signal(number, _note)


def listening() -> bool:
    return _Notice.listener == os.getpid()


def told() -> signal.Signals | None:
    """The first signal that this process was told to leave by."""
    return _Notice.told if listening() else None


def leave() -> None:
    """On the way out: srun tells all ranks to end as soon as the first of them has, and this one is about to anyway."""
    for number in _NOTICES if listening() else ():
        signal.signal(number, signal.SIG_IGN)


def _note(number: int, _: Any) -> None:
    if not listening():
        return
    _Notice.told = _Notice.told or signal.Signals(number)
    if _Notice.at_once:
        _Notice.at_once = False  # a second signal does not disturb the first one's way out
        raise Preempted(f"while testing, by {_Notice.told.name}")


@contextmanager
def leaving_at_once(possible: bool) -> Iterator[None]:
    """Where nothing is lost by it a signal ends the block at once, also one that came before it.

    Raises:
        Preempted: This process was told to leave.
    """
    _Notice.at_once = possible and listening()
    try:
        if _Notice.at_once and _Notice.told is not None:
            raise Preempted(f"while testing, by {_Notice.told.name}")
        yield
    finally:
        _Notice.at_once = False


class Agreement:
    """Whether the ranks leave. All ask at every step, and all get the same answer at the same step.

    A rank's note is one number in an all-reduce that runs beside the step; its result is read one step later, when it has long
    arrived. Every rank starts exactly one of them a step, at the same place between the steps' own, so none can wait for another.
    """

    def __init__(self) -> None:
        self._answer: Callable[[], torch.Tensor] | None = None

    def __call__(self, device: torch.device) -> bool:
        import torch

        from lightning_modules import collectives

        mine = told() is not None
        if not collectives.several():
            return mine
        agreed = self._answer is not None and bool(self._answer().item())
        self._answer = collectives.reduced_later(torch.tensor(int(mine), device=device), "max")
        return agreed
