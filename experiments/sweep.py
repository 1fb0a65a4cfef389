"""`crosslight sweep`: artefacts of the papers and W&B sweep files, run on this machine or submitted to Slurm."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.errors import InputError
from experiments import slurm
from experiments.artefacts import PAPERS, SCALES, artefact_names, plan_runs, read_artefact, read_runs
from experiments.run_folder import read_results, write_atomically
from experiments.runner import (
    PROGRAM,
    Runner,
    Task,
    is_held,
    locked,
    readable_time,
    state_of,
    state_style,
    tasks_of,
    visible_gpus,
    world_folder,
)
from experiments.search import Bayes, draws, grid, hopeless, point_id
from experiments.sweep_file import Point, Sweep, command_of, read_sweep, write_json_file


class _Parser(argparse.ArgumentParser):
    def __init__(self) -> None:
        super().__init__(prog="crosslight sweep", allow_abbrev=False, add_help=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See {self.prog} --help.")


def main(arguments: list[str]) -> int:
    """`crosslight sweep ...`. Returns the exit status."""
    arguments, slurm_arguments = _apart(arguments)
    parser = _Parser()
    parser.add_argument("action", choices=("run", "status", "cancel"))
    parser.add_argument("target")
    parser.add_argument("--scale", choices=SCALES)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--count", type=int)
    parser.add_argument("--search-seed", type=int)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--submit", choices=("slurm",))
    options = parser.parse_args(arguments)
    if options.action != "run":
        _refuse_options_of_run(options, slurm_arguments)
    if slurm_arguments and options.submit is None:
        raise InputError(f"{slurm_arguments[0]} is of jobs: add --submit slurm.")
    if options.submit is not None and options.jobs is not None:
        raise InputError("--jobs is of this machine; --slurm.at_once says how many elements of an array run at once.")
    options.slurm = slurm.read_options(slurm_arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    file = sweep_file(options.target)
    if file is not None:
        for name, given in (("--scale", options.scale), ("--seeds", options.seeds)):
            if given is not None:
                raise InputError(f"{name} is of artefacts; a sweep file says itself what it sweeps over ({file}).")
        return _Search(read_sweep(file), options).act(console)
    for name, given in (("--count", options.count), ("--search-seed", options.search_seed)):
        if given is not None:
            raise InputError(f"{name} is of sweep files, and {options.target} is none.")
    if options.action == "status" and Path(options.target).is_dir():
        for name, given in (("--scale", options.scale), ("--seeds", options.seeds), ("--out", options.out)):
            if given is not None:
                raise InputError(f"status {options.target} shows all runs of that folder; leave {name} out.")
        return _status_of_folder(console, Path(options.target))
    root = (options.out or Path("runs/papers")).absolute()
    tasks = artefact_tasks(options.target, options.scale or "miniature", options.seeds or [0], root)
    if not tasks:
        raise InputError(f"{options.target} has no run at scale {options.scale or 'miniature'}.")
    if options.action != "run" or options.dry_run or options.submit:
        return _without_running(console, tasks, root, options)
    return Runner(tasks, root, jobs=options.jobs, retry_failed=options.retry_failed).run()


def _refuse_options_of_run(options: argparse.Namespace, slurm_arguments: Sequence[str]) -> None:
    given = {
        "--dry-run": options.dry_run, "--retry-failed": options.retry_failed, "--submit": options.submit is not None,
        "--jobs": options.jobs is not None, **dict.fromkeys(slurm_arguments[:1], True),
    }  # fmt: skip
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise InputError(f"{', '.join(wrong)}: of `sweep run` only, and this is `sweep {options.action}`; leave it out.")


def _apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments, and those of them that are options of Slurm: --slurm FILE, --slurm.NAME=VALUE, --slurm.NAME VALUE."""
    rest: list[str] = []
    slurm: list[str] = []
    place = 0
    while place < len(arguments):
        option = arguments[place]
        number = 1 if not option.startswith("--slurm") or "=" in option else 2
        (slurm if option.startswith("--slurm") else rest).extend(arguments[place : place + number])
        place += number
    return rest, slurm


def _without_running(console: Console, tasks: Sequence[Task], root: Path, options: argparse.Namespace) -> int:
    """What becomes of tasks where this process starts none itself: they are shown, submitted or cancelled."""
    if options.action == "cancel":
        return slurm.cancel(tasks, root, console)
    if options.action == "run" and options.submit:
        given = {"retry_failed": options.retry_failed, "dry_run": options.dry_run}
        status = slurm.submit(tasks, root, options.slurm, options.target, console, **given)
        if not options.dry_run:
            return status
    statuses = show_tasks(console, tasks, root, slurm.queue_words(root, {task.key for task in tasks}))
    return int(options.action == "status" and not {"failed", "oom"}.isdisjoint(statuses))


# --------------------------------------------------------------------------------------------------------------- artefacts


def artefact_tasks(target: str, scale: Any, seeds: Sequence[int], root: Path) -> list[Task]:
    """The tasks of an artefact, run, paper or all.

    Raises:
        InputError: There is no such target.
    """
    artefacts = artefact_names()
    if target == "all" or target in PAPERS:
        names = [name for name in artefacts if target in ("all", name.partition("/")[0])]
    elif target in artefacts:
        names = [target]
    else:
        paper, _, run = target.partition("/")
        if paper not in PAPERS or run not in read_runs(paper):
            raise InputError(
                f"there is no artefact, run, paper or sweep file {target!r}. Artefacts: {', '.join(artefacts)}; papers: "
                f"{', '.join(PAPERS)}, all."
            )
        return tasks_of(plan_runs([target], scale, seeds), root)
    runs = {name: _runs_of(name) for name in names}
    jobs = plan_runs(dict.fromkeys(run for each in runs.values() for run in each), scale, seeds)
    # a run of several artefacts belongs to the first
    groups = {job.key: name for name in reversed(names) for job in jobs if set(runs[name]) & set(job.names)}
    return tasks_of(jobs, root, groups)


def _runs_of(artefact: str) -> list[str]:
    """The runs that an artefact's rows name, as PAPER/RUN."""
    paper = artefact.partition("/")[0]
    return [f"{paper}/{run}" for row in read_artefact(artefact).rows for run in row.runs.values()]


def show_tasks(console: Console, tasks: Sequence[Task], root: Path, queue: Mapping[str, str] | None = None) -> list[str]:
    """Tasks in the order in which they would start, what is done, and what the rest costs. `queue` is what Slurm says of them.
    Returns their statuses."""
    numbers = {task.key: str(number) for number, task in enumerate(tasks, 1)}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("#", "run", "status", "after", "time", "cost", *(["slurm"] if queue else []), ""):
        table.add_column(column, justify="right" if column in ("#", "time", "cost") else "left", overflow="fold")
    statuses: dict[str, str] = {}
    for task in tasks:
        status, seconds, error = _status(task, root)
        broken = next((key for key in task.after if statuses.get(key) in ("failed", "oom", "blocked")), None)
        if status == "waiting" and broken is not None:
            status, error = "blocked", f"starts from {numbers[broken]}, which is {statuses[broken]}"
        statuses[task.key] = status
        cost = "" if task.cost is None else _hours(task.cost.hours, task.cost.device)
        table.add_row(
            numbers[task.key], task.name, Text(status, state_style(status)), " ".join(numbers[key] for key in task.after),
            "" if seconds is None else readable_time(seconds), cost, *([queue.get(task.key, "")] if queue else []),
            (error or "")[:200],
        )  # fmt: skip
    rest = [task for task in tasks if statuses[task.key] not in ("finished", "stopped_early")]
    console.print(table)
    console.print(f"\n{len(tasks)} runs in {root}, {len(tasks) - len(rest)} finished", highlight=False, soft_wrap=True)
    if rest:
        console.print(summed_cost(rest), highlight=False, soft_wrap=True)
    return list(statuses.values())


def summed_cost(tasks: Sequence[Task]) -> str:
    """Device-hours by device, the most memory of a device, and disk: a data set counts once, with the most that one of its runs
    needs beside it. Retrieval and captioning read the same photographs (coco.yaml, coco_captions.yaml)."""
    hours: dict[str, float] = {}
    disk: dict[tuple[str, ...], float] = {}
    memory = [task.cost.memory_gb for task in tasks if task.cost is not None and task.cost.memory_gb is not None]
    for task in tasks:
        if task.cost is None:
            continue
        hours[task.cost.device] = hours.get(task.cost.device, 0.0) + task.cost.hours
        data = tuple(Path(part).stem.removesuffix("_captions") for part in task.command if part.startswith("configs/data/"))
        disk[data] = max(disk.get(data, 0.0), task.cost.disk_gb or 0.0)
    unknown = sum(task.cost is None for task in tasks)
    parts = [_hours(amount, device) for device, amount in hours.items()]
    parts += [f"up to {max(memory):g} GB of memory a device"] if memory else []
    parts += [f"{sum(disk.values()):.0f} GB of data and weights"] if any(disk.values()) else []
    parts += [f"{unknown} runs without an estimate"] if unknown else []
    return f"still to run: {len(tasks)}: " + ", ".join(parts)


def _hours(hours: float, device: str) -> str:
    amount = f"{hours:,.1f}-hours" if hours >= 1 else f"{60 * hours:.1f}-minutes"
    number, _, unit = amount.partition("-")
    return f"{number} {device or 'device'}-{unit}"


def _status(task: Task, root: Path) -> tuple[str, float | None, str | None]:
    """What to say of a task: its status, seconds and error."""
    try:
        state, results = state_of(task)
    except InputError as error:
        return "failed", None, str(error)
    if state == "waiting" and results:
        return _unfinished(task.folder, results), results.get("seconds"), results.get("error")
    if state == "waiting" and is_held(root / ".locks" / task.key):
        return "running", None, None
    return state, results.get("seconds"), results.get("error")


def _unfinished(folder: Path, results: Mapping[str, Any]) -> str:
    """A killed run still says that it is running: whoever runs holds its lock."""
    running = results["status"] == "running" and is_held(folder / ".lock")
    return "running" if running else "interrupted"


def _status_of_folder(console: Console, root: Path) -> int:
    """Every run below a folder, and what was submitted from it. Exit status 1 where one failed."""
    files = sorted(root.rglob("results.json"))
    jobs, queue = slurm.read_jobs(root), slurm.queue_words(root)
    if not files and not jobs:
        raise InputError(f"{root} holds no results.json: there is no run in it.")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "status", "time", ""):
        table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    counts: dict[str, int] = {}
    for file in files:
        try:
            results = read_results(file.parent)
        except InputError as error:
            results = {"status": "failed", "error": str(error)}
        status = results["status"]
        if status in ("running", "interrupted"):
            status = _unfinished(file.parent, results)
        counts[status] = counts.get(status, 0) + 1
        seconds = results.get("seconds")
        table.add_row(
            str(file.parent.relative_to(root)), Text(status, state_style(status)),
            "" if seconds is None else readable_time(seconds), (results.get("error") or "")[:200],
        )  # fmt: skip
    for key, job in jobs.items():
        if not (Path(job["folder"]) / "results.json").exists():
            counts["submitted"] = counts.get("submitted", 0) + 1
            table.add_row(Path(job["folder"]).name, "submitted", "", queue[key])
    console.print(table)
    console.print("\n" + ", ".join(f"{number} {status}" for status, number in sorted(counts.items())), highlight=False)
    return int(any(status in counts for status in ("failed", "oom")))


# ------------------------------------------------------------------------------------------------------------- sweep files


def sweep_file(target: str) -> Path | None:
    """The file that a target names, here or in the package; None: the target is an artefact or the like.

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
    return list(command[2:]) if python and len(command) > 1 and command[1].endswith("experiments/cli.py") else None


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
    """lr=0.001 for model.init_args.optimisation.lr: as a table has room for."""
    for name, value in point.items():
        if isinstance(value, dict):
            yield from _short(value)
        else:
            text = Path(value).stem if isinstance(value, str) and value.endswith(".yaml") else value
            yield f"{name.rpartition('.')[2]}={text}"


class _Search:
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
            status = _without_running(console, tasks, self.root, self.options)
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


def history(folder: Path, metric: str) -> list[float]:
    """The finite values of a column of metrics.csv so far, a value a validation; the run may be writing it."""
    file = folder / "metrics.csv"
    if not file.exists():
        return []
    text = file.read_text()
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    values = [float(row[metric]) for row in rows if row.get(metric)]
    return [value for value in values if math.isfinite(value)]
