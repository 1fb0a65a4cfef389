"""What is planned, running, finished and failed, and what it costs: tables on a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.errors import InputError
from datamodules.files.locks import is_held
from experiments.papers.estimates import without_estimate
from experiments.runs.duration import readable_time
from experiments.runs.folder import is_running
from experiments.runs.headings import counted, heading, number
from experiments.runs.rehearsed import FILE as REHEARSED
from experiments.runs.results import Results, read_results
from experiments.runs.store import folders_holding
from experiments.sweep import slurm
from experiments.sweep.display import plain, state_style
from experiments.sweep.launches import Launch
from experiments.sweep.outcomes import known_state
from experiments.sweep.request import Request


def without_running(console: Console, launches: Sequence[Launch], root: Path, request: Request) -> int:
    """What becomes of launches where this process starts none itself: they are shown, submitted or cancelled."""
    if request.action == "cancel":
        return slurm.cancel(launches, root, console)
    if request.submit is not None:
        status = slurm.submit(launches, root, request, console)
        if not request.dry_run:
            return status
    statuses = show_launches(console, launches, root, slurm.queue_words(root, {launch.key for launch in launches}))
    return int(request.action == "status" and not {"failed", "oom"}.isdisjoint(statuses))


def show_launches(console: Console, launches: Sequence[Launch], root: Path, queue: Mapping[str, str] | None = None) -> list[str]:
    """Launches in the order in which they would start, what is done, and what the rest costs. `queue` is what Slurm says of them.
    Returns their statuses."""
    numbers = {launch.key: str(number) for number, launch in enumerate(launches, 1)}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("#", "run", "status", "validation", "after", "time", "cost", *(["slurm"] if queue else []), ""):
        table.add_column(column, justify="right" if column in ("#", "time", "cost") else "left", overflow="fold")
    statuses: dict[str, str] = {}
    for launch in launches:
        status, results, error = _status(launch, root)
        seconds = None if results is None else results.seconds
        broken = next((key for key in launch.after if statuses.get(key) in ("failed", "oom", "blocked")), None)
        if status == "waiting" and broken is not None:
            status, error = "blocked", f"starts from {numbers[broken]}, which is {statuses[broken]}"
        statuses[launch.key] = status
        cost = "" if launch.cost is None else _hours(launch.cost.hours, launch.cost.device)
        cost += f", {launch.cost.devices} at once" if launch.cost is not None and launch.cost.devices > 1 else ""
        cost += ", measured" if launch.measured else ""
        table.add_row(
            numbers[launch.key], plain(launch.title), Text(status, state_style(status)), plain(_validation(results)),
            " ".join(numbers[key] for key in launch.after), "" if seconds is None else readable_time(seconds), cost,
            *([plain(queue.get(launch.key, ""))] if queue else []), plain(error or "", 200),
        )  # fmt: skip
    rest = [launch for launch in launches if statuses[launch.key] not in ("finished", "stopped_early")]
    console.print(table)
    finished = len(launches) - len(rest)
    hint = f"; side by side, the best validation first: crosslight table {shlex.quote(str(root))}" if finished > 1 else ""
    console.print(plain(f"\n{counted(len(launches), 'run')} in {root}, {finished} finished{hint}"), soft_wrap=True)
    if rest:
        console.print(summed_cost(rest), highlight=False, soft_wrap=True)
    if count := sum(launch.measured for launch in rest):
        told = f"{count} of these costs measured by `crosslight sweep rehearse` ({root / REHEARSED}), the others are estimates"
        console.print(plain(told), soft_wrap=True)
    return list(statuses.values())


def summed_cost(launches: Sequence[Launch]) -> str:
    """Device-hours by device, the most memory of a device, and disk: a data set counts once, with the most that one of its runs
    needs beside it. Retrieval and captioning read the same photographs (coco.yaml, coco_captions.yaml)."""
    hours: dict[str, float] = {}
    disk: dict[tuple[str, ...], float] = {}
    memory = [launch.cost.memory_gb for launch in launches if launch.cost is not None and launch.cost.memory_gb is not None]
    for launch in launches:
        if launch.cost is None:
            continue
        hours[launch.cost.device] = hours.get(launch.cost.device, 0.0) + launch.cost.hours
        data = tuple(name.removesuffix("_captions") for name in launch.data)
        disk[data] = max(disk.get(data, 0.0), launch.cost.disk_gb or 0.0)
    unknown = [launch.title for launch in launches if launch.cost is None and launch.scale is not None]
    points = sum(launch.cost is None and launch.scale is None for launch in launches)
    parts = [_hours(amount, device) for device, amount in hours.items()]
    parts += [f"up to {max(memory):g} GB of memory a device"] if memory else []
    parts += [f"{sum(disk.values()):.0f} GB of data and weights"] if any(disk.values()) else []
    parts += [without_estimate(unknown)] if unknown else []
    parts += [f"{points} of a sweep file, which says nothing of costs"] if points else []
    return f"still to run: {len(launches)}; " + ", ".join(parts)


def _hours(hours: float, device: str) -> str:
    amount = f"{hours:,.1f}-hours" if hours >= 1 else f"{60 * hours:.1f}-minutes"
    number, _, unit = amount.partition("-")
    return f"{number} {device or 'device'}-{unit}"


def _validation(results: Results | None) -> str:
    """The metric that chose the best checkpoint; a test chooses nothing."""
    fit = None if results is None else results.fit
    if fit is None or fit.monitor is None or fit.best_value is None:
        return ""
    metric = fit.monitor.removeprefix("val/")
    return f"{heading(metric)} {number(metric, fit.best_value)}"


def _status(launch: Launch, root: Path) -> tuple[str, Results | None, str | None]:
    """What to say of a launch: its status, results and error."""
    state, results, error = known_state(launch)
    if results is None:
        held = state == "waiting" and is_held(root / ".locks" / launch.key)
        return "running" if held else state, None, error
    return _unfinished(launch.folder, results) if state == "waiting" else state, results, results.error


def _unfinished(folder: Path, results: Results) -> str:
    """A killed run still says that it is running: whoever runs holds its lock."""
    return "running" if results.status == "running" and is_running(folder) else "interrupted"


def _of_folder(folder: Path) -> tuple[str, Results | None, str | None]:
    """What to say of a run folder: its status, results and error."""
    try:
        results = read_results(folder)
        unfinished = results.status in ("running", "interrupted")
        return _unfinished(folder, results) if unfinished else results.status, results, results.error
    except InputError as error:
        return "failed", None, str(error)


def status_of_folder(console: Console, root: Path) -> int:
    """Every run below a folder, and what was submitted from it. Exit status 1 where one failed."""
    jobs, queue = slurm.read_jobs(root), slurm.queue_words(root)
    runs = sorted(folders_holding(root, "results.json"))
    if not runs and not jobs:
        raise InputError(f"{root} holds no results.json: there is no run in it.")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "status", "validation", "time", ""):
        table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    counts: dict[str, int] = {}
    for folder in runs:
        status, results, error = _of_folder(folder)
        seconds = None if results is None else results.seconds
        counts[status] = counts.get(status, 0) + 1
        table.add_row(
            plain(folder.relative_to(root)), Text(status, state_style(status)), plain(_validation(results)),
            "" if seconds is None else readable_time(seconds), plain(error or "", 200),
        )  # fmt: skip
    for key, job in jobs.items():
        if not (Path(job["folder"]) / "results.json").exists():
            counts["submitted"] = counts.get("submitted", 0) + 1
            table.add_row(plain(Path(job["folder"]).name), "submitted", "", "", plain(queue[key]))
    console.print(table)
    console.print("\n" + ", ".join(f"{number} {status}" for status, number in sorted(counts.items())), highlight=False)
    return int(any(status in counts for status in ("failed", "oom")))
