"""What a target of `crosslight sweep` names (an exhibit, a run, a paper, all) as launches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from datamodules.errors import InputError
from experiments.papers.catalogue import exhibit_names, read_exhibit, read_runs
from experiments.papers.places import paper_folders
from experiments.papers.plan import PlannedRun, plan_runs
from experiments.papers.schema import Scale
from experiments.papers.worlds import world_folder
from experiments.runs.rehearsed import measured_in, read_rehearsed
from experiments.runs.store import folder_of
from experiments.sweep.launches import Launch, split_options
from experiments.sweep.processes import visible_gpus


def exhibit_launches(target: str, scale: Scale, seeds: Sequence[int], root: Path, without: Collection[str] = ()) -> list[Launch]:
    """The launches of an exhibit, run, paper or all, without some runs (PAPER/RUN).

    Raises:
        InputError: There is no such target.
    """
    exhibits, papers = exhibit_names(), paper_folders()
    if target == "all" or target in papers:
        names = [name for name in exhibits if target in ("all", name.partition("/")[0])]
    elif target in exhibits:
        names = [target]
    else:
        paper, _, run = target.partition("/")
        if paper not in papers or run not in read_runs(paper):
            raise InputError(
                f"there is no exhibit, run, paper or sweep file {target!r}. Exhibits: {', '.join(exhibits)}; papers: "
                f"{', '.join(papers)}, all."
            )
        return launches_of(plan_runs([target], scale, seeds), root)
    runs = {name: _runs_of(name) for name in names}
    wanted = dict.fromkeys(run for of_exhibit in runs.values() for run in of_exhibit if run not in without)
    planned = plan_runs(wanted, scale, seeds)
    # a run of several exhibits belongs to the first
    groups = {run.key: name for name in reversed(names) for run in planned if set(runs[name]) & set(run.names)}
    return launches_of(planned, root, groups)


def _runs_of(exhibit: str) -> list[str]:
    """The runs that an exhibit's variants name, as PAPER/RUN."""
    paper = exhibit.partition("/")[0]
    return [f"{paper}/{run}" for variant in read_exhibit(exhibit).variants for run in variant.runs.values()]


def launches_of(planned: Iterable[PlannedRun], root: Path, groups: Mapping[str, str] | None = None) -> list[Launch]:
    """Launches of planned runs, in their order, with run folders in `root`. `groups` has W&B's group (an exhibit) of each key.

    What a rehearsal measured there on a GPU stands in the place of the estimates.
    """
    planned, root = list(planned), root.absolute()
    folders = {run.key: folder_of(run, [root]) for run in planned}
    rehearsed = read_rehearsed(root)
    launches = []
    for run in planned:
        recipe, cost = run.recipe, run.recipe.cost
        measured = measured_in(rehearsed, run, cost)
        environment = {"WANDB_RUN_GROUP": groups[run.key]} if groups and run.key in groups else {}
        if recipe.world is not None:
            environment["CROSSLIGHT_WORLD"] = str(world_folder(root, recipe.world))
        on_processor = run.scale == "miniature" or (cost is not None and "cpu" in cost.device.lower())
        launches.append(
            Launch(
                key=run.key, title=f"{run.names[0]} s{run.seed}" if recipe.seeded else run.names[0],
                kind=f"{run.names[0]} ({run.scale})", folder=folders[run.key], command=recipe.command,
                configs=tuple(recipe.configs), **split_options(run.options(folders)), environment=environment, after=run.after,
                gpus=0 if on_processor else cost.devices if cost is not None else 1,
                cost=measured or cost, world=recipe.world, reads=recipe.reads, names=run.names,
                measured=measured is not None,
            )
        )  # fmt: skip
    return launches


def on_devices(launches: Sequence[Launch], devices: int | Literal["all"]) -> list[Launch]:
    """Launches on so many devices each, whatever their estimates say: GPUs, or on the processor processes.

    It is the same run in the same folder: `batch_size` is global, so that the numbers are those of any other count.

    Raises:
        InputError: "all" (the GPUs of this machine) of runs on the processor, or where there is no GPU.
    """
    if devices == "all":
        devices = len(visible_gpus()) if any(launch.gpus for launch in launches) else 0
        if not devices:
            raise InputError(
                "--devices all is of this machine's GPUs, and there are none, or these runs are on the processor (--scale "
                "miniature): give a number."
            )
    found = []
    for launch in launches:
        cost = None if launch.cost is None else replace(launch.cost, devices=devices)
        # one process on the processor is what they are anyway, and may then be forked
        words = None if devices == 1 and not launch.gpus else str(devices)
        found.append(replace(launch, devices=words, gpus=devices if launch.gpus else 0, cost=cost))
    return found
