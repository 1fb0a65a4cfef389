"""Runs tasks on this machine: those that others start from first, several at once, each in processes of its own.

    ROOT/NAME-sSEED-KEY/    a run folder; its results.json says whether there is anything left to do
    ROOT/logs/NAME....log   what the task printed
    ROOT/worlds/            the embedded worlds of miniature tasks
    ROOT/.locks/KEY         held while a task runs, by the runner and by the task: two runners on one root never start it twice

Nothing else is remembered. A second call, also after a SIGKILL of everything, finds what is finished and goes on with the rest.
A task whose runner was killed runs on; the next runner waits for it.

A `Task` is all that is needed to start a run somewhere else: a command line, an environment, a folder. `tasks_of` makes them of
jobs; nothing below it knows of artefacts or sweeps.

Importing torch and its like takes longer than a miniature run, so on a processor tasks are forked from one process that has
imported everything and does nothing else (multiprocessing's forkserver). Tasks on GPUs, of several processes, or that are not
crosslight's own commands are started as programs.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from datamodules.errors import InputError
from experiments.artefacts import Cost, Job, folder_of, write_miniature_world
from experiments.run_folder import SCHEMA, now, read_results, seconds_of_attempt, write_atomically

State = Literal[
    "waiting", "running", "elsewhere", "blocked", "interrupted", "failed", "oom", "stopped_early", "finished"
]  # fmt: skip
STATES: tuple[State, ...] = get_args(State)
_ENDED: tuple[State, ...] = ("failed", "oom", "stopped_early", "finished")  # a second call leaves these alone
_OVER: tuple[State, ...] = ("blocked", "interrupted", *_ENDED)
_BROKEN: tuple[State, ...] = ("blocked", "interrupted", "failed", "oom")
PROGRAM = (sys.executable, "-m", "experiments.cli")
# What a run may import before it reads its data. A class that is missing here costs its tasks time, nothing else.
_PRELOAD = [
    "experiments.runner",
    "experiments.lightning_cli",
    "experiments.training",
    "lightning_modules.retrieval",
    "lightning_modules.ranking",
    "lightning_modules.captioning",
    "lightning_modules.networks.beit3",
    "lightning_modules.networks.dual_encoder",
    "datamodules.coco",
    "datamodules.flickr30k_entities",
    "datamodules.nocaps",
    "datamodules.visual_genome",
]
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FORKS = multiprocessing.get_context("forkserver")
_STYLE = {
    "finished": "green", "stopped_early": "green", "running": "cyan", "elsewhere": "cyan", "failed": "red", "oom": "red",
    "blocked": "red", "interrupted": "yellow", "waiting": "dim",
}  # fmt: skip


def state_style(state: str) -> str:
    """Its colour on a terminal."""
    return _STYLE.get(state, "")


# ------------------------------------------------------------------------------------------------------------------- tasks


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


def tasks_of(jobs: Iterable[Job], root: Path, groups: Mapping[str, str] | None = None) -> list[Task]:
    """Tasks of jobs, in their order, with run folders in `root`. `groups` has the W&B group (an artefact) of each key."""
    jobs, root = list(jobs), root.absolute()
    folders = {job.key: folder_of(job, [root]) for job in jobs}
    tasks = []
    for job in jobs:
        environment = {"WANDB_RUN_GROUP": groups[job.key]} if groups and job.key in groups else {}
        if job.recipe.world is not None:
            environment["CROSSLIGHT_WORLD"] = str(world_folder(root, job.recipe.world))
        cost = job.recipe.cost
        on_processor = job.scale == "miniature" or (cost is not None and "cpu" in cost.device.lower())
        tasks.append(
            Task(
                key=job.key, name=f"{job.names[0]} s{job.seed}" if job.recipe.seeded else job.names[0],
                kind=f"{job.names[0]} ({job.scale})", folder=folders[job.key],
                command=(*PROGRAM, *job.arguments(folders)), environment=environment, after=job.after,
                gpus=0 if on_processor else cost.devices if cost is not None else 1, cost=cost, world=job.recipe.world,
            )
        )  # fmt: skip
    return tasks


def world_folder(root: Path, style: str) -> Path:
    return root.absolute() / "worlds" / style


def state_of(task: Task) -> tuple[State, dict[str, Any]]:
    """What a task's folder says: waiting (also: interrupted, to be resumed) or how it ended; with its results, if it has any.

    Raises:
        InputError: results.json cannot be read.
    """
    if not (task.folder / "results.json").exists():
        return "waiting", {}
    results = read_results(task.folder)
    return results["status"] if results["status"] in _ENDED else "waiting", results


def take_lock(file: Path) -> Any | None:
    """An exclusive lock on a file, held until what is returned is closed by all who have it; None where another has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = open(file, "a")  # noqa: SIM115 - open is what it is for
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """An exclusive lock on a file, waited for."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def record(task: Task, status: str, error: str | None, **more: Any) -> bool:
    """Write into a run folder how a run ended whose own process could not. False: another process has the folder open.

    Raises:
        InputError: results.json cannot be read.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(task.folder / ".lock")  # RunFolder's
    if lock is None:
        return False
    with lock:
        file = task.folder / "results.json"
        seed = given(task, "seed_everything")
        results = read_results(task.folder) if file.exists() else {
            "schema": SCHEMA, "attempts": 1, "command": given(task, None), "name": given(task, "name") or task.name,
            "config_hash": "", "scale": given(task, "scale"), "seed": None if seed is None else int(seed), "started": now(),
            "evaluations": [],
        }  # fmt: skip
        seconds = results.get("seconds") or 0.0
        if results.get("status") == "running":  # else the process has counted its last attempt itself
            seconds += seconds_of_attempt(task.folder)
        results |= {"status": status, "error": error, "finished": now(), "seconds": round(seconds, 1), **more}
        write_atomically(file, json.dumps(results, indent=1, default=str) + "\n")
    return True


def is_held(file: Path) -> bool:
    """Whether a process has the lock."""
    if not file.exists():
        return False
    with open(file) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def given(task: Task, option: str | None) -> str | None:
    """An option's value in a task's command; None: the sub-command."""
    arguments = task.command[len(PROGRAM) :] if is_own(task) else task.command
    if option is None:
        return arguments[0]
    found = [each.partition("=")[2] for each in arguments if each.startswith(f"--{option}=")]
    return found[-1] if found else None


def is_own(task: Task) -> bool:
    return task.command[: len(PROGRAM)] == PROGRAM


# ------------------------------------------------------------------------------------------------------------------ runner


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
    before: dict[str, Any] = field(default_factory=dict)
    logged: int = 0
    ooms: int = 0
    looked: float = 0.0


class Runner:
    """Runs tasks until all are over. `entries` says how they are, by key.

    Args:
        tasks: In the order in which they are wanted.
        root: Folder of logs and locks.
        jobs: Tasks at once on the processor (default 1), or at most so many on GPUs (default: as many as there are).
        gpus: Devices, as CUDA_VISIBLE_DEVICES names them (default: those that torch sees).
        retry_failed: Start tasks again that an earlier call saw fail.
        more: Asked for another task when nothing waits and there is room; None: none for now.
        judge: Asked again and again, with the keys and folders of running tasks, which of them to stop early and why.
        grace: Seconds that a task has to stop.
        every: Seconds between two looks at what other runners do, and between two judgements.
        console: To show the progress on.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        root: Path,
        *,
        jobs: int | None = None,
        gpus: Sequence[str] | None = None,
        retry_failed: bool = False,
        more: Callable[[], Task | None] | None = None,
        judge: Callable[[Mapping[str, Path]], Mapping[str, str]] | None = None,
        grace: float = 30.0,
        every: float = 1.0,
        console: Console | None = None,
    ) -> None:
        if jobs is not None and jobs < 1:
            raise InputError(f"--jobs is {jobs}: at least one task runs at once.")
        self.root = root.absolute()
        self.entries: dict[str, Entry] = {}
        self.retry_failed = retry_failed
        self.jobs = jobs
        self.gpus = list(gpus if gpus is not None else visible_gpus() if any(task.gpus for task in tasks) else ())
        self.more, self.judge, self.grace, self.every = more, judge, grace, every
        self.signal: int | None = None
        self._judged = 0.0
        self._show = _Display(console or Console(stderr=True), self)
        for task in tasks:
            self._add(task)

    def _add(self, task: Task) -> None:
        if task.gpus > len(self.gpus) and state_of(task)[0] == "waiting":
            raise InputError(
                f"{task.name} wants {task.gpus} GPU{'s' * (task.gpus > 1)} and this machine has {len(self.gpus)}. Run it on "
                "another one, or take --scale miniature; --dry-run lists what everything needs."
            )
        if missing := [key for key in task.after if key not in self.entries]:
            raise InputError(f"{task.name} comes after {missing[0]}, which is not among the tasks before it.")
        entry = self.entries[task.key] = Entry(task)
        self._look(entry)
        if self.retry_failed and entry.state in ("failed", "oom"):
            entry.state = "waiting"

    def run(self) -> int:
        """Returns the exit status: 0 all finished, 1 something did not, 130 (or 128 + signal) told to stop."""
        self._render_worlds()
        with self._signals(), self._show:
            while True:
                self._collect()
                if self.signal is not None:
                    self._stop_all()
                else:
                    self._stop_early()
                    self._start()
                running = [entry for entry in self.entries.values() if entry.process is not None]
                if self.signal is not None and not running:
                    break
                if all(entry.state in _OVER for entry in self.entries.values()):
                    break
                self._wait(running)
        self._show.summary()
        if self.signal is not None:
            return 130 if self.signal == signal.SIGINT else 128 + self.signal
        return int(any(entry.state in _BROKEN for entry in self.entries.values()))

    # ---------------------------------------------------------------------------------------------------------- before

    def _render_worlds(self) -> None:
        """The worlds of tasks that are still to do. Safe beside another runner: a world appears complete or not at all."""
        for style in ("source", "target"):
            if any(entry.task.world == style and entry.state == "waiting" for entry in self.entries.values()):
                write_miniature_world(world_folder(self.root, style), style)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP stop the tasks in order; a second one kills them."""

        def told(number: int, _: Any) -> None:
            if self.signal is not None:
                self.grace = 0.0
            self.signal = number

        before = {number: signal.signal(number, told) for number in _STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for entry in self.entries.values():  # nothing is running here, unless something of the runner's own went wrong
                if entry.process is not None:
                    _kill(entry.process)

    # --------------------------------------------------------------------------------------------------------- starting

    def _start(self) -> None:
        for entry in self.entries.values():
            if entry.state == "waiting" or (entry.state == "elsewhere" and time.monotonic() - entry.looked > self.every):
                self._start_one(entry)
        while self.more is not None and self._room(0) and not any(each.state == "waiting" for each in self.entries.values()):
            task = self.more()
            if task is None:
                return
            self._add(task)
            self._render_worlds()
            self._start_one(self.entries[task.key])

    def _start_one(self, entry: Entry) -> None:
        needed = [self.entries[key] for key in entry.task.after]
        broken = next((each for each in needed if each.state in (*_BROKEN, "stopped_early")), None)
        if broken is not None:
            entry.state, entry.error = "blocked", f"starts from {broken.task.name}, which is {broken.state}"
            self._show.say(entry)
        elif all(each.state == "finished" for each in needed) and self._room(entry.task.gpus):
            entry.looked = time.monotonic()
            lock = take_lock(self.root / ".locks" / entry.task.key)
            if lock is None:
                if entry.state != "elsewhere":
                    entry.state = "elsewhere"
                    self._show.say(entry)
                return
            before = entry.state
            retry = self.retry_failed and before == "waiting"
            self._look(entry)  # another runner may have been here since
            if entry.state in ("failed", "oom") and retry:
                entry.state = "waiting"
            if entry.state == "waiting":
                self._launch(entry, lock)
            else:
                lock.close()
            self._show.say(entry)

    def _look(self, entry: Entry) -> None:
        try:
            entry.state, results = state_of(entry.task)
        except InputError as error:
            entry.state, entry.error = "failed", str(error)
            return
        entry.seconds = results.get("seconds") if entry.state != "waiting" else None
        entry.error = results.get("error") if entry.state in ("failed", "oom", "stopped_early") else None

    def _room(self, gpus: int) -> bool:
        busy = [entry for entry in self.entries.values() if entry.process is not None]
        if gpus:
            return gpus <= len(self._free_gpus()) and (self.jobs is None or len(busy) < self.jobs)
        if self.gpus and self.more is not None:  # a search on GPUs
            return bool(self._free_gpus()) and len(busy) < (self.jobs or len(self.gpus))
        return sum(not entry.gpus for entry in busy) < (self.jobs or 1)

    def _free_gpus(self) -> list[str]:
        taken = {gpu for entry in self.entries.values() for gpu in entry.gpus}
        return [gpu for gpu in self.gpus if gpu not in taken]

    def _launch(self, entry: Entry, lock: Any) -> None:
        task = entry.task
        entry.gpus = tuple(self._free_gpus()[: task.gpus])
        at_once = (self.jobs or max(1, len(self.gpus) // task.gpus)) if task.gpus else (self.jobs or 1)
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // at_once))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, **task.environment}
        environment.pop("WANDB_SERVICE", None)  # of a W&B run in this very process: a notebook's, say
        if task.gpus or self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(entry.gpus)
        if not is_own(task) and "WANDB_MODE" not in environment:  # crosslight sees to that itself
            from experiments.loggers import wandb_logged_in

            environment |= {} if wandb_logged_in() else {"WANDB_MODE": "offline"}
        log = log_of(self.root, task)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            entry.logged = file.tell()
            file.write(f"{now()} {' '.join(task.command)}\n")
        entry.ooms, entry.began, entry.error, entry.before = _oom_kills(), time.monotonic(), None, state_of(task)[1]
        if _is_forked(task):
            _FORKS.set_forkserver_preload(_PRELOAD)
            arguments = (task.command[len(PROGRAM) :], environment, log, DupFd(lock.fileno()))
            entry.process = _start_forked(arguments)
        else:
            with open(log, "ab") as output:
                entry.process = subprocess.Popen(
                    task.command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    start_new_session=True, pass_fds=(lock.fileno(),),
                )  # fmt: skip
        entry.lock, entry.state = lock, "running"

    # ----------------------------------------------------------------------------------------------------- while running

    def _wait(self, running: Sequence[Entry]) -> None:
        """Until something ends, at most a fifth of a second."""
        from multiprocessing.connection import wait

        forked = [entry.process.sentinel for entry in running if isinstance(entry.process, BaseProcess)]
        if forked:
            wait(forked, 0.2 if len(forked) == len(running) else 0.05)
        else:
            time.sleep(0.02 if running else 0.2)

    def _collect(self) -> None:
        for entry in self.entries.values():
            if entry.process is None:
                continue
            code = entry.process.exitcode if isinstance(entry.process, BaseProcess) else entry.process.poll()
            if code is not None:
                self._settle(entry, code)
            elif entry.killed_at is not None and time.monotonic() > entry.killed_at + self.grace:
                _kill(entry.process)

    def _settle(self, entry: Entry, code: int) -> None:
        """A task's process has ended: see what its folder says, and say it there where the process could not."""
        assert entry.process is not None
        assert entry.lock is not None
        if code != 0:
            _kill(entry.process)  # what it left behind: ranks and workers of a leader that was killed
        if isinstance(entry.process, BaseProcess):
            entry.process.close()
        entry.process, entry.gpus, entry.killed_at = None, (), None
        entry.seconds = time.monotonic() - entry.began
        try:
            self._settle_results(entry, code)
        except InputError as error:
            entry.state, entry.error = "failed", str(error)
        finally:
            entry.lock.close()
            entry.lock = None
        self._show.say(entry)

    def _settle_results(self, entry: Entry, code: int) -> None:
        results = state_of(entry.task)[1]
        told = results.get("status") if results != entry.before else None  # None: the process wrote nothing there
        ours = True
        if told in ("finished", "failed", "oom"):
            pass
        elif entry.stopping is not None:
            ours = record(entry.task, "stopped_early", entry.stopping)
        elif self.signal is not None:
            ours = told != "running" or record(entry.task, "interrupted", "stopped with the runner")
        elif told != "interrupted":
            no_memory = code == -signal.SIGKILL and _oom_kills() > entry.ooms
            why = why_it_ended(log_of(self.root, entry.task), code, no_memory, entry.logged)
            ours = record(entry.task, "oom" if no_memory and told == "running" else "failed", why)
        if not ours:
            entry.state, entry.looked = "elsewhere", time.monotonic()
            return
        self._look(entry)
        if entry.state == "waiting":
            entry.state = "interrupted"
            entry.error = None if self.signal is not None else f"see {log_of(self.root, entry.task)}"

    def _stop_early(self) -> None:
        if self.judge is None or time.monotonic() - self._judged < self.every:
            return
        self._judged = time.monotonic()
        running = {
            key: entry.task.folder for key, entry in self.entries.items() if entry.process is not None and entry.stopping is None
        }
        for key, reason in self.judge(running).items():
            self.entries[key].stopping = reason
            self._terminate(self.entries[key])

    def _stop_all(self) -> None:
        for entry in self.entries.values():
            if entry.process is not None and entry.killed_at is None:
                self._terminate(entry)

    def _terminate(self, entry: Entry) -> None:
        """SIGTERM to the leader alone: it tells its own ranks."""
        assert entry.process is not None
        entry.killed_at = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(entry.process.pid or 0), signal.SIGTERM)

    # ------------------------------------------------------------------------------------------------------------- time

    def seconds_left(self) -> float | None:
        """Of everything, by the times of finished tasks of the same kind, else by estimates scaled to them. None: no idea."""
        entries = list(self.entries.values())  # the table asks from a thread of its own
        times: dict[str, list[float]] = defaultdict(list)
        ratios = []
        for entry in entries:
            if entry.state == "finished" and entry.seconds:
                times[entry.task.kind].append(entry.seconds)
                if entry.task.cost is not None and entry.task.cost.hours > 0:
                    ratios.append(entry.seconds / entry.task.cost.seconds)
        everything = [each for group in times.values() for each in group]
        total, slots = 0.0, max(1, len(self.gpus) if self.gpus else self.jobs or 1)
        for entry in entries:
            if entry.state in _OVER:
                continue
            known = times.get(entry.task.kind)
            if known:
                expected = sum(known) / len(known)
            elif entry.task.cost is not None and entry.task.cost.hours > 0:
                expected = entry.task.cost.seconds * (median(ratios) if ratios else 1.0)
            elif everything:
                expected = sum(everything) / len(everything)
            else:
                return None
            spent = time.monotonic() - entry.began if entry.state == "running" else 0.0
            total += max(expected - spent, 0.0)
        return total / slots


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


def visible_gpus() -> list[str]:
    """Names of the devices present, for CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(index) for index in range(count)]


def _oom_kills() -> int:
    """Processes that this machine's kernel has killed for memory so far."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except FileNotFoundError:  # not Linux
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _is_forked(task: Task) -> bool:
    """Whether a task may start in a process that has imported everything: a crosslight command of one process, no GPU."""
    several = any(each.startswith(("--trainer.devices", "--trainer.strategy")) for each in task.command)
    return is_own(task) and task.gpus == 0 and not several


def _start_forked(arguments: tuple[Any, ...]) -> BaseProcess:
    """The server that forks is started here as well, and inherits what is blocked: a signal to the whole group of a runner (a
    hang-up, `timeout`) leaves it alone, so that the runner can see its tasks end."""
    process = _FORKS.Process(target=_forked, args=arguments)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def _forked(arguments: Sequence[str], environment: Mapping[str, str], log: Path, lock: Any) -> None:
    """A task in its own process: what a shell does for a program, then crosslight's command."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    lock.detach()  # held as long as this process lives, whatever becomes of the runner
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import torch

    from experiments.cli import main

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # its variable was read long ago
    sys.argv = [sys.argv[0], *arguments]
    try:
        main(list(arguments))
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out; W&B completes its files in one


def _kill(process: BaseProcess | subprocess.Popen[bytes]) -> None:
    """SIGKILL to a task's process group: itself, its ranks, its workers."""
    if process.pid is None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            if isinstance(process, BaseProcess) and process.exitcode is None:  # it has not made its group yet
                os.kill(process.pid, signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------------------- showing it


class _Display:
    """A table that is kept up to date on a terminal, or a line for every change elsewhere."""

    def __init__(self, console: Console, runner: Runner) -> None:
        self.console, self.runner = console, runner
        self.live = Live(console=console, refresh_per_second=2, get_renderable=self._table) if console.is_terminal else None

    def __enter__(self) -> None:
        entries = self.runner.entries.values()
        done = sum(entry.state in _ENDED for entry in entries)
        self.console.print(f"{len(entries)} runs, {done} of them done already, in {self.runner.root}", highlight=False)
        if self.live is not None:
            self.live.start()

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, entry: Entry) -> None:
        """A task has changed its state."""
        if self.live is not None and entry.state not in _BROKEN:
            return
        over = sum(each.state in _OVER for each in self.runner.entries.values())
        took = f", {readable_time(entry.seconds)}" if entry.seconds is not None and entry.state in _OVER else ""
        left = f"; {self._left()} left" if over < len(self.runner.entries) else ""
        why = f": {entry.error}" if entry.error else ""
        line = f"{datetime.now():%H:%M:%S} [{over}/{len(self.runner.entries)}] {entry.state} {entry.task.name}{took}{why}{left}"
        self.console.print(Text(line, state_style(entry.state)), highlight=False, soft_wrap=True)

    def summary(self) -> None:
        """How many ended how, and what to do about those that did not finish."""
        entries = list(self.runner.entries.values())
        counts = [(state, sum(entry.state == state for entry in entries)) for state in reversed(STATES)]
        self.console.print(", ".join(f"{count} {state}" for state, count in counts if count) or "nothing to run", highlight=False)
        before = [entry for entry in entries if entry.state in ("failed", "oom") and not entry.began]
        for entry in before[:20]:  # the others were told when they happened
            self.console.print(Text(f"{entry.state} earlier: {entry.task.name}: {entry.error}", "red"), soft_wrap=True)
        if any(entry.state in ("failed", "oom") for entry in entries):
            self.console.print(
                f"what failed is recorded and stays so; --retry-failed starts it again. Logs: {self.runner.root / 'logs'}",
                highlight=False, soft_wrap=True,
            )  # fmt: skip

    def _left(self) -> str:
        seconds = self.runner.seconds_left()
        return "?" if seconds is None else readable_time(seconds)

    def _table(self) -> Group:
        entries = list(self.runner.entries.values())
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("run", "status", "time", "on"):
            table.add_column(column, justify="right" if column == "time" else "left")
        shown = [entry for entry in entries if entry.state in ("running", "elsewhere")]
        shown += [entry for entry in entries if entry.state == "waiting"]
        ended = sorted((entry for entry in entries if entry.state in _OVER and entry.began), key=lambda entry: entry.began)
        rows = max(4, self.console.height - 6)
        shown = [*ended[-max(2, rows - len(shown)) :], *shown][:rows]
        for entry in shown:
            seconds = time.monotonic() - entry.began if entry.state == "running" else entry.seconds
            table.add_row(
                entry.task.name, Text(entry.state, state_style(entry.state)), "" if seconds is None else readable_time(seconds),
                ",".join(entry.gpus),
            )  # fmt: skip
        over = sum(entry.state in _OVER for entry in entries)
        return Group(table, Text(f"{over} of {len(entries)} over, {self._left()} left", "bold"))


def readable_time(seconds: float) -> str:
    """12 s, 3 min, 2 h 05."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d}"
