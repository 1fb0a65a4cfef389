"""Run folders side by side: recalls or caption scores with mean and standard deviation over seeds, and what they cost."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.report.escape import csv_value, markdown_text
from experiments.runs.headings import DISTANCES, DOMAINS, NONE, RECALLS, factor_and_form
from experiments.runs.results import Evaluation, Results
from experiments.runs.seeds import Configuration, configuration_of, differing_options
from experiments.runs.store import Run, arrays_of, read_run, run_folders_below

COSTS = ("tunable_parameters", "tunable_percent", "peak_memory_bytes", "seconds_per_epoch", "pairs_per_second")


def find_runs(folders: Iterable[str | Path]) -> dict[Path, Run]:
    """Every run in or below the folders, each once; one whose results cannot be read, or are not those of its
    per-query files, says so.

    Raises:
        InputError: A folder does not exist or holds no run.
    """
    return {folder: _compared(read_run(folder)) for folder in run_folders_below(folders)}


def _compared(run: Run) -> Run:
    """A finished run whose numbers are those of its per-query files; else one that says which are not."""
    try:
        for evaluation in run.results.tests() if run.results is not None and run.status == "finished" else ():
            arrays_of(run, evaluation)
    except InputError as error:
        return replace(run, status="unreadable", results=None, error=str(error))
    return run


def rows(runs: Mapping[Path, Run], data: str | None = None) -> list[dict[str, Any]]:
    """One row a (name, configuration, data set, test split): finished runs that differ in nothing but the seed are its seeds; the
    others keep a row that says so. Rows of one name say in what they differ (`differs`).

    Args:
        runs: What `find_runs` gives.
        data: Only this data set (default: all that were tested).
    """
    named: dict[str, dict[Path, Configuration]] = defaultdict(dict)
    for folder, run in runs.items():
        if run.results is not None:
            named[run.name][folder] = configuration_of(folder, run.results)
    differ = {name: differing_options(list(members.values())) for name, members in named.items()}
    grouped: dict[tuple[str, str, str], list[tuple[str, Results, Evaluation]]] = defaultdict(list)
    table: list[dict[str, Any]] = []
    for folder, run in runs.items():
        row: dict[str, Any] = {"name": run.name, "status": run.status, "folder": str(folder)}
        if run.results is None:
            table.append({**row, "error": run.error})
            continue
        configuration = named[run.name][folder]
        row["differs"] = differ[run.name][configuration.digest]
        if run.status != "finished":
            table.append(row)
            continue
        tests = run.results.tests()
        for evaluation in tests:
            # A split cut by `limits` is "test[:100]": it is another data set, and says so. NoCaps is tested on what it calls val.
            label = evaluation.data + evaluation.split.removeprefix("test").replace("val", " val")
            if data in (None, evaluation.data):
                grouped[run.name, configuration.digest, label].append((configuration.seed, run.results, evaluation))
        if not tests:
            table.append({**row, "status": "not tested"})
    done = [
        {"name": name, "data": data_set, "differs": differ[name][digest], **_finished(members)}
        for (name, digest, data_set), members in grouped.items()
    ]
    return done + table


def _finished(members: Sequence[tuple[str, Results, Evaluation]]) -> dict[str, Any]:
    """A row's numbers, from its runs and their seeds."""
    seeds = {seed: [(run, test) for other, run, test in members if other == seed] for seed, _, _ in members}
    own = {key: heading for _, _, test in members for key, heading in test.columns.items()}
    row: dict[str, Any] = {"status": "finished", "seeds": len(seeds), "runs": len(members)}
    row["columns"] = {**RECALLS, **DISTANCES, **own, **DOMAINS}
    for key in row["columns"]:
        values = _of_seeds(seeds, lambda run, test, key=key: test.metrics.get(key))  # type: ignore[misc]
        if not values:
            continue
        row[key] = statistics.mean(values)
        row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        row[f"{key}_n"] = len(values)
    row["scale"] = members[0][1].scale
    row["steps"] = _mean(_of_seeds(seeds, lambda run, test: None if run.fit is None else run.fit.steps))
    for cost in COSTS:
        found = _of_seeds(seeds, lambda run, test, cost=cost: None if run.cost is None else getattr(run.cost, cost))  # type: ignore[misc]
        row[cost] = _mean(found)
    devices = {run.provenance.device.name: None for _, run, _ in members if run.provenance is not None}
    row["device"] = "; ".join(devices) or None
    return row


Members = list[tuple[Results, Evaluation]]


def _of_seeds(seeds: Mapping[str, Members], value_of: Callable[[Results, Evaluation], float | None]) -> list[float]:
    """A number of each seed that has it; of a seed that ran several times the mean."""
    found = {seed: [value for each in members if (value := value_of(*each)) is not None] for seed, members in seeds.items()}
    finite = {seed: [value for value in values if math.isfinite(value)] for seed, values in found.items()}
    return [statistics.mean(values) for values in finite.values() if values]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def markdown(table: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; recalls in percent, caption scores times 100, mean +- standard deviation over seeds."""
    headings: dict[str, str] = {}
    for row in table:
        headings |= {key: heading for key, heading in row.get("columns", {}).items() if key not in DOMAINS}
    shown = {key: name for key, name in {**headings, **DOMAINS}.items() if any(key in row for row in table)}
    header = ["run", "test data", "seeds", *shown.values(), "steps", "tunable", "%", "memory", "s/epoch", "pairs/s"]
    lines = ["| " + " | ".join(map(_cell, header)) + " |", "|" + " --- |" * len(header)]
    for row in table:
        name = _cell(f"{row['name']} ({row['differs']})" if row.get("differs") else row["name"])
        if row["status"] != "finished":
            why = f": {row['error']}" if row.get("error") else ""
            lines.append(f"| {name} | {_cell(row['status'] + why)} |" + " |" * (len(header) - 2))
            continue
        seeds = str(row["seeds"]) + (f" ({row['runs']} runs)" if row["runs"] != row["seeds"] else "")
        cells = [name, _cell(row["data"]), seeds, *(metric_text(row, key) for key in shown)]
        cells += [
            _or_dash(row["steps"], "{:,.0f}"),
            _or_dash(row["tunable_parameters"], "{:,.0f}"),
            _or_dash(row["tunable_percent"], "{:.2f}"),
            bytes_text(row["peak_memory_bytes"]),
            _or_dash(row["seconds_per_epoch"], "{:.1f}"),
            _or_dash(row["pairs_per_second"], "{:.0f}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def metric_text(row: dict[str, Any], key: str) -> str:
    """A metric of a row as papers print it, with its standard deviation over seeds."""
    factor, form = factor_and_form(key, row["columns"])
    value, spread = (None if row.get(name) is None else factor * row[name] for name in (key, f"{key}_sd"))
    count = row.get(f"{key}_n")
    some = f" ({count} of {row['seeds']})" if count is not None and count < row["seeds"] else ""
    return _or_dash(value, form) + ("" if spread is None else f" ±{form.format(spread)}") + some


def to_csv(table: list[dict[str, Any]]) -> str:
    columns = [key for key in dict.fromkeys(key for row in table for key in row) if key != "columns"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(map(csv_value, columns))
    writer.writerows([csv_value(row.get(key)) for key in columns] for row in table)
    return text.getvalue()


def _cell(text: str) -> str:
    return markdown_text(text, printed=True)


def _or_dash(value: Any, form: str) -> str:
    return NONE if value is None else form.format(value)


def bytes_text(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
