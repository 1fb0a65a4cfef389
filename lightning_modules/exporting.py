"""A run as an export: what was trained, and everything that a machine with the same backbone lacks to build the network again."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datamodules.errors import InputError
from datamodules.files.releases import TOKENIZER, tokenizer_file
from lightning_modules.checkpoints.adapter_export import export_adapter
from lightning_modules.checkpoints.dial import Dialled
from lightning_modules.checkpoints.fresh import brought_later
from lightning_modules.checkpoints.model_card import Origins, Task
from lightning_modules.checkpoints.places import (
    BACKBONE,
    EXPORT,
    PARENT,
    Keys,
    is_path,
    replaced,
    sha256_of,
    short_names,
    split_part,
    texts,
    weights_in,
)
from lightning_modules.checkpoints.run_folder import no_result
from lightning_modules.checkpoints.trainable import trainable_names
from lightning_modules.loading import build, load_dial, load_run, run_section

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_TOKENIZER_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]


def export_run(
    run: str | Path,
    folder: str | Path,
    backbone: str | Path | None = None,
    tokenizer: str | Path | None = None,
    trust: Collection[str] = (),
    origins: Origins = Origins(),  # noqa: B008 - frozen
    dialled: Dialled | None = None,
    merge: bool = False,
) -> Path:
    """Write the best model of a run as an export (adapter_export.py).

    Args:
        run: The run folder.
        folder: Where to; created, must be empty or not there. One that holds this very export is left as it is.
        backbone: Where what the run names by a path lies now, where it has moved (`lightning_modules.load`).
        tokenizer: In place of the one that the run names.
        trust: Modules of your own whose classes the run may name.
        origins: For the model card: what made the run, and what was measured (`crosslight export` reads it from the run).
        dialled: Write the weights at this place between the start of the training and its end (checkpoints/dial.py). None = as
            trained.
        merge: Fold the adapter into the weights first, in fp32, as far as it can be (LoRA and most methods of peft). The export
            then has the changed weights in its place, and needs no peft.

    Returns:
        The folder.

    Raises:
        InputError: The run cannot be loaded, nothing of it trained, its adapter cannot be merged, or `folder` holds something
            else.
    """
    run = require_run(run)
    section, seed = run_section(run, backbone, tokenizer)
    model: Any
    if section.get("init_args", {}).get("tuning") == "frozen":
        raise InputError(
            f"{run} trained nothing (model.tuning is frozen), so there is nothing to export: its weights are those that its "
            "config.yaml names, and `lightning_modules.load` of the run gives them."
        )
    if dialled is None:
        model = load_run(run, section, seed, trust)
    else:
        model, dial = load_dial(run, section, seed, trust)
        dial.turn(model.network, dialled.alpha)
    merged: Any = None
    if merge:
        merged = _plain(model.adapter.describe()) if model.adapter is not None else None
        section = _merged(model, section, run)
    # after full tuning all weights are in the export: the files that it began with are not needed
    dropped = (PARENT, "weights") if model.tuning == "full" else (PARENT,)

    def begins(keys: Keys, value: str) -> str | None:
        return None if keys[-1] in dropped else value

    start = _with_tokenizers_named(replaced(section, begins))
    found = {value: Path(split_part(value)[0]).expanduser().absolute() for keys, value in texts(start) if is_path(keys, value)}
    if gone := [value for value, path in found.items() if not path.exists()]:
        raise InputError(f"{run / 'config.yaml'} names {gone[0]}, which is not there and has to go into the export: put it back.")
    # Of a hub name the tokenizer's files go into the export. A model of the same name stays a name.
    of_hub = {
        value: cached
        for keys, value in texts(start)
        if keys[-1] == "tokenizer" and value not in found and (cached := _cached_tokenizer(value)) is not None
    }

    def path_of(keys: Keys, value: str) -> Path | None:
        return found.get(value) or (of_hub.get(value) if keys[-1] == "tokenizer" else None)

    named = [(keys, path) for keys, value in texts(start) if (path := path_of(keys, value)) is not None]
    weights = short_names([path for keys, path in named if _is_backbone(keys, path)])
    files = short_names([path for keys, path in named if not _is_backbone(keys, path)])

    def portable(keys: Keys, value: str) -> str:
        if (path := path_of(keys, value)) is None:
            return value
        if _is_backbone(keys, path):
            return f"{BACKBONE}{weights[path]}{split_part(value)[1]}"
        return f"{EXPORT}files/{files[path]}"

    built = replaced(start, portable)
    # Built without the run it started from, and with another seed: what differs then, no file of the backbone brings.
    with brought_later():
        fresh: Any = build(start, seed + 1, str(run / "config.yaml"), trust)
    trained = trainable_names(model.network)
    before = fresh.network.state_dict()
    frozen = {
        name: tensor
        for name, tensor in model.network.state_dict().items()
        if name not in trained and not (name in before and torch.equal(tensor, before[name]))
    }
    return export_adapter(
        model.network,
        model.adapter,
        folder,
        backbone={"model": built, "seed": seed},
        notes=_merged_note(replaced(merged, portable)) if merge else "",
        objective=model.objective,
        description=None if model.adapter is None else replaced(model.adapter.describe(), portable),
        frozen=frozen,
        files={f"files/{name}": path for path, name in files.items()},
        backbone_files={
            name if path.is_file() else f"{name}/{file.name}": sha256_of(file)
            for path, name in sorted(weights.items())
            for file in weights_in(path)
        },
        task=getattr(model, "task", Task()),
        origins=origins,
        base_models=_base_models(built),
        dialled=dialled,
        mark=no_result(run),
    )


def _merged(model: Any, section: dict[str, Any], run: Path) -> dict[str, Any]:
    """Fold the adapter of a model into its weights. What was changed then counts as what was trained.

    Returns:
        The section of the model as it is now.

    Raises:
        InputError: There is no adapter, or it cannot be merged.
    """
    if model.adapter is None or model.adapter.off:
        raise InputError(f"{run} has no adapter to merge (tuning {model.tuning}): export it without --merge.")
    model.network.float()  # frozen weights in bfloat16 would round away what is added to them
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    trained = trainable_names(model.network)
    model.adapter = model.adapter.merge(model.network)
    after = model.network.state_dict(keep_vars=True)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    for name, value in after.items():
        if isinstance(value, nn.Parameter):
            value.requires_grad_(name in trained | changed)
    rest = None if model.adapter is None else _plain(model.adapter.describe())
    options = {**section["init_args"], "adapter": rest, "tuning": "frozen" if rest is None else "adapter"}
    if "frozen_dtype" in options:
        options["frozen_dtype"] = None
    return {**section, "init_args": options}


def _merged_note(adapter: Any) -> str:
    content = json.dumps(adapter, indent=1)
    return f"## Merged\n\nThis is folded into the weights, as far as it is no adapter above:\n\n```json\n{content}\n```"


def _plain(described: Any) -> Any:
    """Of the description of an adapter what builds it."""
    if isinstance(described, list):
        return [_plain(part) for part in described]
    if isinstance(described, dict) and "class_path" in described:
        return {"class_path": described["class_path"], "init_args": {k: _plain(v) for k, v in described["init_args"].items()}}
    return described


def require_run(run: str | Path) -> Path:
    """See that a folder is a run's, and no export.

    Raises:
        InputError: It is not.
    """
    folder = Path(run).expanduser()
    if not (folder / "config.yaml").exists():
        raise InputError(f"{folder} is no run folder (it has no config.yaml): give one.")
    return folder


def _with_tokenizers_named(section: Any) -> Any:
    """The section with the tokenizers written down that a tower or language model takes from where its weights are: the export
    then has them."""
    if isinstance(section, list):
        return [_with_tokenizers_named(part) for part in section]
    if not isinstance(section, dict):
        return section
    section = {key: _with_tokenizers_named(part) for key, part in section.items()}
    if "tokenizer" in section and section["tokenizer"] is None and isinstance(section.get("name"), str):
        section["tokenizer"] = section["name"]
    return section


def _base_models(section: Any) -> list[str]:
    """The models of the Hugging Face Hub that a section names, in their order."""
    found: list[str] = []

    def look(part: Any) -> None:
        for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            look(value)
        path, options = (part.get("class_path"), part.get("init_args")) if isinstance(part, dict) else (None, None)
        if not isinstance(path, str) or not path.startswith("lightning_modules.networks.") or not isinstance(options, dict):
            return
        name = options.get("name")
        if path.endswith(".TimmImageTower"):
            name = _timm_model(name) if options.get("pretrained") else None
        if isinstance(name, str) and _HUB_NAME.fullmatch(name):
            found.append(name)

    look(section)
    return list(dict.fromkeys(found))


def _timm_model(name: Any) -> str | None:
    from timm.models import get_pretrained_cfg

    return getattr(get_pretrained_cfg(name), "hf_hub_id", None)


def _is_backbone(keys: Keys, path: Path) -> bool:
    return keys[-1] != "tokenizer" and bool(weights_in(path))


def _cached_tokenizer(name: str) -> Path | None:
    """Where the files of a tokenizer lie that is named by its hub name or as the official one; None where they are not here: it
    is found by its name then."""
    if name == TOKENIZER:
        return tokenizer_file(name)
    if Path(name).exists():
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_TOKENIZER_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
