"""Which runs, exports and names of the Hub a page offers, and what each is good for, before any of them is loaded."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datamodules.errors import InputError
from datamodules.files.references import reveal
from datamodules.files.yaml_file import read_yaml
from experiments.runs.store import folders_holding, read_run
from lightning_modules.captioning import CaptioningModule
from lightning_modules.checkpoints.adapter_export import CONFIG_FILE, read_adapter_config
from lightning_modules.checkpoints.hub_repository import is_hub_name, pulled
from lightning_modules.ranking import RankingModule
from lightning_modules.retrieval import RetrievalModule

log = logging.getLogger("crosslight")

Use = Literal["search", "captions", "pairs"]
_USES: dict[type, Use] = {RetrievalModule: "search", CaptioningModule: "captions", RankingModule: "pairs"}


@dataclass(frozen=True)
class Offer:
    """A model that can be chosen.

    Args:
        name: As it is chosen by; no two of a page share one.
        place: The folder of a run or an export.
        use: What it is good for; None = a class of one's own, which says so when it is loaded.
        about: What it is made of, in a few words.
        root: Of the data that it was trained on; None where that is not said.
    """

    name: str
    place: Path
    use: Use | None
    about: str
    root: Path | None


def find_offers(named: Sequence[str], below: Path) -> list[Offer]:
    """What a page offers.

    Args:
        named: Runs, folders that hold runs, exports, names on the Hub; none = what lies below `below`.
        below: Where runs lie.

    Returns:
        In the order that they were named in; those of a folder by their names, without those that cannot be read (an export of
        an earlier version, say), of which there is a warning.

    Raises:
        InputError: There is nothing, or what was named is neither.
    """
    if not named and not below.is_dir():
        raise InputError(
            f"there is no folder {below} here, so there is no run to offer: give --run RUN (a run, an export, OWNER/NAME of the "
            "Hub), or run `crosslight demo` first."
        )
    places: dict[Path, tuple[str, bool]] = {}
    for text in named or [str(below)]:
        for place, name, insists in _places(text, bool(named)):
            places[place.resolve()] = (name, insists) if insists else places.get(place.resolve(), (name, insists))
    names = [name for name, _ in places.values()]
    offers = []
    for place, (name, insists) in places.items():
        try:
            offers.append(_offer(place, name if names.count(name) == 1 else str(place)))
        except InputError as error:
            if insists:
                raise
            log.warning("not offered: %s", error)
    if not offers:
        raise InputError(f"{', '.join(named) or below} holds no finished run and no export. `crosslight demo` makes some.")
    return offers


def _places(text: str, insists: bool) -> list[tuple[Path, str, bool]]:
    """Folders that one name stands for, each with what it is called and whether it itself was named."""
    if is_hub_name(text):
        return [(pulled(text), text, True)]
    folder = Path(text).expanduser()
    if insists and _is_model(folder):
        return [(folder, folder.resolve().name, True)]
    if not folder.is_dir():
        raise InputError(f"{folder} is neither a run folder, nor an export, nor a folder that holds some.")
    found = [*sorted(folders_holding(folder, "results.json")), *sorted(folders_holding(folder, CONFIG_FILE))]
    return [(place, str(place.relative_to(folder)), False) for place in found if _is_model(place) and _is_usable(place)]


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG_FILE, "config.yaml"))


def _is_usable(folder: Path) -> bool:
    """Whether it can be loaded, as far as its files say."""
    done = (folder / CONFIG_FILE).is_file() or (folder / "checkpoints" / "best.ckpt").is_file()
    return done or read_run(folder).status == "finished"


def _offer(place: Path, name: str) -> Offer:
    root = None
    if (place / CONFIG_FILE).is_file():
        origin = read_adapter_config(place).backbone_config
        section: dict[str, Any] = {} if origin is None else origin.model
    else:
        config = read_yaml(place / "config.yaml", "the configuration of a run")
        if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
            raise InputError(f"{place / 'config.yaml'} has no section `model`: it is not the configuration of a run.")
        section = config["model"]
        data = reveal(config.get("data") or {})
        given = (data.get("init_args") or {}).get("root") if isinstance(data, dict) else None
        root = Path(given) if isinstance(given, str) else None
    return Offer(name, place, _use_of(section.get("class_path")), _about(section), root)


def _use_of(class_path: Any) -> Use | None:
    """By the class, where it is of ours: nothing that a file names is imported that is not."""
    module, _, name = str(class_path).rpartition(".")
    if module.partition(".")[0] != "lightning_modules":
        return None
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return next((use for of, use in _USES.items() if isinstance(kind, type) and issubclass(kind, of)), None)


def _about(section: dict[str, Any]) -> str:
    """Such as: BEiT3Retrieval, MultiWayAdapter."""
    options = section.get("init_args") or {}
    parts = [options.get(name) for name in ("network", "adapter")]
    return ", ".join(
        str(part["class_path"]).rpartition(".")[2] for part in parts if isinstance(part, dict) and "class_path" in part
    )
