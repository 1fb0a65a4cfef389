"""Things done in a process of their own, whose memory goes with it: a function, or a launch to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.locks import take_lock
from experiments.sweep.launches import Launch
from experiments.sweep.outcomes import why_it_ended
from experiments.sweep.processes import FORKS, STOPPING, import_everything, kill_process, oom_kills, start_forked


class Ended(Exception):
    """A process did not do what it was to do.

    Args:
        why: In one line.
        killed: It was killed with SIGKILL: by a rehearsal's own hand, or by the system.
        told: What it had told by then.
    """

    def __init__(self, why: str, killed: bool = False, told: Sequence[Any] = ()) -> None:
        super().__init__(why)
        self.killed = killed
        self.told = list(told)


def apart(act: Callable[..., Any], *arguments: Any, environment: Mapping[str, str], log: Path) -> list[Any]:
    """What `act(*arguments, tell)` tells, called in a process of its own.

    Args:
        act: A function of a module.
        arguments: Of it; `tell` is called with what comes back.
        environment: Of the process, whole.
        log: What it prints is appended there.

    Raises:
        Ended: It was killed, or an error came out that nobody had foreseen.
        InputError: It raised one.
    """
    import_everything()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    start, ooms = log.stat().st_size, oom_kills()
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_act, args=(act, arguments, dict(environment), str(log), sender))
    told: list[Any] = []
    try:
        process.start()
        sender.close()
        while True:
            try:
                told.append(receiver.recv())
            except EOFError:
                break
        process.join()
    finally:
        receiver.close()
        kill_process(process)
        process.join()
    code = process.exitcode or 0
    if told and isinstance(told[-1], InputError):
        raise told[-1]
    if code:
        raise Ended(_why(log, code, ooms, start), code == -signal.SIGKILL, told)
    return told


def _act(act: Callable[..., Any], arguments: tuple[Any, ...], environment: Mapping[str, str], log: str, sender: Any) -> None:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    try:
        act(*arguments, sender.send)
    except InputError as error:
        sender.send(InputError(str(error)))
    except BaseException as error:
        traceback.print_exc()
        print(f"crosslight: error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def to_its_end(launch: Launch, environment: Mapping[str, str], root: Path, log: Path) -> None:
    """Start a launch as the sweep would, and wait.

    Args:
        launch: It, on this machine.
        environment: Of its process, whole.
        root: Folder for its lock.
        log: What it prints is appended there.

    Raises:
        Ended: It did not end with exit status 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    start, ooms = log.stat().st_size, oom_kills()
    lock = take_lock(root / ".locks" / launch.key)
    if lock is None:
        raise InputError(f"{launch.title} is being rehearsed by another process already, in {root}.")
    process: BaseProcess | subprocess.Popen[bytes] | None = None
    with lock:
        try:
            if launch.is_forked:
                process = start_forked(launch, environment, log, DupFd(lock.fileno()))
                process.join()
                code = process.exitcode or 0
            else:
                with open(log, "ab") as output:
                    process = subprocess.Popen(
                        launch.started, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )  # fmt: skip
                code = process.wait()
        finally:
            if process is not None:
                kill_process(process)  # its ranks and workers too
                process.join() if isinstance(process, BaseProcess) else process.wait()
    if code:
        raise Ended(_why(log, code, ooms, start), code == -signal.SIGKILL)


def _why(log: Path, code: int, ooms: int, start: int) -> str:
    return why_it_ended(log, code, code == -signal.SIGKILL and oom_kills() > ooms, start)
