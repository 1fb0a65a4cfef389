"""`crosslight pretrain`: the runs whose weights the package ships, from the rendering of their world to the packed files.

The runs are those of `crosslight sweep run`, in the same folders: what one has run, the other does not repeat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.errors import InputError
from datamodules.formats.typed import read_typed
from experiments.papers.plan import PlannedRun, plan_runs
from experiments.papers.schema import Style
from experiments.papers.strict_yaml import did_you_mean, read_yaml
from experiments.papers.worlds import world_folder, write_miniature_world
from experiments.pretraining.pack import Packed, pack
from experiments.sweep.launches import Launch
from experiments.sweep.runner import Runner
from experiments.sweep.targets import launches_of

FILE = Path(__file__).parent / "miniatures.yaml"
SEED = 0
_TRIAL_BATCH = 8


@dataclass(frozen=True)
class Shipped:
    """A miniature of the package.

    Args:
        run: The run of a paper (PAPER/RUN) that trains it.
        part: Of the run's module, as a dotted path: what is kept.
    """

    run: str
    part: str


@dataclass(frozen=True)
class Trial:
    """The whole of it in a minute, for weights that are good for nothing: fewer scenes, and a few steps of small batches.

    Args:
        scenes: Of each world.
        steps: Of each run.
    """

    scenes: int
    steps: int


def read_shipped(names: Sequence[str] = ()) -> dict[str, Shipped]:
    """The miniatures of these names, or all.

    Raises:
        InputError: There is none of that name.
    """
    every: dict[str, Shipped] = read_typed(dict[str, Shipped], read_yaml(FILE), str(FILE))
    for name in names:
        if name not in every:
            raise InputError(f"no miniature is called {name!r}{did_you_mean(name, every)}; there are {', '.join(every)}")
    return {name: shipped for name, shipped in every.items() if not names or name in names}


def pretrain(names: Sequence[str], runs: Path, out: Path, jobs: int, trial: Trial | None = None) -> tuple[int, list[Packed]]:
    """Run what is not finished, and pack all of it when it is.

    Args:
        names: Of the miniatures; none: all.
        runs: Folder of the runs and worlds.
        out: Folder that gets weights, cards and sums; those of other miniatures stay in it.
        jobs: Runs at once.
        trial: Instead of the real schedule.

    Returns:
        The exit status of the runner, and what was packed: nothing unless all have finished.

    Raises:
        InputError: An unknown name, or a folder that cannot be used.
    """
    shipped = read_shipped(names)
    planned = plan_runs([each.run for each in shipped.values()], "miniature", [SEED])
    if trial is not None:
        planned = _shortened(planned, trial)
    launches = [_in_its_world(run, launch, runs, trial) for run, launch in zip(planned, launches_of(planned, runs), strict=True)]
    if status := Runner(launches, runs, jobs=jobs).run():
        return status, []
    by_run = {name: launch for run, launch in zip(planned, launches, strict=True) for name in run.names}
    return 0, [pack(name, each.part, each.run, by_run[each.run], out) for name, each in shipped.items()]


def _shortened(planned: Sequence[PlannedRun], trial: Trial) -> list[PlannedRun]:
    """They are other runs, in folders of their own, that start from each other."""
    keys = {run.key: hashlib.sha256(f"{run.key} {trial}".encode()).hexdigest()[: len(run.key)] for run in planned}
    options = {
        "trainer.max_epochs": -1, "trainer.max_steps": trial.steps,
        "trainer.check_val_every_n_epoch": None, "trainer.val_check_interval": trial.steps,
        "data.init_args.batch_size": _TRIAL_BATCH,
    }  # fmt: skip
    return [
        replace(
            run,
            key=keys[run.key],
            after=tuple(keys[key] for key in run.after),
            starts={name: keys[key] for name, key in run.starts.items()},
            recipe=replace(run.recipe, options={**run.recipe.options, **options}),
        )
        for run in planned
    ]


def _in_its_world(run: PlannedRun, launch: Launch, runs: Path, trial: Trial | None) -> Launch:
    """The launch with its world rendered; packing asks what it is."""
    style = run.recipe.world
    if style is None:
        raise InputError(f"{run.names[0]} reads no embedded world; miniatures are trained on one.")
    if trial is None:
        write_miniature_world(world_folder(runs, style), style)
        return launch
    environment = {**launch.environment, "CROSSLIGHT_WORLD": str(_trial_world(runs, style, trial.scenes))}
    return replace(launch, world=None, environment=environment)  # the runner has none to render


def _trial_world(runs: Path, style: Style, scenes: int) -> Path:
    from datamodules.miniworld.write import Splits, write_world

    splits = Splits(coco=0.25, flickr_train=0.6, flickr_val=0.15)
    return write_world(world_folder(runs, f"{style}-{scenes}"), scenes=scenes, style=style, splits=splits)
