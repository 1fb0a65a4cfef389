"""What was rehearsed, as a table: on a terminal, and as a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from datamodules.errors import some
from experiments.rehearsal.devices import Machine, device_named, translated
from experiments.rehearsal.estimates import folder_bytes
from experiments.rehearsal.life import Place
from experiments.runs.duration import readable_time
from experiments.runs.rehearsed import Figures, Rehearsed, Verdict
from experiments.runs.sizes import decimal_bytes
from experiments.sweep.launches import Launch

COLUMNS = ("run", "verdict", "parameters", "memory", "a step", "whole run", "disk", "cut")


def row(launch: Launch, record: Rehearsed, on: Machine | None) -> tuple[str, ...]:
    """The cells of a configuration."""
    found = record.figures
    if found is None:
        return (launch.title, verdict_of(record), "", "", "", hours(launch, None, on), "", "")
    parameters = (
        "" if found.parameters is None else f"{(found.tunable_parameters or 0) / 1e6:,.1f} of {found.parameters / 1e6:,.1f} M"
    )
    step = "" if found.seconds_per_step is None else f"{found.seconds_per_step:.3g} s"
    disk = "" if not found.disk_bytes else decimal_bytes(found.disk_bytes)
    return (
        launch.title, verdict_of(record), parameters, memory(launch, found), step, hours(launch, found, on), disk,
        "; ".join(found.cut),
    )  # fmt: skip


def verdict_of(record: Rehearsed) -> str:
    if record.faults:
        return "fails: " + ", ".join(verdict.stage for verdict in record.faults)
    unknown = [verdict.stage for verdict in record.verdicts if verdict.outcome == "unknown"]
    return "sound" + (f"; not known here: {', '.join(unknown)}" if unknown else "") if record.whole else "not over"


def memory(launch: Launch, found: Figures) -> str:
    if found.peak_bytes and found.counted_bytes:
        return f"{decimal_bytes(found.counted_bytes)} from {decimal_bytes(found.peak_bytes)} measured"
    if found.peak_bytes:
        return f"{decimal_bytes(found.peak_bytes)} measured"
    if launch.gpus:
        return "" if found.counted_bytes is None else f"{decimal_bytes(found.counted_bytes)} counted"
    return "" if found.resident_bytes is None else f"{decimal_bytes(found.resident_bytes)} of the machine"


def hours(launch: Launch, found: Figures | None, on: Machine | None) -> str:
    """Device-hours of the whole run: measured on a GPU, or on a processor where the run belongs there; else its estimate. With
    --on also what that would be there."""
    measured = found is not None and found.hours is not None and (found.kind == "cuda" or not launch.gpus)
    if measured and found is not None and found.hours is not None:
        amount, device = found.hours * found.processes, found.device
        text = f"{device_time(amount)} measured on {device}"
    elif launch.cost is not None:
        amount, device = launch.cost.hours, launch.cost.device
        text = f"{device_time(amount)} of {device or 'a device'} estimated"
    else:
        return ""
    if on is None or found is None or not launch.gpus or (source := device_named(device)) is None:
        return text
    there = translated(3600 * amount, on.device, source, found.precision)
    return f"{text}; on {on} {readable_time(there / on.count)} by peak FLOPs"


def device_time(amount: float) -> str:
    return f"{amount:,.1f} h" if amount >= 0.1 else readable_time(3600 * amount)


def line(verdict: Verdict) -> str:
    return f"{verdict.stage} {verdict.outcome}" + (f": {verdict.said}" if verdict.said else "")


def totals(records: Sequence[Rehearsed]) -> str:
    """How many are sound, and what all of them leave on the disk."""
    disk = sum(record.figures.disk_bytes or 0 for record in records if record.figures is not None)
    sound = sum(record.whole for record in records)
    failed = sum(bool(record.faults) for record in records)
    left = f"their run folders take {decimal_bytes(disk)}"
    return f"{len(records)} configurations rehearsed: {sound} sound, {failed} would fail; {left}"


def too_many(place: Place, launches: Sequence[Launch], done: Mapping[str, Rehearsed]) -> str | None:
    """What to do where all these runs' folders do not fit on the disk together; None where they do.

    Args:
        place: Of the rehearsal.
        launches: As the sweep would start them, with the folders that it would write.
        done: What was rehearsed, by key.
    """
    figures = {launch.key: record.figures for launch in launches if (record := done.get(launch.key)) is not None}
    needed = {key: found.disk_bytes or 0 for key, found in figures.items() if found is not None}
    held = sum(min(needed.get(each.key, 0), folder_bytes(each.folder)) for each in launches if each.folder.is_dir())
    total, free = sum(needed.values()) - held, place.free(place.root)
    if total <= free:
        return None
    return (
        f"Together they do not fit: their run folders take {decimal_bytes(total)} more and {decimal_bytes(free)} of {place.root} "
        f"are free. Free {decimal_bytes(total - free)}, give --out on another disk, or run part of them at a time."
    )


def faults(launches: Sequence[Launch], done: Mapping[str, Rehearsed]) -> list[str]:
    """What would fail, a line each, with the runs that it stops."""
    return _lines(launches, done, lambda verdict: verdict.outcome == "failed")


def missing(launches: Sequence[Launch], done: Mapping[str, Rehearsed]) -> list[str]:
    """What else than a GPU this machine lacks, a line each, with the runs that want it."""
    return _lines(launches, done, lambda verdict: verdict.outcome == "unknown" and verdict.stage == "report")


def _lines(launches: Sequence[Launch], done: Mapping[str, Rehearsed], wanted: Callable[[Verdict], bool]) -> list[str]:
    runs: dict[str, list[str]] = {}
    for launch in launches:
        for verdict in done[launch.key].verdicts if launch.key in done else ():
            if wanted(verdict):
                runs.setdefault(line(verdict), []).append(launch.title)
    return [f"{said} [{some(titles)}]" for said, titles in runs.items()]


def nobodys(words: Sequence[str], records: Sequence[Rehearsed]) -> list[str]:
    """Those words of --set that each run left out: mistyped, or of other runs."""
    parsed = [verdict for record in records for verdict in record.verdicts if verdict.stage == "parse"]
    return [word for word in words if parsed and all(word in verdict.without for verdict in parsed)]


def limits(place: Place, launches: Sequence[Launch]) -> str:
    """What this machine could not know."""
    if place.settings.gpus or not any(launch.gpus for launch in launches):
        return ""
    return (
        "Rehearsed on a processor: times on the device are not known here (hours are the recipes' estimates), and its memory is "
        "counted: weights, gradients, optimizer state, what backward keeps; not the work space of single operations."
    )


def page(launches: Sequence[Launch], done: Mapping[str, Rehearsed], place: Place) -> str:
    """rehearsed.md."""
    over = [(launch, done[launch.key]) for launch in launches if launch.key in done]
    lines = [
        "# Rehearsed",
        "",
        f"Settings: {place.settings.words}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- " * len(COLUMNS) + "|",
    ]
    lines += ["| " + " | ".join(_cell(cell) for cell in row(launch, record, place.on)) + " |" for launch, record in over]
    lines += ["", f"{totals([record for _, record in over])}.", *(["", told] if (told := limits(place, launches)) else [])]
    if wrong := faults(launches, done):
        lines += ["", "## What would fail, and the remedy", "", *(f"- {_cell(fault)}" for fault in wrong)]
    if lacks := missing(launches, done):
        lines += ["", "## What this machine lacks", "", *(f"- {_cell(each)}" for each in lacks)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
