"""What the benchmarks do alike: options, where a result comes from, interleaved rounds, ratios, tables, the JSON.

Only the standard library is imported with this module: a worker that measures its own memory, or that must not see this project,
can use it. What stands in one benchmark only does not belong here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
# Dense bf16 FLOP/s of the data sheets, by a part of the device's name; the first that fits.
PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12,
    "A100": 312e12, "A10G": 70e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12, "4090": 165e12,
}  # fmt: skip
READING = """
Ratios, in all benchmarks
- Rounds go A B C A B C, never A A B B: on a machine with other work a row is then compared with what ran seconds before it.
- A ratio is the median of the rounds' own ratios to the reference row, with lowest and highest beside it.
- Only ratios travel between machines, and on shared cores only those of CPU seconds (of the whole process, all threads; one that
  waits in a spin loop counts as busy): wall seconds then measure the load, which is printed. On a GPU wall seconds count.
- Use the memory settings of `make` (MALLOC_*, docs/speed.md): the line under the title says whether they were set.
"""

Turn = Callable[[], Mapping[str, float]]


# ------------------------------------------------------------------------------------------------------------ options, origin


def command_line(
    about: str | None,
    out: str = "write everything, each step of each round included, as JSON",
    *,
    devices: Sequence[str] = (),
    threads: int | None = None,
    rounds: int | None = None,
) -> argparse.ArgumentParser:
    """The options that several scripts have, one way of naming them; without a default a script does not have the option.

    Args:
        about: The script's own text, shown as it is written.
        out: What --out writes.
        devices: Of --device, the default first.
        threads: Default of --threads.
        rounds: Default of --rounds.
    """
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    if devices:
        made.add_argument("--device", choices=devices, default=devices[0])
    if threads is not None:
        made.add_argument("--threads", type=int, default=threads)
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--out", type=Path, help=out)
    return made


def heading(benchmark: str, device: str, settings: Mapping[str, Any], environment: Sequence[str] = MALLOC) -> dict[str, Any]:
    """How a result begins: what was asked for, and when, by which code, on what it was measured.

    Args:
        benchmark: Name.
        device: "cpu" or "cuda". Set the number of threads before: it is noted.
        settings: What decides the result.
        environment: Variables that decide the speed; none = no such key.
    """
    from experiments.runs.provenance import device_state, git_state, versions

    begun: dict[str, Any] = {
        "benchmark": benchmark,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **settings,
        "git": git_state(Path(__file__).resolve().parent),
        "versions": versions(),
        "device": device_state(device),
    }
    return begun | ({"environment": {name: os.environ.get(name) for name in environment}} if environment else {})


def write(result: Mapping[str, Any], out: Path | None) -> None:
    """The JSON, where --out asks for it."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")


def tell(line: str) -> None:
    """Progress: on stderr, since stdout has the tables."""
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------- measurement


def autocast(device: str, bf16: bool | None = None) -> AbstractContextManager[Any]:
    """bf16 autocast or fp32; by default bf16 on a GPU only."""
    import torch

    return torch.autocast(device, torch.bfloat16) if (device == "cuda" if bf16 is None else bf16) else nullcontext()


def peak_flops(name: str) -> float | None:
    """Dense bf16 FLOP/s of a device, None if it is not known."""
    return next((peak for part, peak in PEAKS.items() if part.lower() in name.lower()), None)


def clock(device: str = "cpu") -> tuple[float, float]:
    """Wall seconds and CPU seconds of the process, after what a GPU still has to do."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def timed(step: Callable[[], object], device: str = "cpu") -> dict[str, float]:
    """Wall seconds and CPU seconds of the whole process of one call.

    Some kernels count a process's CPU time in ticks of milliseconds: a call within one tick then took "no" CPU time, which is no
    reading and has no ratio. Its wall seconds stand for it.
    """
    wall, cpu = clock(device)
    step()
    wall_after, cpu_after = clock(device)
    return {"wall_s": wall_after - wall, "cpu_s": (cpu_after - cpu) or (wall_after - wall)}


def interleave(
    turns: Mapping[Any, Turn] | Callable[[int], Mapping[Any, Turn]], rounds: int, warm: int = 2, key: str = "row"
) -> list[dict[str, Any]]:
    """Every turn once a round, in order: a slow minute then does not hit one of them alone.

    Args:
        turns: By name; or what gives those of a round, where every round has another piece of work.
        rounds: How many count.
        warm: Rounds before them that do not.
        key: Under which the name stands.
    """
    of_round = turns if callable(turns) else lambda _: turns
    for number in range(warm):
        for step in of_round(number).values():
            step()
    steps: list[dict[str, Any]] = []
    for number in range(rounds):
        here = of_round(number)
        for name, step in here.items():
            steps.append({"round": number, key: name, **step(), "load_average": round(os.getloadavg()[0], 2)})
        times = ", ".join(f"{1000 * s['cpu_s']:.0f}" for s in steps[-len(here) :])
        tell(f"round {number + 1} of {rounds}: CPU ms {times}")
    return steps


def ratios(own: Sequence[float], first: Sequence[float]) -> dict[str, float]:
    """The rounds' own ratios of two rows: a ratio of two medians would compare what ran at different times."""
    each = [a / b for a, b in zip(own, first, strict=True)]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def summary(steps: Sequence[Mapping[str, Any]], name: Hashable, reference: Hashable) -> dict[str, Any]:
    """Medians of one row, and the rounds' own ratios to another."""
    own, first = ([step for step in steps if step["row"] == row] for row in (name, reference))
    out: dict[str, Any] = {}
    for kind in ("cpu", "wall"):
        seconds, others = ([step[f"{kind}_s"] for step in rows] for rows in (own, first))
        out |= {f"{kind}_s": statistics.median(seconds), f"{kind}_ratio": ratios(seconds, others)}
    return out


# --------------------------------------------------------------------------------------------------------------------- report


def table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Markdown; the first `texts` columns are words, the others numbers."""
    rule = "|" + " --- |" * texts + " ---: |" * (len(head) - texts)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def spread(values: Mapping[str, float], median: str = ".3f", ends: str = ".2f", to: str = "-") -> str:
    """A ratio with lowest and highest."""
    return f"{values['median']:{median}} ({values['low']:{ends}}{to}{values['high']:{ends}})"


def machine_line(result: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], *packages: str) -> str:
    """Where the numbers come from: the line under a title.

    Args:
        result: Begun by `heading`.
        steps: Of all rounds, for the load.
        packages: Whose versions to name; by default torch and Python.
    """
    device, git, loads = result["device"], result["git"], [step["load_average"] for step in steps]
    malloc = "set" if all(result["environment"].values()) else "NOT set"
    named = ", ".join(f"{name} {result['versions'][name]}" for name in packages or ("torch", "python"))
    revision = (git["revision"] or "unknown revision")[:12] + (" + changes" if git["dirty"] else "")
    return (
        f"{device['name']}, {device['cores']} cores, load average {min(loads):.1f} to {max(loads):.1f}, MALLOC_* {malloc}; "
        f"{named}; {revision}; {result['date']}."
    )
