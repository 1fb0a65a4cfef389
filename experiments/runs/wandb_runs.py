"""Runs of a W&B project as the frame that `load_runs(...).frame()` gives of run folders, for those who sweep there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError, some
from experiments.runs.frames import Row, frame_of
from experiments.runs.seeds import options_of

if TYPE_CHECKING:
    import pandas as pd

# W&B's states in the words of results.json; all others are the same.
_STATUS = {"crashed": "interrupted", "killed": "interrupted", "preempted": "interrupted", "preempting": "interrupted"}
_FINAL = "final/"  # before a test's metrics: final/DATA/SPLIT/METRIC


def read_project(project: str, filters: Mapping[str, Any] | None = None, api: Any = None) -> pd.DataFrame:
    """What `experiments.runs.wandb_frame` gives: W&B keeps no cost and no device.

    Args:
        project: "entity/project".
        filters: As `wandb.Api().runs` takes them.
        api: A `wandb.Api` of your own; None makes one.

    Raises:
        InputError: Nobody is logged in, or there is no such project.
    """
    if project.count("/") != 1 or not all(project.split("/")):
        raise InputError(f"{project!r} is no project of W&B; give it as entity/project.")
    import wandb

    try:
        runs = list((wandb.Api() if api is None else api).runs(project, filters=dict(filters or {}), lazy=False))
    except (wandb.errors.Error, ValueError) as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"W&B gives no runs of {project} ({why}). See that `wandb login` was done and the project is there."
        ) from error
    if foreign := [str(run.name) for run in runs if "model" not in run.config]:
        warnings.warn(
            f"{len(foreign)} of {len(runs)} runs of {project} have no model in their configuration: crosslight did not log them "
            f"({some(foreign)}), and their rows have no options.",
            stacklevel=3,
        )
    return frame_of([_row(run) for run in runs])


def _row(run: Any) -> Row:
    config, summary = dict(run.config), dict(run.summary_metrics)
    numbers = {name: value for name, value in summary.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
    metrics = {name.removeprefix(_FINAL): value for name, value in numbers.items() if name.startswith(_FINAL)}
    monitor = (config.get("checkpoint") or {}).get("monitor")
    if monitor in numbers:  # the last one; results.json has the best
        metrics[monitor] = numbers[monitor]
    identity = {
        "run": run.id,
        "name": run.name,
        "seed": config.get("seed_everything"),
        "status": _STATUS.get(run.state, run.state),
    }
    further = {
        "scale": config.get("scale"), "steps": summary.get("trainer/global_step"), "seconds": summary.get("_runtime"),
        "revision": getattr(run, "commit", None), "started": getattr(run, "created_at", None), "folder": run.url,
    }  # fmt: skip
    return Row(identity, metrics, options_of(config), further)
