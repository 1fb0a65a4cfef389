"""What is planned, running, finished and failed, and what it costs: tables on a terminal."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.errors import InputError
from datamodules.files.locks import is_held
from experiments.runs.duration import readable_time
from experiments.runs.folder import is_running
from experiments.runs.results import Results, read_results
from experiments.sweep import slurm
from experiments.sweep.display import state_style
from experiments.sweep.tasks import Task, state_of


def without_running(console: Console, tasks: Sequence[Task], root: Path, options: argparse.Namespace) -> int:
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
    if results is None:
        return "running" if is_held(root / ".locks" / task.key) else state, None, None
    return _unfinished(task.folder, results) if state == "waiting" else state, results.seconds, results.error


def _unfinished(folder: Path, results: Results) -> str:
    """A killed run still says that it is running: whoever runs holds its lock."""
    return "running" if results.status == "running" and is_running(folder) else "interrupted"


def _of_folder(folder: Path) -> tuple[str, float | None, str | None]:
    """What to say of a run folder: its status, seconds and error."""
    try:
        results = read_results(folder)
    except InputError as error:
        return "failed", None, str(error)
    unfinished = results.status in ("running", "interrupted")
    return _unfinished(folder, results) if unfinished else results.status, results.seconds, results.error


def status_of_folder(console: Console, root: Path) -> int:
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
        status, seconds, error = _of_folder(file.parent)
        counts[status] = counts.get(status, 0) + 1
        table.add_row(
            str(file.parent.relative_to(root)), Text(status, state_style(status)),
            "" if seconds is None else readable_time(seconds), (error or "")[:200],
        )  # fmt: skip
    for key, job in jobs.items():
        if not (Path(job["folder"]) / "results.json").exists():
            counts["submitted"] = counts.get("submitted", 0) + 1
            table.add_row(Path(job["folder"]).name, "submitted", "", queue[key])
    console.print(table)
    console.print("\n" + ", ".join(f"{number} {status}" for status, number in sorted(counts.items())), highlight=False)
    return int(any(status in counts for status in ("failed", "oom")))
