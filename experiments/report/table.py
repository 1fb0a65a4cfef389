"""Run folders side by side: recalls or caption scores with mean and standard deviation over seeds, and what they cost."""

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
from experiments.runs.results import read_results

# Columns by metric; a table has those of which a run has a value.
RECALLS = {
    "i2t_r1": "i2t R@1", "i2t_r5": "R@5", "i2t_r10": "R@10", "t2i_r1": "t2i R@1", "t2i_r5": "R@5", "t2i_r10": "R@10",
    "rsum": "rsum",
}  # fmt: skip
# Relation distances, where a run measured them (pairs with objects): ISDa, and both IAIS losses.
DISTANCES = {"isda": "ISDa", "iais_singular": "L(s)", "iais_distributed": "L(d)"}
CAPTIONS = {"bleu_4": "B@4", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr", "spice": "SPICE"}
# Of NoCaps, as in Table 2 of I-Tuning.
DOMAINS = {
    f"{domain}-domain/{metric}": f"{domain} {CAPTIONS[metric]}"
    for domain in ("in", "near", "out")
    for metric in ("cider", "spice")
}
METRICS = {**RECALLS, **DISTANCES, **CAPTIONS, **DOMAINS}


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
    grouped: dict[tuple[str, str, int | None], list[tuple[dict[str, Any], dict[str, float]]]] = defaultdict(list)
    table: list[dict[str, Any]] = []
    for run in runs:
        if run["status"] != "finished":
            table.append({"name": run["name"], "status": run["status"], "folder": run["folder"]})
            continue
        # NoCaps is tested on what it calls val
        tests = [each for each in run["evaluations"] if each.get("stage", each["split"][:4]) == "test"]
        for evaluation in tests:
            # A split cut by `limits` is "test[:100]": it is another data set, and says so.
            label = evaluation["data"] + evaluation["split"].removeprefix("test").replace("val", " val")
            if data in (None, evaluation["data"]):
                # models of other sizes are no seeds of each other, whatever they are called
                grouped[run["name"], label, run.get("cost", {}).get("total_parameters")].append((run, evaluation["metrics"]))
        if not tests:
            table.append({"name": run["name"], "status": "not tested", "folder": run["folder"]})
    done = []
    for (name, data_set, _), members in grouped.items():
        row: dict[str, Any] = {"name": name, "data": data_set, "status": "finished", "seeds": len(members)}
        for key in METRICS:
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
    """The rows as a Markdown table; recalls in percent, caption scores times 100, mean +- standard deviation over seeds."""
    shown = {key: name for key, name in METRICS.items() if any(key in row for row in table)}
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
    factor, form = (1, "{:.3f}") if key in DISTANCES else (1 if key in RECALLS else 100, "{:.1f}")
    value, spread = (None if row.get(name) is None else factor * row[name] for name in (key, f"{key}_sd"))
    return _or_dash(value, form) + ("" if spread is None else f" ±{form.format(spread)}")


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
