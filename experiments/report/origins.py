"""Where a run's model comes from, for the card of its export: the command, the data, and the tests with their intervals."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

from experiments.report.bootstrap import interval, per_image
from experiments.runs.dial import read_dial
from experiments.runs.per_query import read_per_query
from experiments.runs.results import Evaluation, Results, read_results
from experiments.training.configs import packaged_configs
from lightning_modules.checkpoints.dial import Dialled
from lightning_modules.checkpoints.model_card import Measured, Origins
from lightning_modules.checkpoints.run_folder import no_result

_LIBRARIES = ("crosslight", "torch", "lightning", "transformers", "timm")
_PLACE = re.compile(r"(?<![\w.:/])(?:~|\.\.)?/(?:[^\s/'\",=\]}]+/)*(?=[^\s/'\",=\]}]+)")
"""Of an absolute path all but its last part."""


def origins_of(run: Path, license: str | None = None, dialled: Dialled | None = None) -> Origins:
    """What a run folder says of its model, without a path of this machine.

    Args:
        run: The folder.
        license: Of what is exported.
        dialled: Where on its dial the model is exported. What was measured is then what dial.json has of this place.

    Raises:
        InputError: results.json cannot be read, or a per-query file that it names.
    """
    results = read_results(run)
    dialling = None if dialled is None else read_dial(run)
    point = None if dialled is None or dialling is None else dialling.point(dialled.alpha)
    at_alpha = () if point is None else tuple(each for each in point.evaluations if each.stage == "test")
    trained = dialled is None or dialled.alpha == 1
    why = no_result(run) or (None if dialling is None else dialling.no_result)  # their numbers are none
    tests = [each for each in (results.tests() if trained else at_alpha) if each.metrics and why is None]
    rendered = results.scale == "miniature"  # scenes of the embedded world, in files named as the real data's
    trained_on = [data for data, each in results.data.items() if "train" in each.splits]
    return Origins(
        name=results.name,
        facts=({} if why is None else {"no result": why})
        | _facts(results)
        | ({} if dialled is None else {"alpha": _alpha_text(dialled, measured=bool(tests))}),
        datasets=()
        if rendered or why is not None
        else tuple(data for data in trained_on if data != "table"),  # a table is any data
        measured=tuple(measured for evaluation in tests for measured in _measured(run, evaluation, rendered)),
        license=license,
    )


def _measured(run: Path, evaluation: Evaluation, rendered: bool) -> list[Measured]:
    data = f"{evaluation.data} (miniature)" if rendered else evaluation.data
    arrays = {}
    if evaluation.per_query_file is not None:
        arrays = read_per_query(run / evaluation.per_query_file, evaluation.metrics)
    found = []
    for metric, value in evaluation.metrics.items():
        if not math.isfinite(value):
            continue
        parts = per_image(metric, arrays, value)
        sure = None if parts is None else interval(parts.resamples())
        found.append(Measured(data, evaluation.split, metric, value, sure))
    return found


def _alpha_text(dialled: Dialled, measured: bool) -> str:
    by = "given" if dialled.picked is None else f"picked by {dialled.picked}"
    told = "" if measured else "; nothing was measured there"
    return f"{dialled.alpha:g} of what was learnt, from 0 (the start) to 1 (as trained), {by}{told}"


def _facts(results: Results) -> dict[str, str]:
    facts = {"command": f"`{command(results)}`", "revision": results.code or "not known"}
    if results.scale in ("miniature", "small"):
        facts["scale"] = f"{results.scale}; its numbers hold for nothing beyond"
    for name, data in results.data.items():
        splits = ", ".join(f"{split} {count.get('images', 0):,} images" for split, count in data.splits.items())
        facts[f"data {name}"] = f"{splits} (fingerprint {data.fingerprint})"
    if (fit := results.fit) is not None and fit.skipped is None:
        best = f", the best {fit.monitor} ({fit.best_value:.5g})" if fit.monitor and fit.best_value is not None else ""
        facts["training"] = f"{fit.steps:,} steps, {fit.epochs:,} epochs{best}, seed {results.seed}"
    if results.provenance is not None:
        versions = results.provenance.versions
        facts["versions"] = ", ".join(f"{name} {versions[name]}" for name in _LIBRARIES if versions.get(name))
    return facts


def command(results: Results) -> str:
    """The command of a run, with names in place of absolute paths, and without the folder that it wrote to."""
    packaged = packaged_configs()
    arguments = iter(results.argv)
    kept = []
    for argument in arguments:
        if argument == "--run_dir":
            next(arguments, None)
        elif not argument.startswith("--run_dir="):
            ours = next((name for name in packaged if argument.endswith(f"/{name}")), None)
            kept.append(ours or _PLACE.sub("", argument))
    return shlex.join(["crosslight", *kept]).replace("`", "'")
