"""Run folders side by side: recalls or caption scores with mean and standard deviation over seeds, and what they cost."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.runs.results import Evaluation, Results, read_results
from experiments.runs.store import run_folders_below

# Columns by metric; a table has those of which a run has a value, and those that an evaluation's notes name: {metric: heading}.
RECALLS = {
    "i2t_r1": "i2t R@1", "i2t_r5": "R@5", "i2t_r10": "R@10", "t2i_r1": "t2i R@1", "t2i_r5": "R@5", "t2i_r10": "R@10",
    "rsum": "rsum",
}  # fmt: skip
# Relation distances, where a run measured them (pairs with objects): ISDa, and both IAIS losses.
DISTANCES = {"isda": "ISDa", "iais_singular": "L(s)", "iais_distributed": "L(d)"}
# Of NoCaps, as in Table 2 of I-Tuning.
DOMAINS = {
    f"{domain}-domain/{metric}": f"{domain} {heading}"
    for domain in ("in", "near", "out")
    for metric, heading in (("cider", "CIDEr"), ("spice", "SPICE"))
}


def find_runs(folders: Iterable[str | Path]) -> dict[Path, Results]:
    """The results of every run in or below the folders.

    Raises:
        InputError: A folder does not exist or holds no run, or results cannot be read.
    """
    return {folder: read_results(folder) for folder in run_folders_below(folders)}


def rows(runs: Mapping[Path, Results], data: str | None = None) -> list[dict[str, Any]]:
    """One row a (name, data set, test split): finished runs of one name are its seeds; the others keep a row that says so.

    Args:
        runs: What `find_runs` gives.
        data: Only this data set (default: all that were tested).
    """
    grouped: dict[tuple[str, str, int | None], list[tuple[Results, Evaluation]]] = defaultdict(list)
    table: list[dict[str, Any]] = []
    for folder, run in runs.items():
        if run.status != "finished":
            table.append({"name": run.name, "status": run.status, "folder": str(folder)})
            continue
        tests = run.tests()
        for evaluation in tests:
            # A split cut by `limits` is "test[:100]": it is another data set, and says so. NoCaps is tested on what it calls val.
            label = evaluation.data + evaluation.split.removeprefix("test").replace("val", " val")
            if data in (None, evaluation.data):
                # models of other sizes are no seeds of each other, whatever they are called
                size = None if run.cost is None else run.cost.total_parameters
                grouped[run.name, label, size].append((run, evaluation))
        if not tests:
            table.append({"name": run.name, "status": "not tested", "folder": str(folder)})
    done = []
    for (name, data_set, _), members in grouped.items():
        row: dict[str, Any] = {"name": name, "data": data_set, "status": "finished", "seeds": len(members)}
        own = {key: heading for _, test in members for key, heading in test.notes.get("columns", {}).items()}
        row["columns"] = {**RECALLS, **DISTANCES, **own, **DOMAINS}
        for key in row["columns"]:
            values = [test.metrics[key] for _, test in members if math.isfinite(test.metrics.get(key, math.nan))]
            if not values:
                continue
            row[key] = statistics.mean(values)
            row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        first = members[0][0]
        row["scale"] = first.scale
        row["steps"] = None if first.fit is None else first.fit.steps
        costs = [run.cost for run, _ in members if run.cost is not None]
        row["tunable_parameters"] = _mean(cost.tunable_parameters for cost in costs)
        row["tunable_percent"] = _mean(cost.tunable_percent for cost in costs)
        row["peak_memory_bytes"] = _mean(cost.peak_memory_bytes for cost in costs)
        row["seconds_per_epoch"] = _mean(cost.seconds_per_epoch for cost in costs)
        row["pairs_per_second"] = _mean(cost.pairs_per_second for cost in costs)
        row["device"] = None if first.provenance is None else first.provenance.device.name
        done.append(row)
    return done + table


def _mean(values: Iterable[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return statistics.mean(measured) if measured else None


def markdown(table: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; recalls in percent, caption scores times 100, mean +- standard deviation over seeds."""
    headings: dict[str, str] = {}
    for row in table:
        headings |= {key: heading for key, heading in row.get("columns", {}).items() if key not in DOMAINS}
    shown = {key: name for key, name in {**headings, **DOMAINS}.items() if any(key in row for row in table)}
    header = ["run", "test data", "seeds", *shown.values(), "steps", "tunable", "%", "memory", "s/epoch", "pairs/s"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in table:
        if row["status"] != "finished":
            lines.append(f"| {row['name']} | {row['status']} |" + " |" * (len(header) - 2))
            continue
        cells = [row["name"], row["data"], str(row["seeds"]), *(metric_text(row, key) for key in shown)]
        cells += [
            _or_dash(row["steps"], "{:,}"),
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
    factor, form = (1, "{:.3f}") if key in DISTANCES else (1 if key.removeprefix("folds_") in RECALLS else 100, "{:.1f}")
    value, spread = (None if row.get(name) is None else factor * row[name] for name in (key, f"{key}_sd"))
    return _or_dash(value, form) + ("" if spread is None else f" ±{form.format(spread)}")


def to_csv(table: list[dict[str, Any]]) -> str:
    columns = [key for key in dict.fromkeys(key for row in table for key in row) if key != "columns"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _or_dash(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)


def bytes_text(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
