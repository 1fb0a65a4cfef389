"""What must run for an exhibit: each configuration once, after those it starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.papers.catalogue import read_exhibit, read_runs
from experiments.papers.places import paper_folders
from experiments.papers.schema import Recipe, Scale, needs_of, replace_runs
from experiments.papers.strict_yaml import yaml_content
from experiments.papers.worlds import world_arguments
from lightning_modules.checkpoints.miniatures import sums_named_in


@dataclass(frozen=True)
class PlannedRun:
    """One run with one seed: one folder.

    `names` are the names PAPER/RUN that it has; `after` the keys of the planned runs that must be finished first.
    """

    key: str
    names: tuple[str, ...]
    scale: Scale
    seed: int
    recipe: Recipe
    after: tuple[str, ...]
    starts: Mapping[str, str]  # run name -> key of its planned run, for {run:...} and start

    @property
    def first_seed_key(self) -> str:
        """The key of the same configuration with seed 0: what a rehearsal measures of it holds for all seeds."""
        return plan_runs([self.names[0]], self.scale, [0])[-1].key  # the last one: behind what it starts from

    @property
    def folder_name(self) -> str:
        return f"{self.names[0].replace('/', '-')}-s{self.seed}-{self.key[:8]}"

    def options(self, folders: Mapping[str, Path]) -> dict[str, str]:
        """Dotted options of `crosslight`, as texts, where `folders` has the folder of each planned run by its key."""
        recipe = self.recipe
        options = {
            name: replace_runs(value, lambda run: str(folders[self.starts[run]])) for name, value in recipe.options.items()
        }
        if recipe.start is not None:
            options["model.init_args.init_from"] = str(folders[self.starts[recipe.start]])
        if recipe.seeded:
            options |= {"seed_everything": self.seed, "data.init_args.seed": self.seed}
        paper, _, run = self.names[0].partition("/")
        options = {"name": run, "wandb.group": paper, **options, "scale": self.scale}
        return {name: _text(value) for name, value in options.items()}


def plan(exhibits: Iterable[str], scale: Scale, seeds: Sequence[int]) -> list[PlannedRun]:
    """The planned runs of exhibits (PAPER/NAME), each once, after those that it needs.

    Raises:
        InputError: An exhibit or run is wrong, or runs start from each other in a circle.
    """
    wanted: dict[tuple[str, str], None] = {}
    for name in exhibits:
        paper = name.partition("/")[0]
        wanted |= {(paper, run): None for variant in read_exhibit(name).variants for run in variant.runs.values()}
    return plan_runs([f"{paper}/{run}" for paper, run in wanted], scale, seeds)


def plan_runs(names: Iterable[str], scale: Scale, seeds: Sequence[int]) -> list[PlannedRun]:
    """Runs (PAPER/RUN) and seeds as planned runs, each once, after those that it needs. Runs that lack the scale are left out."""
    books: dict[str, dict[str, dict[Scale, Recipe]]] = {}
    planned: dict[str, PlannedRun] = {}

    def add(name: str, seed: int, above: tuple[str, ...] = ()) -> str | None:
        paper, _, run = name.partition("/")
        if paper not in (papers := paper_folders()):
            raise InputError(f"{name}: there is no paper {paper!r}; there are {', '.join(papers)}")
        book = books.setdefault(paper, read_runs(paper))
        if run not in book:
            raise InputError(f"there is no run {name}; {paper}/runs.yaml has {', '.join(book)}")
        if name in above:
            raise InputError(f"{paper}/runs.yaml: {' -> '.join((*above, name))} start from each other")
        if scale not in book[run]:
            return None
        recipe = book[run][scale]
        starts = {}
        for needed in needs_of(recipe):
            key = add(f"{paper}/{needed}", seed, (*above, name))
            assert key is not None, "read_runs has seen that it has the scale"
            starts[needed] = key
        key = _key(recipe, scale, seed, starts)
        known = planned.get(key)
        alias = known.names if known is not None else ()
        if name not in alias:
            own = seed if recipe.seeded or any(planned[start].seed == seed for start in starts.values()) else 0
            planned[key] = PlannedRun(key, (*alias, name), scale, own, recipe, tuple(dict.fromkeys(starts.values())), starts)
        return key

    for name in names:
        for seed in seeds:
            add(name, seed)
    return list(planned.values())


def _key(recipe: Recipe, scale: Scale, seed: int, starts: Mapping[str, str]) -> str:
    configs = [yaml_content(name) for name in recipe.configs]
    miniatures = sums_named_in(json.dumps(_whole(configs, recipe.options), default=str))
    text = json.dumps(
        {
            "command": recipe.command,
            "configs": configs,
            "options": replace_runs(recipe.options, lambda run: starts[run]),
            "start": starts.get(recipe.start or ""),
            "world": None if recipe.world is None else [recipe.world, world_arguments(recipe.world)],
            "scale": scale,
            "seed": seed if recipe.seeded else None,
            **({"miniatures": miniatures} if miniatures else {}),
        },
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def configuration(recipe: Recipe) -> dict[str, Any]:
    """What a recipe's files and options give together, later ones over earlier ones; nothing is looked up or checked.

    What a later file or an option puts another value over is not in it: a pre-training has the same key before and after its
    weights are shipped.
    """
    return _whole([yaml_content(name) for name in recipe.configs], recipe.options)


def _whole(configs: Sequence[dict[str, Any]], options: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for content in configs:
        whole = _merged(whole, content)
    for name, value in options.items():
        for key in reversed(name.split(".")):
            value = {key: value}
        whole = _merged(whole, value)
    return whole


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings as one, the second's values over the first's."""
    both = {
        key: _merged(under[key], value)
        for key, value in over.items()
        if isinstance(value, dict) and isinstance(under.get(key), dict)
    }
    return {**under, **over, **both}


def _text(value: Any) -> str:
    """As the command line takes it."""
    return "null" if value is None else json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)
