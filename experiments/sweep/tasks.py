"""A task: all that is needed to start a run somewhere else, and what its folder says of it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.files.locks import take_lock
from experiments.papers.schema import Cost
from experiments.runs.folder import counted_seconds, lock_of
from experiments.runs.results import Results, ResultsStatus, RunScale, now, read_results, write_results

State = Literal[
    "waiting", "running", "elsewhere", "blocked", "interrupted", "failed", "oom", "stopped_early", "finished"
]  # fmt: skip
STATES: tuple[State, ...] = get_args(State)
ENDED: tuple[State, ...] = ("failed", "oom", "stopped_early", "finished")  # a second call leaves these alone
OVER: tuple[State, ...] = ("blocked", "interrupted", *ENDED)
BROKEN: tuple[State, ...] = ("blocked", "interrupted", "failed", "oom")
PROGRAM = (sys.executable, "-m", "experiments.cli")


@dataclass(frozen=True)
class Task:
    """A run as a machine needs it.

    Args:
        key: Tells it from all others.
        name: What tables say.
        kind: Tasks of one kind take about the same time.
        folder: Its run folder, absolute.
        command: The command line, with --run_dir.
        environment: Variables to set.
        after: Keys of the tasks that must be finished first.
        gpus: Devices that it wants to itself; 0 runs on the processor.
        cost: Estimate.
        world: Style of the embedded world that must be there first; `environment` says where.
    """

    key: str
    name: str
    kind: str
    folder: Path
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    gpus: int = 0
    cost: Cost | None = None
    world: Literal["source", "target"] | None = None


def state_of(task: Task) -> tuple[State, Results | None]:
    """What a task's folder says: waiting (also: interrupted, to be resumed) or how it ended; with its results, if it has any.

    Raises:
        InputError: results.json cannot be read.
    """
    if not (task.folder / "results.json").exists():
        return "waiting", None
    results = read_results(task.folder)
    return next((state for state in ENDED if state == results.status), "waiting"), results


def record(task: Task, status: ResultsStatus, error: str | None) -> bool:
    """Write into a run folder how a run ended whose own process could not. False: another process has the folder open.

    Raises:
        InputError: results.json cannot be read.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(lock_of(task.folder))
    if lock is None:
        return False
    with lock:
        if (task.folder / "results.json").exists():
            results = read_results(task.folder)
        else:
            seed = given(task, "seed_everything")
            results = Results(
                status, str(given(task, None)), given(task, "name") or task.name, config_hash="", started=now(),
                scale=next((scale for scale in get_args(RunScale) if scale == given(task, "scale")), None),
                seed=None if seed is None else int(seed),
            )  # fmt: skip
        seconds = counted_seconds(task.folder, results)  # a process that ended in order has counted its last attempt itself
        write_results(task.folder, replace(results, status=status, error=error, finished=now(), seconds=round(seconds, 1)))
    return True


def given(task: Task, option: str | None) -> str | None:
    """An option's value in a task's command; None: the sub-command."""
    arguments = task.command[len(PROGRAM) :] if is_own(task) else task.command
    if option is None:
        return arguments[0]
    found = [each.partition("=")[2] for each in arguments if each.startswith(f"--{option}=")]
    return found[-1] if found else None


def is_own(task: Task) -> bool:
    return task.command[: len(PROGRAM)] == PROGRAM


@dataclass
class Entry:
    """A task and how far it is. `seconds` is its time, of this or an earlier call; `stopping` why it was told to stop,
    `before` its results and `logged` the bytes of its log before it was started."""

    task: Task
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


def log_of(root: Path, task: Task) -> Path:
    return root / "logs" / f"{task.folder.name}.log"


def why_it_ended(log: Path, code: int, no_memory: bool = False, start: int = 0) -> str:
    """What a task's log says of its end, or else how it ended: its exit status, a negative one is a signal. Earlier attempts
    wrote into the same log; this one's lines begin at byte `start`."""
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    last = [line.strip() for line in lines[-200:] if line.strip()]
    told = next((line for line in reversed(last) if line.startswith("crosslight: error: ")), None)
    if told is not None:
        return told.removeprefix("crosslight: error: ")
    if no_memory:
        return "killed by the system, which was out of memory"
    name = next((f" ({each.name})" for each in signal.Signals if each == -code), "")  # real-time signals have none
    how = f"killed by signal {-code}{name}" if code < 0 else f"ended with exit status {code}"
    return f"{how}; last line of {log}: {last[-1] if last else ''}"
