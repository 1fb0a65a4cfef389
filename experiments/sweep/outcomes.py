"""How far a launch is: what its run folder says, what its log says of its end, and how both are recorded."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.errors import InputError
from datamodules.files.locks import take_lock
from experiments.runs.folder import counted_seconds, lock_of
from experiments.runs.results import Results, ResultsStatus, RunScale, now, read_results, write_results
from experiments.sweep.launches import Launch

State = Literal[
    "waiting", "running", "elsewhere", "blocked", "interrupted", "failed", "oom", "stopped_early", "finished"
]  # fmt: skip
STATES: tuple[State, ...] = get_args(State)
ENDED: tuple[State, ...] = ("failed", "oom", "stopped_early", "finished")  # a second call leaves these alone
OVER: tuple[State, ...] = ("blocked", "interrupted", *ENDED)
BROKEN: tuple[State, ...] = ("blocked", "interrupted", "failed", "oom")


def state_of(launch: Launch) -> tuple[State, Results | None]:
    """What a launch's folder says: waiting (also: interrupted, to be resumed) or how it ended; with its results, if it has any.

    Raises:
        InputError: results.json cannot be read.
    """
    if not os.path.lexists(launch.folder / "results.json"):
        return "waiting", None
    results = read_results(launch.folder)
    return next((state for state in ENDED if state == results.status), "waiting"), results


def known_state(launch: Launch) -> tuple[State, Results | None, str | None]:
    """As `state_of`, with the error; results that cannot be read are a failure of that run, not of the others."""
    try:
        state, results = state_of(launch)
    except InputError as error:
        return "failed", None, str(error)
    return state, results, results.error if results is not None else None


def record(launch: Launch, status: ResultsStatus, error: str | None) -> bool:
    """Write into a run folder how a run ended whose own process could not. False: another process has the folder open.

    Raises:
        InputError: results.json cannot be read.
    """
    launch.folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(lock_of(launch.folder))
    if lock is None:
        return False
    with lock:
        if os.path.lexists(launch.folder / "results.json"):
            results = read_results(launch.folder)
        else:
            results = Results(
                status, launch.command or launch.program[0], launch.name or launch.title, config_hash="", started=now(),
                scale=next((scale for scale in get_args(RunScale) if scale == launch.scale), None), seed=launch.seed,
            )  # fmt: skip
        seconds = counted_seconds(launch.folder, results)  # a process that ended in order has counted its last attempt itself
        write_results(launch.folder, replace(results, status=status, error=error, finished=now(), seconds=round(seconds, 1)))
    return True


@dataclass
class Entry:
    """A launch and how far it is. `seconds` is its time, of this or an earlier call; `stopping` why it was told to stop,
    `before` its results and `logged` the bytes of its log before it was started."""

    launch: Launch
    state: State = "waiting"
    error: str | None = None
    seconds: float | None = None
    process: BaseProcess | subprocess.Popen[bytes] | None = None
    lock: Any | None = None
    began: float = 0.0
    gpus: tuple[str, ...] = ()
    stopping: str | None = None
    killed_at: float | None = None
    before: Results | None = None
    logged: int = 0
    ooms: int = 0
    looked: float = 0.0


def log_of(root: Path, launch: Launch) -> Path:
    return root / "logs" / f"{launch.folder.name}.log"


def why_it_ended(log: Path, code: int, no_memory: bool = False, start: int = 0) -> str:
    """What a launch's log says of its end, or else how it ended: its exit status, a negative one is a signal. Earlier attempts
    wrote into the same log; this one's lines begin at byte `start`."""
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    last = [line.strip() for line in lines[-200:] if line.strip()]
    told = next((line for line in reversed(last) if line.startswith("crosslight: error: ")), None)
    if told is not None:
        return told.removeprefix("crosslight: error: ")
    if no_memory:
        return "killed by the system, which was out of memory"
    name = next((f" ({number.name})" for number in signal.Signals if number == -code), "")  # real-time signals have none
    how = f"killed by signal {-code}{name}" if code < 0 else f"ended with exit status {code}"
    return f"{how}; last line of {log}: {last[-1] if last else ''}"
