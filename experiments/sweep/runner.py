"""Runs launches on this machine: those that others start from first, several at once, each in processes of its own.

    ROOT/NAME-sSEED-KEY/    a run folder; its results.json says whether there is anything left to do
    ROOT/logs/NAME....log   what the launch printed
    ROOT/worlds/            the embedded worlds of miniature launches
    ROOT/.locks/KEY         held while a launch runs, by the runner and by the launch: two runners never start it twice

Nothing else is remembered. A second call, also after a SIGKILL of everything, finds what is finished and goes on with the rest.
A launch whose runner was killed runs on; the next runner waits for it.

A `Launch` is all that is needed to start a run somewhere else. `targets.py` and `points.py` make them; nothing here knows of
exhibits or sweep files.

Importing torch and its like takes longer than a miniature run, so on a processor launches are forked from one process that has
imported everything and does nothing else (multiprocessing's forkserver). Launches on GPUs, of several processes, or that are not
crosslight's own commands are started as programs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from datamodules.errors import InputError
from datamodules.files.locks import take_lock
from experiments.papers.schema import STYLES
from experiments.papers.worlds import world_folder, write_miniature_world
from experiments.runs.results import now
from experiments.sweep.display import Display
from experiments.sweep.launches import Launch
from experiments.sweep.outcomes import BROKEN, OVER, Entry, known_state, log_of, record, state_of, why_it_ended
from experiments.sweep.processes import (
    STOPPING,
    environment_of,
    import_everything,
    kill_process,
    oom_kills,
    start_forked,
    visible_gpus,
)


class Runner:
    """Runs launches until all are over. `entries` says how they are, by key.

    Args:
        launches: In the order in which they are wanted.
        root: Folder of logs and locks.
        jobs: Launches at once on the processor (default 1), or at most so many on GPUs (default: as many as there are).
        gpus: Devices, as CUDA_VISIBLE_DEVICES names them (default: those that torch sees).
        retry_failed: Start launches again that an earlier call saw fail.
        more: Asked for another launch when nothing waits and there is room; None: none for now.
        judge: Asked again and again, with the keys and folders of running launches, which of them to stop early and why.
        grace: Seconds that a launch has to stop.
        every: Seconds between two looks at what other runners do, and between two judgements.
        console: To show the progress on.
    """

    def __init__(
        self,
        launches: Sequence[Launch],
        root: Path,
        *,
        jobs: int | None = None,
        gpus: Sequence[str] | None = None,
        retry_failed: bool = False,
        more: Callable[[], Launch | None] | None = None,
        judge: Callable[[Mapping[str, Path]], Mapping[str, str]] | None = None,
        grace: float = 30.0,
        every: float = 1.0,
        console: Console | None = None,
    ) -> None:
        if jobs is not None and jobs < 1:
            raise InputError(f"--jobs is {jobs}: at least one launch runs at once.")
        self.root = root.absolute()
        self.entries: dict[str, Entry] = {}
        self.retry_failed = retry_failed
        self.jobs = jobs
        self.gpus = list(gpus if gpus is not None else visible_gpus() if any(launch.gpus for launch in launches) else ())
        self.more, self.judge, self.grace, self.every = more, judge, grace, every
        self.signal: int | None = None
        self._judged = 0.0
        self._show = Display(console or Console(stderr=True), self.entries, self.root, self.seconds_left)
        for launch in launches:
            self._add(launch)

    def _add(self, launch: Launch) -> None:
        if launch.gpus > len(self.gpus) and known_state(launch)[0] == "waiting":
            raise InputError(
                f"{launch.title} wants {launch.gpus} GPU{'s' * (launch.gpus > 1)} and this machine has {len(self.gpus)}. "
                + (f"Give --devices {len(self.gpus)} (the numbers stay the same), run" if self.gpus and launch.command else "Run")
                + " it on another one, or take --scale miniature; --dry-run lists what everything needs."
            )
        if missing := [key for key in launch.after if key not in self.entries]:
            raise InputError(f"{launch.title} comes after {missing[0]}, which is not among the launches before it.")
        entry = self.entries[launch.key] = Entry(launch)
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
                if all(entry.state in OVER for entry in self.entries.values()):
                    break
                self._wait(running)
        self._show.summary()
        if self.signal is not None:
            return 130 if self.signal == signal.SIGINT else 128 + self.signal
        return int(any(entry.state in BROKEN for entry in self.entries.values()))

    # ---------------------------------------------------------------------------------------------------------- before

    def _render_worlds(self) -> None:
        """The worlds of launches that are still to do. Safe beside another runner: a world appears complete or not at all."""
        waiting = [entry.launch for entry in self.entries.values() if entry.launch.world and entry.state == "waiting"]
        if any(launch.is_forked for launch in waiting):
            import_everything()  # meanwhile: both have parts that keep one core busy
        for style in STYLES:
            if any(launch.world == style for launch in waiting):
                write_miniature_world(world_folder(self.root, style), style)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP stop the launches in order; a second one kills them."""

        def told(number: int, _: Any) -> None:
            if self.signal is not None:
                self.grace = 0.0
            self.signal = number

        before = {number: signal.signal(number, told) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for entry in self.entries.values():  # nothing is running here, unless something of the runner's own went wrong
                if entry.process is not None:
                    kill_process(entry.process)

    # --------------------------------------------------------------------------------------------------------- starting

    def _start(self) -> None:
        for entry in self.entries.values():
            if entry.state == "waiting" or (entry.state == "elsewhere" and time.monotonic() - entry.looked > self.every):
                self._start_one(entry)
        while self.more is not None and self._room(0) and not any(entry.state == "waiting" for entry in self.entries.values()):
            launch = self.more()
            if launch is None:
                return
            self._add(launch)
            self._render_worlds()
            self._start_one(self.entries[launch.key])

    def _start_one(self, entry: Entry) -> None:
        parents = [self.entries[key] for key in entry.launch.after]
        broken = next((parent for parent in parents if parent.state in (*BROKEN, "stopped_early")), None)
        if broken is not None:
            entry.state, entry.error = "blocked", f"starts from {broken.launch.title}, which is {broken.state}"
            self._show.say(entry)
        elif all(parent.state == "finished" for parent in parents) and self._room(entry.launch.gpus):
            entry.looked = time.monotonic()
            lock = take_lock(self.root / ".locks" / entry.launch.key)
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
        entry.state, results, error = known_state(entry.launch)
        entry.seconds = results.seconds if results is not None and entry.state != "waiting" else None
        entry.error = error if entry.state in ("failed", "oom", "stopped_early") else None

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
        launch = entry.launch
        entry.gpus = tuple(self._free_gpus()[: launch.gpus])
        at_once = (self.jobs or max(1, len(self.gpus) // launch.gpus)) if launch.gpus else (self.jobs or 1)
        processes = at_once * max(launch.processes, launch.gpus)
        environment = environment_of(launch, processes)
        if launch.gpus or self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(entry.gpus)
        log = log_of(self.root, launch)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            entry.logged = file.tell()
            file.write(f"{now()} {' '.join(launch.argv)}\n")
        entry.ooms, entry.began, entry.error, entry.before = oom_kills(), time.monotonic(), None, known_state(launch)[1]
        if launch.is_forked:
            entry.process = start_forked(launch, environment, log, DupFd(lock.fileno()))
        else:
            with open(log, "ab") as output:
                entry.process = subprocess.Popen(
                    launch.started, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
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
                kill_process(entry.process)

    def _settle(self, entry: Entry, code: int) -> None:
        """A launch's process has ended: see what its folder says, and say it there where the process could not."""
        assert entry.process is not None
        assert entry.lock is not None
        if code != 0:
            kill_process(entry.process)  # what it left behind: ranks and workers of a leader that was killed
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
        results = state_of(entry.launch)[1]
        # None: the process wrote nothing there
        told = results.status if results is not None and results != entry.before else None
        ours = True
        if told in ("finished", "failed", "oom"):
            pass
        elif entry.stopping is not None:
            ours = record(entry.launch, "stopped_early", entry.stopping)
        elif self.signal is not None:
            ours = told != "running" or record(entry.launch, "interrupted", "stopped with the runner")
        elif told != "interrupted":
            no_memory = code == -signal.SIGKILL and oom_kills() > entry.ooms
            why = why_it_ended(log_of(self.root, entry.launch), code, no_memory, entry.logged)
            ours = record(entry.launch, "oom" if no_memory and told == "running" else "failed", why)
        if not ours:
            entry.state, entry.looked = "elsewhere", time.monotonic()
            return
        self._look(entry)
        if entry.state == "waiting":
            entry.state = "interrupted"
            entry.error = None if self.signal is not None else f"see {log_of(self.root, entry.launch)}"

    def _stop_early(self) -> None:
        if self.judge is None or time.monotonic() - self._judged < self.every:
            return
        self._judged = time.monotonic()
        running = {
            key: entry.launch.folder
            for key, entry in self.entries.items()
            if entry.process is not None and entry.stopping is None
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
        """Of everything, by the times of finished launches of the same kind, else by estimates scaled to them. None: no idea."""
        entries = list(self.entries.values())  # the table asks from a thread of its own
        times: dict[str, list[float]] = defaultdict(list)
        ratios = []
        for entry in entries:
            if entry.state == "finished" and entry.seconds:
                times[entry.launch.kind].append(entry.seconds)
                if entry.launch.cost is not None and entry.launch.cost.hours > 0:
                    ratios.append(entry.seconds / entry.launch.cost.seconds)
        everything = [seconds for group in times.values() for seconds in group]
        total, slots = 0.0, max(1, len(self.gpus) if self.gpus else self.jobs or 1)
        for entry in entries:
            if entry.state in OVER:
                continue
            known = times.get(entry.launch.kind)
            if known:
                expected = sum(known) / len(known)
            elif entry.launch.cost is not None and entry.launch.cost.hours > 0:
                expected = entry.launch.cost.seconds * (median(ratios) if ratios else 1.0)
            elif everything:
                expected = sum(everything) / len(everything)
            else:
                return None
            spent = time.monotonic() - entry.began if entry.state == "running" else 0.0
            total += max(expected - spent, 0.0)
        return total / slots
