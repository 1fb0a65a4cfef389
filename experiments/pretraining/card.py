"""The model card of a miniature: what made it, how its validation went, and how it does on images that it did not train on."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.json_file import read_json
from experiments.runs import metrics_csv
from experiments.runs.results import Evaluation, Results
from experiments.sweep.launches import Launch

_POINTS = 12  # of a validation curve
_DISTANCES = ("val/isda", "val/iais", "val/evenness")  # of attention: nothing here is trained by them
_LIBRARIES = ("crosslight", "python", "torch", "lightning", "transformers", "timm", "numpy")


def card(name: str, facts: Mapping[str, str], run: str, launch: Launch, results: Results) -> str:
    """Markdown without a path of this machine.

    Args:
        name: The miniature's.
        facts: What to say first.
        run: PAPER/RUN.
        launch: The run, with its folder and the world in its environment.
        results: Of the run.

    Raises:
        InputError: The world or the metrics are gone or cannot be read.
    """
    known = {
        **facts,
        "made again by": f"`crosslight pretrain {name}` (all of them: `make pretrain-miniature`)",
        "run": f"{run}, `{_command(launch)}`",
        "revision": results.code or "not known",
        "world": _world(Path(launch.environment["CROSSLIGHT_WORLD"])),
        **{f"data {data}": _data(each.splits, each.fingerprint) for data, each in results.data.items()},
        "training": _training(results),
        "versions": _versions(results),
        "device": _device(results),
    }
    lines = [
        f"# miniature:{name}",
        "",
        "Pre-trained weights of the embedded world, for the miniature scale of the papers. Nothing in them is of a photograph.",
        "Matrices are fp16, vectors fp32.",
        "",
        *_table(["", ""], [[key, value] for key, value in known.items()]),
        "",
        "## Validation",
        "",
        f"On images that it did not train on. The weights are those of the best {chosen_by(results)}.",
        "",
        *_curve(launch.folder, results),
        *(line for each in results.evaluations for line in _evaluation(each)),
    ]
    return "\n".join(lines) + "\n"


def chosen_by(results: Results) -> str:
    """The validation metric that chose the checkpoint, and its value.

    Raises:
        InputError: There was none.
    """
    monitor, value = _best(results)
    return f"{monitor} ({value:.4g})"


def _best(results: Results) -> tuple[str, float]:
    fit = results.fit
    if fit is None or fit.monitor is None or fit.best_value is None:
        raise InputError(f"the run {results.name} has no best checkpoint: set checkpoint.monitor, and let it validate.")
    return fit.monitor, fit.best_value


def _command(launch: Launch) -> str:
    """Without the run's folder."""
    words = [word for word in launch.arguments if not word.startswith("--run_dir=")]
    return shlex.join(["crosslight", str(launch.command), *words]).replace(f"{launch.folder.parent}/", "")


def _world(folder: Path) -> str:
    label = read_json(folder / "world.json", "what was written of an embedded world")
    try:
        arguments: dict[str, Any] = dict(label["arguments"])
        told = ", ".join(f"{key} {value}" for key, value in arguments.items())
        return f"{told}; version {label['version']}, fingerprint {label['fingerprint']}"
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder / 'world.json'} is damaged: delete the folder, and `crosslight pretrain` renders it") from None


def _data(splits: Mapping[str, Mapping[str, int]], fingerprint: str | None) -> str:
    counts = "; ".join(f"{split} {', '.join(f'{count:,} {what}' for what, count in of.items())}" for split, of in splits.items())
    return f"{counts}; fingerprint {fingerprint}"


def _training(results: Results) -> str:
    fit, cost = results.fit, results.cost
    parts = [] if fit is None else [f"{fit.steps:,} steps"]
    parts += [] if cost is None or cost.pairs is None else [f"{cost.pairs:,} pairs"]
    parts += [] if results.seconds is None else [f"{results.seconds:,.0f} s in all"]
    parts += [] if cost is None or cost.train_seconds is None else [f"{cost.train_seconds:,.0f} of them in training steps"]
    return ", ".join([*parts, f"seed {results.seed}"])


def _versions(results: Results) -> str:
    known = {} if results.provenance is None else results.provenance.versions
    return ", ".join(f"{library} {known[library]}" for library in _LIBRARIES if known.get(library))


def _device(results: Results) -> str:
    if results.provenance is None:
        return "not known"
    device = results.provenance.device
    return f"{device.name}, {device.threads} of {device.cores} cores, {device.precision}"


def _curve(folder: Path, results: Results) -> list[str]:
    """Rows of metrics.csv that have the metric which chose, evenly spread where there are many; the best one among them."""
    monitor, value = _best(results)
    rows = [row for row in metrics_csv.read_rows(folder) if row.get(monitor)]
    if not rows:
        raise InputError(f"{folder / metrics_csv.FILE} has no {monitor}, by which the weights were chosen: restore the run.")
    others = {name for row in rows for name in row if row[name] and name.startswith("val/")} - {monitor}
    metrics = [monitor, *sorted((name for name in others if not name.startswith(_DISTANCES)), key=_natural)]
    best = [place for place, row in enumerate(rows) if float(row[monitor]) == value]
    shown = sorted({*range(len(rows) - 1, -1, -math.ceil(len(rows) / _POINTS)), *best[:1]})
    cells = [[rows[place]["step"], *(_number(rows[place][metric]) for metric in metrics)] for place in shown]
    return _table(["step", *(metric.removeprefix("val/") for metric in metrics)], cells)


def _evaluation(evaluation: Evaluation) -> list[str]:
    metrics = evaluation.metrics
    return [
        "",
        f"## {evaluation.data}, {evaluation.split}",
        "",
        *_table(list(metrics), [[_number(value) for value in metrics.values()]]),
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """r5 before r10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _number(value: str | float) -> str:
    return f"{float(value):.4g}" if value != "" else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in cells]
