"""Which runs are seeds of one configuration: equal in all that decides a result, but for the seed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.papers.strict_yaml import read_yaml
from experiments.runs.identity import SEED_AND_KEY, without_seed
from experiments.runs.results import Results

_LONGEST = 60  # characters of an option's value in a table
_STAGES = 8  # trained runs behind a run


@dataclass(frozen=True)
class Configuration:
    """What a run is, but for its seed.

    Args:
        digest: Equal for the seeds of one configuration.
        seed: All of its seeds, as text: the same one twice is not two seeds.
        options: What decides the result, by dotted name.
        problem: Why config.yaml could not be read. Without it a run is told by the hash in its results, seed and all.
    """

    digest: str
    seed: str
    options: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


def configuration_of(folder: Path, results: Results) -> Configuration:
    """The configuration of a run folder, with what it was computed on and by which code."""
    further = _further(results)
    if results.resumed_from is not None:
        further["ckpt_path"] = _of_paths(results.resumed_from, folder, results.seed, ())
    try:
        config = read_yaml(folder / "config.yaml")
        options = _options(folder, config)
    except InputError as error:
        alone = {"configuration": results.config_hash, **further}
        problem = str(error) if os.path.lexists(folder / "config.yaml") else None
        return Configuration(_digest(alone), str(results.seed), alone, problem)
    seeds = {"seed": results.seed, **{name: value for name, value in _leaves(config) if _is_seed(name)}}
    options |= further
    return Configuration(_digest(options), json.dumps(seeds, sort_keys=True, default=str), options)


def differing(options: Sequence[Mapping[str, Any]], absent: bool = True) -> list[str]:
    """Names of the options that are not alike in all.

    Args:
        options: Of each configuration.
        absent: Whether one that lacks an option differs from one that has it.
    """
    names = {name: None for each in options for name in each}
    values = {name: {_digest(each.get(name)) for each in options if absent or name in each} for name in names}
    return [name for name, found in values.items() if len(found) > 1]


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration decides the result, by dotted name, without seeds. Trained runs that it names are not looked at."""
    return dict(_leaves(without_seed(dict(config))))


def short_name(name: str) -> str:
    """model.optimization.lr for model.init_args.optimization.lr; an adapter's class is the adapter."""
    return name.replace(".init_args.", ".").removesuffix(".class_path")


def option_text(value: Any) -> str:
    """An option's value as a table writes it."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"...{text[-_LONGEST:]}"


def _further(results: Results) -> dict[str, Any]:
    """What decides a result and is in no configuration: the data's content, the code, how much of it was run."""
    prints = {f"fingerprint of {name}": described.fingerprint for name, described in results.data.items()}
    # models of other sizes are no seeds of each other, whatever they are called
    size = None if results.cost is None else results.cost.total_parameters
    return {**prints, "code": results.code, "command": results.command, "scale": results.scale, "parameters": size}


def _options(folder: Path, config: Mapping[str, Any], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The leaves that decide a result, without seeds."""
    seed = config.get("seed_everything")
    return dict(_leaves(without_seed({key: _of_paths(value, folder, seed, above) for key, value in config.items()})))


def _of_paths(value: Any, folder: Path, seed: Any, above: tuple[Path, ...]) -> Any:
    """With a trained run that a path names as what it is, which is not its place: the seeds of two stages start from different
    folders, and a parent that was trained otherwise is another one, whatever it is called."""
    if isinstance(value, Mapping):
        return {key: _of_paths(each, folder, seed, above) for key, each in value.items()}
    if isinstance(value, list):
        return [_of_paths(each, folder, seed, above) for each in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    path = Path(value)
    for place in (path, *path.parents[:2]):
        # folders that were moved together still lie side by side
        run = next((run for run in (place, folder.parent / place.name) if (run / "config.yaml").is_file()), None)
        if run is not None and run.resolve() not in above and len(above) < _STAGES:
            try:
                options = _options(run, read_yaml(run / "config.yaml"), (*above, folder.resolve(), run.resolve()))
            except InputError:
                break
            return (f"{path.relative_to(place)} of " if path != place else "") + f"run {_digest(options)}"
    if SEED_AND_KEY.search(value):  # a planned run that is not here: `without_seed` takes both out
        return value
    # see-3.safetensors of seed 3 and see-4.safetensors of seed 4
    return re.sub(rf"([-_]s?){seed}(?=[-_./]|$)", r"\1{seed}", value) if type(seed) is int else value


def _leaves(content: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(content, Mapping) and content:
        return [leaf for key, value in content.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, content)]


def _is_seed(name: str) -> bool:
    return name == "seed_everything" or name.endswith(".seed")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]
