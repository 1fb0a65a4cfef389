"""What a run reads that is not ours: folders of data, files of weights, names on the Hugging Face hub; found in its
configuration, without building anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.releases import CHECKPOINTS, TOKENIZER, UNITER_CHECKPOINTS
from experiments.papers.catalogue import exhibit_names
from experiments.papers.plan import configuration, plan, plan_runs
from experiments.papers.schema import Recipe

_IN_FOLDER = re.compile(r"\$\{oc\.env:(?P<variable>\w+)(?:,[^}]*)?\}/(?P<rest>.+)")
_RELEASED = {Path(name).stem: name for name in (*CHECKPOINTS, *UNITER_CHECKPOINTS)} | {TOKENIZER: TOKENIZER}
_NETWORKS = "lightning_modules.networks."
_KEYS = ("name", "weights", "tokenizer")


@dataclass(frozen=True)
class Reads:
    """Names of it, each kind sorted.

    Args:
        data: Folders below CROSSLIGHT_DATA.
        weights: Files below CROSSLIGHT_WEIGHTS.
        releases: Official files that are fetched by name into CROSSLIGHT_CACHE.
        hub: Models and tokenizers of transformers.
        timm: Models of timm, with weights.
        open_clip: Models of open_clip with the tag of their weights, as NAME TAG.
        others: What else has a variable of the environment in it, as the configuration has it.
    """

    data: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    timm: tuple[str, ...] = ()
    open_clip: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def recipes_of(target: str) -> list[Recipe]:
    """The recipes of full scale of an exhibit, a run (PAPER/RUN), a paper or all, with those that they start from.

    Raises:
        InputError: There is no such target, or it has none.
    """
    names = [name for name in exhibit_names() if target in ("all", name, name.partition("/")[0])]
    recipes = [run.recipe for run in (plan(names, "full", [0]) if names else plan_runs([target], "full", [0]))]
    if not recipes:
        raise InputError(f"{target} has no run of full scale, so it reads nothing.")
    return recipes


def reads_of(recipes: Iterable[Recipe]) -> Reads:
    """Of all these runs together."""
    found: dict[str, set[str]] = {kind: set() for kind in Reads.__dataclass_fields__}
    for recipe in recipes:
        for kind, name in _read(configuration(recipe)):
            found[kind].add(name)
    return Reads(**{kind: tuple(sorted(names)) for kind, names in found.items()})


def _read(value: Any, network: bool = False) -> Iterator[tuple[str, str]]:
    """Kind and name of everything that a part of a configuration names.

    Args:
        value: The part.
        network: Whether it is of a network: a `name` is a model's only there.
    """
    if isinstance(value, list):
        for each in value:
            yield from _read(each, network)
    if not isinstance(value, dict):
        return
    own, class_path = value.get("init_args"), str(value.get("class_path", ""))
    if isinstance(own, dict):
        network = class_path.startswith(_NETWORKS)
        if class_path.endswith(".TimmImageTower"):
            yield from [("timm", str(own["name"]))] if own.get("pretrained") else _files(own, ("weights",))
            return
        if class_path.endswith(".OpenCLIPDualEncoder"):
            yield "open_clip", f"{own.get('name')} {own.get('weights')}"
            return
    yield from _files(value, ("root",))
    if network:
        yield from _files(value, _KEYS)
    for key, each in value.items():
        yield from _read(each, network and key == "init_args")


def _files(options: dict[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for key in keys:
        text = options.get(key)
        if not isinstance(text, str) or text == "random" or "{run:" in text or text.startswith("miniature:"):
            continue
        if (placed := _IN_FOLDER.fullmatch(text)) is not None:
            kinds = {"CROSSLIGHT_DATA": "data", "CROSSLIGHT_WEIGHTS": "weights"}
            kind = kinds.get(placed["variable"])
            yield (kind, placed["rest"]) if kind else ("others", text)
        elif "${" in text or text.startswith((".", "/", "~")):
            yield "others", text
        elif key != "root":
            name = _RELEASED.get(text) or (text if text in _RELEASED.values() else None)
            yield ("releases", name) if name else ("hub", text)
