"""A run that Slurm wants to stop: signals are noted, and ranks leave at one step."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from experiments.training import preemption


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is one that Slurm started."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    monkeypatch.setattr(preemption, "_Notice", type("Notice", (preemption._Notice,), {}))
    for name in ("SLURM_JOB_ID", "SLURM_PROCID"):
        monkeypatch.setenv(name, "0")
    preemption.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_noted_and_acted_on_where_nothing_is_lost(job: None) -> None:
    assert preemption.told() is None
    os.kill(os.getpid(), signal.SIGUSR1)
    assert preemption.told() == signal.SIGUSR1
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.told() == signal.SIGUSR1
    with preemption.leaving_at_once(False):
        pass
    with pytest.raises(preemption.Preempted, match="SIGUSR1"), preemption.leaving_at_once(True):
        raise AssertionError("told before")
    preemption.listen()
    with pytest.raises(preemption.Preempted, match="SIGTERM"), preemption.leaving_at_once(True):
        signal.raise_signal(signal.SIGTERM)


def test_outside_of_slurm_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.getsignal(signal.SIGUSR1)
    preemption.listen()
    assert signal.getsignal(signal.SIGUSR1) == before
    assert not preemption.listening()


def _step_by_step(rank: int, folder: Path, answers: Any) -> None:
    preemption.listen()
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    agreement, found = preemption.Agreement(), []
    for step in range(6):
        if (rank, step) in ((1, 2), (0, 4)):
            signal.raise_signal(signal.SIGUSR1)
        found.append(agreement(torch.device("cpu")))
    answers.put((rank, found))
    distributed.destroy_process_group()


def test_ranks_agree_at_one_step(job: None, tmp_path: Path) -> None:
    """One is told before its third step, the other two steps later."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_step_by_step, args=(rank, tmp_path, answers), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
    assert found[0] == found[1] == [False, False, False, True, True, True]  # a step later than it could be known
