"""`crosslight sweep`: exhibits of the papers and W&B sweep files, run on this machine or submitted to Slurm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.papers.catalogue import exhibit_names, read_exhibit, read_runs
from experiments.papers.plan import Job, plan_runs
from experiments.papers.schema import PAPERS
from experiments.papers.worlds import world_folder
from experiments.runs.store import folder_of
from experiments.sweep.tasks import PROGRAM, Task

# --------------------------------------------------------------------------------------------------------------- exhibits


def exhibit_tasks(target: str, scale: Any, seeds: Sequence[int], root: Path) -> list[Task]:
    """The tasks of an exhibit, run, paper or all.

    Raises:
        InputError: There is no such target.
    """
    exhibits = exhibit_names()
    if target == "all" or target in PAPERS:
        names = [name for name in exhibits if target in ("all", name.partition("/")[0])]
    elif target in exhibits:
        names = [target]
    else:
        paper, _, run = target.partition("/")
        if paper not in PAPERS or run not in read_runs(paper):
            raise InputError(
                f"there is no exhibit, run, paper or sweep file {target!r}. Exhibits: {', '.join(exhibits)}; papers: "
                f"{', '.join(PAPERS)}, all."
            )
        return tasks_of(plan_runs([target], scale, seeds), root)
    runs = {name: _runs_of(name) for name in names}
    jobs = plan_runs(dict.fromkeys(run for each in runs.values() for run in each), scale, seeds)
    # a run of several exhibits belongs to the first
    groups = {job.key: name for name in reversed(names) for job in jobs if set(runs[name]) & set(job.names)}
    return tasks_of(jobs, root, groups)


def _runs_of(exhibit: str) -> list[str]:
    """The runs that an exhibit's variants name, as PAPER/RUN."""
    paper = exhibit.partition("/")[0]
    return [f"{paper}/{run}" for variant in read_exhibit(exhibit).variants for run in variant.runs.values()]


# ------------------------------------------------------------------------------------------------------------- sweep files


def tasks_of(jobs: Iterable[Job], root: Path, groups: Mapping[str, str] | None = None) -> list[Task]:
    """Tasks of jobs, in their order, with run folders in `root`. `groups` has the W&B group (an exhibit) of each key."""
    jobs, root = list(jobs), root.absolute()
    folders = {job.key: folder_of(job, [root]) for job in jobs}
    tasks = []
    for job in jobs:
        environment = {"WANDB_RUN_GROUP": groups[job.key]} if groups and job.key in groups else {}
        if job.recipe.world is not None:
            environment["CROSSLIGHT_WORLD"] = str(world_folder(root, job.recipe.world))
        cost = job.recipe.cost
        on_processor = job.scale == "miniature" or (cost is not None and "cpu" in cost.device.lower())
        tasks.append(
            Task(
                key=job.key, name=f"{job.names[0]} s{job.seed}" if job.recipe.seeded else job.names[0],
                kind=f"{job.names[0]} ({job.scale})", folder=folders[job.key],
                command=(*PROGRAM, *job.arguments(folders)), environment=environment, after=job.after,
                gpus=0 if on_processor else cost.devices if cost is not None else 1, cost=cost, world=job.recipe.world,
            )
        )  # fmt: skip
    return tasks
