"""Rebuilds a model from what a run or an export says of itself: the same typed signatures that the command line uses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, seed_everything

from datamodules.errors import InputError
from lightning_modules.checkpoints.adapter_export import load_adapter


def build(model_config: dict[str, Any], seed: int = 0) -> LightningModule:
    """Instantiate the `model:` section of a configuration. `seed` makes randomly initialised parts those of the run."""
    import lightning_modules.retrieval  # noqa: F401 - its classes may be named in short

    parser = ArgumentParser(exit_on_error=False)  # the configuration of a run is resolved: no interpolation left
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    seed_everything(seed, workers=True, verbose=False)
    return parser.instantiate_classes(parser.parse_object({"model": model_config})).model


def load_export_or_run(path: str | Path) -> LightningModule:
    folder = Path(path)
    if (folder / "adapter_config.json").exists():
        return _load_export(folder)
    if (folder / "config.yaml").exists():
        return _load_run(folder)
    raise InputError(
        f"{folder} is neither a run folder (config.yaml) nor an adapter export (adapter_config.json). Give one of these."
    )


def _load_run(folder: Path) -> LightningModule:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    checkpoint = best_checkpoint(folder)
    model = build(config["model"], config.get("seed_everything", 0))
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.on_load_checkpoint(state)
    model.load_state_dict(state["state_dict"], strict=False)
    return model.eval()


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint that validation chose.

    Raises:
        InputError: The run kept none.
    """
    results = json.loads((folder / "results.json").read_text()) if (folder / "results.json").exists() else {}
    named = (results.get("fit") or {}).get("best_checkpoint")
    for candidate in (folder / named if named else None, folder / "checkpoints" / "best.ckpt"):
        if candidate is not None and candidate.exists():
            return candidate
    raise InputError(f"{os.fspath(folder)} holds no best checkpoint (checkpoints/best.ckpt): the run never reached a validation.")


def _load_export(folder: Path) -> LightningModule:
    description = json.loads((folder / "adapter_config.json").read_text())
    origin = description.get("backbone_config")
    if origin is None:
        raise InputError(
            f"{folder / 'adapter_config.json'} does not say how its backbone is built. Use load_adapter(network, folder)."
        )
    model = build(origin["model"], origin["seed"])
    load_adapter(model.network, folder)
    return model.eval()
