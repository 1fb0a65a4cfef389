"""What a person reads when a run is over: what was measured, where it lies, and what can be done with it."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.errors import InputError, printable
from datamodules.files.yaml_file import read_yaml
from experiments.runs.duration import readable_time
from experiments.runs.folder import RunFolder
from experiments.runs.headings import DOMAINS, RECALLS, RELATIONS, heading, number
from experiments.runs.metrics_csv import FILE as METRICS
from experiments.runs.results import Evaluation, Results
from experiments.runs.validation import BestValidation, best_validation

_WIDTH = 160  # of tables that nobody's terminal cuts


def closing(run: RunFolder) -> str:
    """A table of the best validation and of the tests, then paths and commands; the last line says where results.json is."""
    results, folder = run.results, run.path
    lines = []
    try:
        best = best_validation(folder, results)
    except InputError as error:
        best = None
        lines.append(str(error))
    rows = [] if best is None else [(_place_of(best), best.metrics)]
    rows += [(f"{each.data} {each.split}", each.metrics) for each in results.evaluations]
    if rows:
        lines.append(_table(rows, results.evaluations, best))
    where = _shown(folder)
    told = [
        ("trained", _trained(results)),
        *_files(folder, where),
        *_next(results, folder, where),
        ("results", f"{where}/results.json"),
    ]
    lines += [f"{name + ':' if name else '':<9} {text}" for name, text in told if text]
    return printable("\n".join(lines))


def _table(rows: list[tuple[str, dict[str, float]]], evaluations: tuple[Evaluation, ...], best: BestValidation | None) -> str:
    own = {name: title for each in evaluations for name, title in each.columns.items()}
    known = {**RECALLS, **RELATIONS, **own, **DOMAINS}
    if best is not None and best.monitor not in known:
        known[best.monitor] = heading(best.monitor)
    shown = [name for name in known if any(name in metrics for _, metrics in rows)]
    shown = shown or list(dict.fromkeys(name for _, metrics in rows for name in metrics))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in shown:
        table.add_column(Text(known.get(name, name)), justify="right")
    for place, metrics in rows:
        table.add_row(Text(place), *(Text(number(name, metrics.get(name), own)) for name in shown))
    text = io.StringIO()
    Console(file=text, width=_WIDTH).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").splitlines())


def _place_of(best: BestValidation) -> str:
    after = "" if best.steps is None else f", after step {best.steps:,}"
    return f"best of {best.count} validations{after}" if best.count > 1 else f"validation{after}"


def _trained(results: Results) -> str:
    if results.fit is None:
        return ""
    if results.fit.skipped is not None:
        return "nothing; the model was tested as it is"
    cost, took = results.cost, results.seconds
    size = f"{cost.tunable_parameters:,} of {cost.total_parameters:,} parameters, " if cost and cost.tunable_parameters else ""
    time = "" if took is None else f", {readable_time(took)} with all tests"
    counts = ((results.fit.steps, "step"), (results.fit.epochs, "epoch"))
    return size + ", ".join(f"{count:,} {what}" + "s" * (count != 1) for count, what in counts) + time


def _files(folder: Path, where: str) -> list[tuple[str, str]]:
    names = {"weights": "checkpoints/best.ckpt", "curves": METRICS, "captions": "captions", "vectors": "embeddings.npz"}
    return [(name, f"{where}/{file}") for name, file in names.items() if (folder / file).exists()]


def _next(results: Results, folder: Path, where: str) -> list[tuple[str, str]]:
    """Commands that can be copied."""
    if not (folder / "checkpoints" / "best.ckpt").exists():
        return []
    run = shlex.quote(where)
    commands = [f"crosslight table {run}"]
    if (folder / "captions").exists():
        commands.append(f"crosslight caption {run} IMAGE")
    if _module(folder).endswith(".RetrievalModule"):
        commands += [f"crosslight index IMAGES --run {run}", 'crosslight search "a dog in the snow"']
    commands.append(f"crosslight export {run} FOLDER")
    if not results.tests():
        commands.append(f"crosslight test -c {run}/config.yaml --ckpt_path {run}/checkpoints/best.ckpt")
    return [("" if place else "next", command) for place, command in enumerate(commands)]


def _module(folder: Path) -> str:
    """The class path of the run's module."""
    model = read_yaml(folder / "config.yaml").get("model")
    return str(model.get("class_path", "")) if isinstance(model, dict) else ""


def _shown(folder: Path) -> str:
    """Relative to here where it lies below."""
    here = Path.cwd()
    return str(folder.relative_to(here)) if here in folder.parents else str(folder)
