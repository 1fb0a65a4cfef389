"""Processes of their own for tests, forked from one that has imported what runs import: a start costs milliseconds, not the
seconds of importing torch, Lightning, transformers and timm."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from experiments.sweep.processes import FORKS, PRELOAD

FORKS.set_forkserver_preload([*PRELOAD, "lightning_modules.pretraining", "experiments.cli.run"])


@contextlib.contextmanager
def forked(target: Callable[..., int | None], *given: Any, log: Path, **environment: str) -> Iterator[BaseProcess]:
    """A process that calls `target`; what it gives back is the exit status.

    Args:
        target: A function of a module.
        given: Its arguments.
        log: File for what it prints.
        environment: More variables.
    """
    process = FORKS.Process(target=_child, args=(target, given, log, {**os.environ, **environment}))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _child(target: Callable[..., int | None], given: tuple[Any, ...], log: Path, environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            status = target(*given)
        except Exception:
            traceback.print_exc()
            status = 1
    sys.exit(status)


def ended(process: BaseProcess, log: Path, seconds: float = 280) -> tuple[int | None, str]:
    """Exit status (negative: the signal) and what it printed."""
    process.join(seconds)
    return process.exitcode, log.read_text() if log.exists() else ""


def two_ranks(target: Callable[[int, int, Path], int | None], folder: Path, **environment: str) -> list[tuple[int | None, str]]:
    """`target(rank, 2, folder)` in two processes: how each ended, and what it printed."""
    logs = [folder / f"rank{rank}.log" for rank in (0, 1)]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(forked(target, rank, 2, folder, log=log, GLOO_SOCKET_IFNAME="lo", **environment))
            for rank, log in enumerate(logs)
        ]
        return [ended(process, log) for process, log in zip(processes, logs, strict=True)]
