"""One training, measured at alpha of what it learnt: how much of the target is gained and how much of the rest is kept.

The model is loaded once. At each alpha its weights are put where the dial says (lightning_modules/checkpoints/dial.py), and the
splits are encoded anew. alpha is picked on validation splits alone; a test split is measured once an alpha, for the curve. What
is measured is in dial.json at once, so a process that was killed loses one evaluation at most.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.locks import take_lock
from datamodules.files.yaml_file import read_yaml
from experiments.analysis.data import data_of, read_data
from experiments.runs.dial import (
    FILE,
    FOLDER,
    STAGES,
    Dialling,
    Rule,
    Stage,
    per_query_file,
    read_dial,
    with_evaluation,
    write_dial,
)
from experiments.runs.results import Evaluation, Results, read_results
from lightning_modules.checkpoints.places import sha256_of
from lightning_modules.checkpoints.run_folder import best_checkpoint, no_result
from lightning_modules.loading import load_dial, run_section


def turn_dial(
    run: Path,
    alphas: Sequence[float],
    evaluate: Sequence[str] = (),
    rule: Rule | None = None,
    backbone: str | None = None,
    tokenizer: str | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Dialling:
    """Measure what of a run is not measured yet, pick alpha, and write both into the run's folder.

    Args:
        run: The folder of a finished run that trained.
        alphas: From 0 to 1.
        evaluate: What is to be retained: `FILE.yaml` with a section `data`, `NAME=FILE.yaml` under a name of its own, or the name
            of what the run was tested on besides.
        rule: How alpha is picked. None = "mean" where something is to be retained, else "target".
        backbone: Where what the run names by a path lies now.
        tokenizer: In place of the run's.
        told: Gets a line for each evaluation.

    Returns:
        What dial.json says then.

    Raises:
        InputError: The run is not finished or trained nothing that can be taken back, a data set or split is not there, or what
            was measured before is of other weights or other data.
    """
    results = _require_trained(run)
    rule = rule or ("mean" if evaluate else "target")
    if rule == "mean" and not evaluate:
        raise InputError("--pick mean is of the target and of what is to be retained: name that with --evaluate, or pick target.")
    (run / FOLDER).mkdir(exist_ok=True)
    lock = take_lock(run / FOLDER / ".lock")
    if lock is None:
        raise InputError(f"{run} is being dialled by another process. Wait for it, or stop it.")
    with lock:
        section, seed = run_section(run, backbone, tokenizer)
        model, dial = load_dial(run, section, seed)
        data = _data(run, evaluate, model)
        target, *others = data
        dialling = _taken_up(run, results, data, dial.turned, dial.kept)
        dialling = replace(dialling, retention=tuple(others), rule=rule, picked=None, no_result=_no_result(run, dialling, data))
        stages: dict[str, tuple[Stage, ...]] = dict.fromkeys(others, ("val", "test") if rule == "mean" else ("test",))
        stages[target] = ("val", "test")
        _require_splits(model, data, stages)
        write_dial(run, dialling)
        for alpha in alphas:
            left = [(name, stage) for name in data for stage in stages[name] if _lacks(dialling, alpha, name, stage)]
            if left:
                dial.turn(model.network, alpha)
            for name, stage in left:
                found = _measured(run, model, data[name], name, stage, alpha, seed)
                dialling = with_evaluation(dialling, alpha, found)
                write_dial(run, dialling)
                value = found.metrics.get(dialling.metric, math.nan)
                told(f"alpha {alpha:g}, {name} {found.split}: {dialling.metric} {value:.4g}")
        dialling = replace(dialling, picked=dialling.pick())
        write_dial(run, dialling)
    return dialling


def _require_trained(run: Path) -> Results:
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} is no run folder (it has no config.yaml): give one.")
    results = read_results(run)
    if results.status != "finished" or results.fit is None:
        state = "has not finished" if results.status != "finished" else "trained nothing (it only tested)"
        raise InputError(
            f"{run} {state}, so there is no training to take back a part of. Give a finished `crosslight run` or fit."
        )
    return results


def _data(run: Path, evaluate: Sequence[str], model: Any) -> dict[str, Any]:
    """The run's own data by its name, then what is to be retained; all connected to the network."""
    from experiments.training.trainer import data_name

    own = data_of(run)
    found = {data_name(own): own}
    for word in evaluate:
        given, sign, rest = word.partition("=")
        place = rest if sign else word
        tested = place in (read_yaml(run / "config.yaml").get("evaluate") or {})
        if not tested and not place.endswith((".yaml", ".yml")):
            raise InputError(
                f"--evaluate {word}: give a YAML file with a section `data`, or the name of data that the run was tested on."
            )
        data = data_of(run, place) if tested else read_data("--evaluate", place)
        name = given if sign else place if tested else data_name(data)
        if name in found:
            raise InputError(
                f"--evaluate {word}: there is data of the name {name} already (the run's own, or one before). Give it another: "
                f"--evaluate {name}_2={place}."
            )
        if not name.replace("_", "").replace("-", "").isalnum():
            raise InputError(f"--evaluate {word}: {name!r} is no name for a file. Use letters, digits, - and _.")
        found[name] = data
    inputs = getattr(model.network, "inputs", None)
    for data in found.values():
        if inputs is not None and hasattr(data, "connect"):
            data.connect(inputs)
    return found


def _require_splits(model: Any, data: Mapping[str, Any], stages: Mapping[str, tuple[Stage, ...]]) -> None:
    """Raises InputError where a split that will be measured is missing or has no captions, before anything is measured."""
    from experiments.training.trainer import require_data

    for name, each in data.items():
        if hasattr(each, "splits"):
            each.prepare_data()
            if "val" in stages[name] and "val" not in each.splits():
                remedy = "give --pick target" if name != next(iter(data)) else "nothing else can pick alpha"
                raise InputError(f"{name} has no validation split, which alpha is picked on: {remedy}.")
        require_data(model, name, each, stages[name])


def _taken_up(run: Path, results: Results, data: Mapping[str, Any], turned: str, kept: tuple[str, ...]) -> Dialling:
    """What is measured already, or a record of nothing.

    Raises:
        InputError: It was measured on other weights, or on other data of the same names; or the run has no metric to go by.
    """
    from experiments.training.trainer import describe_data

    assert results.fit is not None
    monitor = results.fit.monitor or ""
    if not monitor.startswith("val/"):
        raise InputError(
            f"{run}: its best checkpoint was chosen by {monitor or 'nothing'}, and the dial is drawn by a val/ metric."
        )
    checkpoint = best_checkpoint(run)
    assert checkpoint is not None, "its weights have been read"
    mode = (read_yaml(run / "config.yaml").get("checkpoint") or {}).get("mode", "max")
    described = {name: describe_data(each) for name, each in data.items()}
    fresh = Dialling(sha256_of(checkpoint), turned, kept, monitor.removeprefix("val/"), mode, next(iter(data)), data=described)
    before = read_dial(run)
    if before is None:
        return fresh
    again = f"Remove {run / FILE} and {run / FOLDER} to dial it anew."
    if (before.checkpoint, before.metric) != (fresh.checkpoint, fresh.metric):
        raise InputError(f"{run / FILE} is of other weights than {checkpoint}, or goes by another metric. {again}")
    for name in before.data.keys() & described.keys():
        if before.data[name].fingerprint != described[name].fingerprint:
            raise InputError(
                f"{run / FILE}: the content of {name} has changed since (fingerprint {before.data[name].fingerprint} then, "
                f"{described[name].fingerprint} now). Put the data back, or call it otherwise (--evaluate NAME=FILE). {again}"
            )
    return replace(before, data={**before.data, **described})


def _no_result(run: Path, dialling: Dialling, names: Iterable[str]) -> str | None:
    """Why nothing of a dial is a result; None where it may be."""
    made_up = next((name for name in names if dialling.data[name].further.get("stand_in")), None)
    return no_result(run) or (None if made_up is None else f"the data {made_up} are stand-ins, of random contents")


def _lacks(dialling: Dialling, alpha: float, name: str, stage: Stage) -> bool:
    point = dialling.point(alpha)
    return point is None or point.of(name, stage) is None


def _measured(run: Path, model: Any, data: Any, name: str, stage: Stage, alpha: float, seed: int) -> Evaluation:
    """Validate or test the model as it is now."""
    import lightning.pytorch as pl

    from experiments.training.trainer import evaluation_of

    options = read_yaml(run / "config.yaml").get("trainer") or {}
    place = run / FOLDER / f"{alpha:g}"
    trainer: Any = pl.Trainer(
        devices=1, precision=options.get("precision"), use_distributed_sampler=False, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=place,
    )  # fmt: skip
    trainer.evaluated_data = name
    act = trainer.test if stage == "test" else trainer.validate
    with _seeded(seed):
        act(model, datamodule=data, verbose=False)
    shutil.rmtree(place / "scores", ignore_errors=True)  # of a scorer of pairs: large, and the ranks say what is drawn
    return evaluation_of(trainer, model, name, data, stage, run, per_query_file(alpha, name, stage))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The run's seed, for captions that are sampled; the process is as before afterwards."""
    from lightning.pytorch.utilities.seed import isolate_rng

    before = os.environ.get("PL_GLOBAL_SEED")
    with isolate_rng():
        os.environ["PL_GLOBAL_SEED"] = str(seed)
        try:
            yield
        finally:
            os.environ.pop("PL_GLOBAL_SEED")
            if before is not None:
                os.environ["PL_GLOBAL_SEED"] = before


def table(dialling: Dialling) -> list[str]:
    """What was measured: a line an alpha, a column a split, and a mark at the alpha that was picked."""
    names = [dialling.target, *dialling.retention]
    columns = [(name, stage) for name in names for stage in STAGES if _any(dialling, name, stage)]
    heads = ["alpha", *(f"{name} {stage}" for name, stage in columns)]
    lines = ["  ".join(heads)]
    for point in dialling.points:
        values = [dialling.value(point, name, stage) for name, stage in columns]
        cells = [f"{point.alpha:g}", *("-" if value is None else f"{value:.4g}" for value in values)]
        mark = "  <- picked" if point.alpha == dialling.picked else ""
        lines.append("  ".join(cell.rjust(len(head)) for cell, head in zip(cells, heads, strict=True)) + mark)
    return lines


def _any(dialling: Dialling, name: str, stage: Stage) -> bool:
    return any(point.of(name, stage) is not None for point in dialling.points)
