"""Run folders side by side: recalls with mean and standard deviation over seeds, and what they cost."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.run_folder import read_results

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")
# Relation distances, where a run measured them (pairs with objects): ISDa, and both IAIS losses.
DISTANCES = {"isda": "ISDa", "iais_singular": "L(s)", "iais_distributed": "L(d)"}


def find_runs(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """results.json of every run in or below the folders, with its folder under `folder`.

    Raises:
        InputError: A folder does not exist or holds no run.
    """
    runs = []
    for given in folders:
        folder = Path(given)
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder. Give run folders, or folders that hold them.")
        files = sorted(folder.rglob("results.json"))
        if not files:
            raise InputError(f"{folder} holds no results.json: there is no run in it.")
        runs += [{**read_results(file.parent), "folder": str(file.parent)} for file in files]
    return runs


def rows(runs: list[dict[str, Any]], data: str | None = None) -> list[dict[str, Any]]:
    """One row a (name, data set, test split): finished runs of one name are its seeds; the others keep a row that says so.

    Args:
        runs: What `find_runs` gives.
        data: Only this data set (default: all that were tested).
    """
    grouped: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, float]]]] = defaultdict(list)
    table: list[dict[str, Any]] = []
    for run in runs:
        if run["status"] != "finished":
            table.append({"name": run["name"], "status": run["status"], "folder": run["folder"]})
            continue
        tests = [evaluation for evaluation in run["evaluations"] if evaluation["split"].startswith("test")]
        for evaluation in tests:
            # A split cut by `limits` is "test[:100]": it is another data set, and says so.
            label = evaluation["data"] + evaluation["split"].removeprefix("test")
            if data in (None, evaluation["data"]):
                grouped[run["name"], label].append((run, evaluation["metrics"]))
        if not tests:
            table.append({"name": run["name"], "status": "not tested", "folder": run["folder"]})
    done = []
    for (name, data_set), members in grouped.items():
        row: dict[str, Any] = {"name": name, "data": data_set, "status": "finished", "seeds": len(members)}
        for key in (*RECALLS, *DISTANCES):
            values = [metrics[key] for _, metrics in members if math.isfinite(metrics.get(key, math.nan))]
            if not values:
                continue
            row[key] = statistics.mean(values)
            row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        first = members[0][0]
        row["scale"] = first["scale"]
        row["steps"] = first.get("fit", {}).get("steps")
        for key in (
            "tunable_parameters",
            "tunable_percent",
            "peak_memory_bytes",
            "seconds_per_epoch",
            "pairs_per_second",
        ):
            values = [run["cost"].get(key) for run, _ in members if run.get("cost", {}).get(key) is not None]
            row[key] = statistics.mean(values) if values else None
        row["device"] = first["device"]["name"]
        done.append(row)
    return done + table


def markdown(table: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; recalls in percent, mean +- standard deviation over seeds."""
    distances = {key: name for key, name in DISTANCES.items() if any(key in row for row in table)}
    header = [
        "run", "test data", "seeds", "i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10", "rsum", *distances.values(), "steps",
        "tunable", "%", "memory", "s/epoch", "pairs/s",
    ]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in table:
        if row["status"] != "finished":
            lines.append(f"| {row['name']} | {row['status']} |" + " |" * (len(header) - 2))
            continue
        cells = [row["name"], row["data"], str(row["seeds"])]
        for key in RECALLS:
            spread = row[f"{key}_sd"]
            cells.append(f"{row[key]:.1f}" + (f" ±{spread:.1f}" if spread is not None else ""))
        for key in distances:
            spread = row.get(f"{key}_sd")
            cells.append(_or_dash(row.get(key), "{:.3f}") + (f" ±{spread:.3f}" if spread is not None else ""))
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


def to_csv(table: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in table for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _or_dash(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)


def bytes_text(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
