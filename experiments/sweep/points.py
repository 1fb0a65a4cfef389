"""The points of a sweep file as tasks."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.locks import locked
from experiments.papers.worlds import world_folder
from experiments.runs.metrics_csv import history
from experiments.sweep.processes import visible_gpus
from experiments.sweep.runner import Runner
from experiments.sweep.search import Bayes, draws, grid, hopeless, point_id
from experiments.sweep.status import without_running
from experiments.sweep.sweep_file import Point, Sweep, command_of, write_json_file
from experiments.sweep.tasks import PROGRAM, Task, state_of


def sweep_file(target: str) -> Path | None:
    """The file that a target names, here or in the package; None: the target is an exhibit or the like.

    Raises:
        InputError: It is the name of a YAML that does not exist.
    """
    if not target.endswith((".yaml", ".yml")):
        return None
    if Path(target).is_file():
        return Path(target)
    package, _, rest = target.partition("/")
    packaged = Path(str(resources.files("experiments"))) / rest
    if package == "experiments" and packaged.is_file():
        return packaged
    raise InputError(f"sweep file {target} does not exist, here or in the package.")


def points_of(sweep: Sweep, count: int | None, search_seed: int) -> list[Point]:
    """All points of a grid, or the first `count`, and `count` draws.

    Raises:
        InputError: Random without a count.
    """
    count = count if count is not None else sweep.cap
    if count is None and sweep.method != "grid":
        raise InputError(f"{sweep.file}: method {sweep.method} has no end: give --count N, or run_cap in the file.")
    points = grid(sweep) if sweep.method == "grid" else draws(sweep, search_seed)
    return list(itertools.islice(points, count))


def point_task(sweep: Sweep, point: Point, root: Path, gpus_here: int) -> Task:
    """A point as a task. Its folder carries a hash of the command line and of the configuration files that it names.

    Raises:
        InputError: The command names a folder for all points.
    """
    command = command_of(sweep, point, json_file=_json_file(root, point))
    if command[:1] == ["/usr/bin/env"]:
        command = command[1:]
    own = _own_arguments(command)
    if any(part.startswith("--run_dir") for part in command):
        raise InputError(f"{sweep.file}: leave --run_dir out of the command: every point gets a folder of its own.")
    arguments = command if own is None else [sys.argv[0], *own]
    key = hashlib.sha256(json.dumps([own or command, _texts(own or command)]).encode()).hexdigest()[:12]
    folder = root / f"{sweep.name.replace('/', '-')}-{key[:8]}"
    environment = {"WANDB_RUN_GROUP": sweep.name}
    in_world = any("configs/data/world" in part for part in arguments) and "CROSSLIGHT_WORLD" not in os.environ
    if in_world:
        environment["CROSSLIGHT_WORLD"] = str(world_folder(root, "target"))
    processor = ("configs/trainer/demo.yaml", "configs/trainer/cpu.yaml", "accelerator=cpu")
    on_processor = not gpus_here or any(part.endswith(processor) for part in arguments)
    devices = [part.partition("=")[2] for part in arguments if part.startswith("--trainer.devices=")]
    return Task(
        key=key, name=" ".join(_short(point)) or sweep.name, kind=sweep.name, folder=folder,
        command=(*(command if own is None else (*PROGRAM, *own)), f"--run_dir={folder}"), environment=environment,
        gpus=0 if on_processor else int(devices[-1]) if devices and devices[-1].isdigit() else 1,
        world="target" if in_world else None,
    )  # fmt: skip


def _json_file(root: Path, point: Point) -> Path:
    return root / "points" / f"{point_id(point)}.json"


def _own_arguments(command: Sequence[str]) -> list[str] | None:
    """The arguments of a crosslight command; None: it is another program's."""
    if not command:
        return None
    if Path(command[0]).name == "crosslight":
        return list(command[1:])
    python = Path(command[0]).name.startswith("python")
    if python and list(command[1:3]) == ["-m", "experiments.cli"]:
        return list(command[3:])
    return list(command[2:]) if python and len(command) > 1 and command[1].endswith("experiments/cli/main.py") else None


def _texts(command: Sequence[str]) -> list[str]:
    """The text of every YAML that a command names."""
    texts = []
    for part in command:
        name = part.partition("=")[2] if part.startswith("--config=") else part
        if name.endswith((".yaml", ".yml")):
            package, _, rest = name.partition("/")
            packaged = Path(str(resources.files(package))) / rest if package in ("configs", "experiments") else Path(name)
            file = Path(name) if Path(name).is_file() else packaged
            texts += [file.read_text()] if file.is_file() else []
    return texts


def _short(point: Point) -> Iterator[str]:
    """lr=0.001 for model.init_args.optimization.lr: as a table has room for."""
    for name, value in point.items():
        if isinstance(value, dict):
            yield from _short(value)
        else:
            text = Path(value).stem if isinstance(value, str) and value.endswith(".yaml") else value
            yield f"{name.rpartition('.')[2]}={text}"


class Search:
    """A sweep file being run: its points, and what is known of them."""

    def __init__(self, sweep: Sweep, options: argparse.Namespace) -> None:
        self.sweep, self.options = sweep, options
        self.root = (options.out or Path("runs/sweeps") / sweep.name.replace("/", "-")).absolute()
        self.seed = options.search_seed or 0
        self.cap = options.count if options.count is not None else sweep.cap
        self.gpus_here = 0
        self.only_shows = options.action != "run" or options.dry_run
        self.tasks: dict[str, Task] = {}

    def act(self, console: Console) -> int:
        bayes = self.sweep.method == "bayes"
        points = self._known() if bayes or self._asks_of_draws() else points_of(self.sweep, self.cap, self.seed)
        if bayes and self.cap is None and self.options.action == "run":
            raise InputError(f"{self.sweep.file}: method bayes has no end: give --count N, or run_cap in the file.")
        submits, only_shows = self.options.submit, self.only_shows
        if submits and (bayes or self.sweep.early_terminate):
            what = "method: bayes" if bayes else "early_terminate"
            raise InputError(
                f"{self.sweep.file}: {what} looks at other runs' results, and all jobs are submitted at once: submit grid or "
                "random without early_terminate, or run this file without --submit inside of an allocation (salloc)."
            )
        gpus = [] if submits or only_shows else visible_gpus()
        self.gpus_here = 1 if submits else len(gpus)
        tasks = [self._task(point) for point in points]
        if only_shows or submits:
            if not only_shows:
                self._note_draws(points)
            status = without_running(console, tasks, self.root, self.options)
            if bayes and self.cap is not None:
                console.print(f"bayes chooses {max(0, self.cap - len(tasks))} further points by the results of others")
            return status
        engine = Bayes(self.sweep, self.seed) if bayes else None
        if engine is None:
            self._note_draws(points)
        # what Optuna will suggest is not known yet, and is like what could be drawn
        drawn = itertools.islice(draws(self.sweep, self.seed), 9) if bayes else ()
        wants_gpus = any(task.gpus for task in (*tasks, *(point_task(self.sweep, each, self.root, len(gpus)) for each in drawn)))
        self.runner = Runner(
            tasks, self.root, jobs=self.options.jobs, gpus=gpus if wants_gpus else [], retry_failed=self.options.retry_failed,
            more=None if engine is None else lambda: self._suggested(engine),
            judge=None if self.sweep.early_terminate is None else self._judge,
        )  # fmt: skip
        return self.runner.run()

    def _task(self, point: Point) -> Task:
        task = point_task(self.sweep, point, self.root, self.gpus_here)
        self.tasks[task.key] = task
        if not self.only_shows:
            write_json_file(self.sweep, point, _json_file(self.root, point))
        return task

    def _suggested(self, engine: Bayes) -> Task | None:
        """Optuna's next point, from all that are noted: those of another runner too."""
        with locked(self.root / ".locks" / "points"):
            points = self._known()
            if len(points) >= (self.cap or 0):
                return next((self._task(point) for point in points if self._is_new(point)), None)
            values = self._values(points)
            measured = [(point, value) for point, value in zip(points, values, strict=True) if value != "failed"]
            point = engine.suggest([each for each, _ in measured], [value for _, value in measured])
            if point_id(point) in {point_id(each) for each in points}:  # a small space: take a drawn point instead
                known = {point_id(each) for each in points}
                fresh = next((each for each in draws(self.sweep, self.seed) if point_id(each) not in known), None)
                if fresh is None:
                    return None
                point = fresh
            self._note([*points, point])
        return self._task(point)

    def _is_new(self, point: Point) -> bool:
        return point_task(self.sweep, point, self.root, self.gpus_here).key not in self.runner.entries

    def _values(self, points: Sequence[Point]) -> list[Any]:
        """The metric of each point; None while it runs; where it failed the worst of all, as W&B imputes it, or "failed"."""
        values: list[Any] = []
        for point in points:
            task = point_task(self.sweep, point, self.root, self.gpus_here)
            state = state_of(task)[0]
            measured = history(task.folder, str(self.sweep.metric))
            done = state in ("finished", "stopped_early") and measured
            values.append(measured[-1] if done else "failed" if state in ("failed", "oom", "finished") else None)
        known = [value for value in values if isinstance(value, float)]
        worst = "failed" if not known else min(known) if self.sweep.goal == "maximize" else max(known)
        return [worst if value == "failed" else value for value in values]

    def _judge(self, running: Mapping[str, Path]) -> Mapping[str, str]:
        assert self.sweep.early_terminate is not None
        histories = {key: history(task.folder, str(self.sweep.metric)) for key, task in self.tasks.items()}
        return hopeless(self.sweep.early_terminate, self.sweep.goal == "maximize", histories, list(running))

    def _known(self) -> list[Point]:
        """Points that earlier calls and other runners chose, in their order."""
        file = self.root / "points.json"
        return json.loads(file.read_text())["points"] if file.exists() else []

    def _asks_of_draws(self) -> bool:
        """Whether status or cancel is asked of all that was drawn and started: which those are only the folder knows."""
        given = self.options.count is not None or self.options.search_seed is not None
        return self.sweep.method == "random" and self.options.action != "run" and not given and bool(self._known())

    def _note_draws(self, points: Sequence[Point]) -> None:
        """Another call may have drawn others, by its --count or --search-seed."""
        with locked(self.root / ".locks" / "points"):
            noted = self._known() if self.sweep.method == "random" else []
            known = {point_id(point) for point in noted}
            self._note([*noted, *(point for point in points if point_id(point) not in known)])

    def _note(self, points: Sequence[Point]) -> None:
        """Write the points down: Optuna goes on from them, and a reader sees what was swept."""
        self.root.mkdir(parents=True, exist_ok=True)
        content = {"file": str(self.sweep.file), "name": self.sweep.name, "method": self.sweep.method, "points": list(points)}
        write_atomically(self.root / "points.json", json.dumps(content, indent=1) + "\n")
