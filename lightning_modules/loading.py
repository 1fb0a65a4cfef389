"""Rebuilds a model from what a run or an export says of itself: the same typed signatures that the command line uses."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng

from datamodules.errors import InputError
from lightning_modules.checkpoints.adapter_export import load_adapter, read_adapter_config
from lightning_modules.checkpoints.run_folder import best_checkpoint, fit_of
from lightning_modules.checkpoints.trust import importing_only


def build(
    model_config: dict[str, Any], seed: int = 0, source: str = "the configuration", trust: Collection[str] = ()
) -> LightningModule:
    """Instantiate the `model:` section of a configuration. `seed` makes randomly initialized parts those of the run.

    The random state of the process is as before afterwards, unlike after Lightning's `seed_everything`.

    Raises:
        InputError: The section names classes or arguments that this version does not have, or classes of modules that are neither
            ours nor trusted.
    """
    import lightning_modules.retrieval  # noqa: F401 - its classes may be named in short

    parser = ArgumentParser(exit_on_error=False)  # the configuration of a run is resolved: no interpolation left
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    try:
        with importing_only(source, trust), isolate_rng():
            config = parser.parse_object({"model": model_config})
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            return parser.instantiate_classes(config).model  # a TunedModule fills its network itself
    except ArgumentError as error:
        raise InputError(f"the model's configuration cannot be built ({error}). Use the version that wrote it.") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of a run, its tensors mapped from the file (read when used).

    Raises:
        InputError: No such file, a truncated one, or something that Lightning did not write.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"checkpoint {file} does not exist. Give a file, for example RUN/checkpoints/best.ckpt.")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputError(
            f"checkpoint {file} ({file.stat().st_size:,} bytes) cannot be read: it is truncated or no checkpoint "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). Give another, for example "
            "RUN/checkpoints/best.ckpt."
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "crosslight_backbone"} <= checkpoint.keys():
        raise InputError(
            f"checkpoint {file} is not of a crosslight run. To start new training from plain weights, use "
            "--model.init_args.init_from."
        )
    return checkpoint


def load_export_or_run(path: str | Path, trust: Collection[str] = ()) -> LightningModule:
    folder = Path(path)
    if (folder / "adapter_config.json").exists():
        return _load_export(folder, trust)
    if (folder / "config.yaml").exists():
        return _load_run(folder, trust)
    raise InputError(
        f"{folder} is neither a run folder (config.yaml) nor an adapter export (adapter_config.json). Give one of these."
    )


def _load_run(folder: Path, trust: Collection[str]) -> LightningModule:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise InputError(f"{folder / 'config.yaml'} has no section `model`: it is not the configuration of a run.")
    fit = fit_of(folder)
    state = None
    if fit is None or fit.skipped is None:  # else nothing trained: the configuration is the model
        best = best_checkpoint(folder)
        if best is None:
            raise InputError(f"{folder} holds no best checkpoint (checkpoints/best.ckpt): the run never reached a validation.")
        state = read_checkpoint(best)
    model = build(config["model"], config.get("seed_everything") or 0, str(folder / "config.yaml"), trust)
    if state is not None:
        model.on_load_checkpoint(state)
        model.load_state_dict(state["state_dict"], strict=False)
    return model.eval()


def _load_export(folder: Path, trust: Collection[str]) -> LightningModule:
    origin = read_adapter_config(folder).get("backbone_config")
    if origin is None:
        raise InputError(
            f"{folder / 'adapter_config.json'} does not say how its backbone is built. Use load_adapter(network, folder)."
        )
    model = build(origin["model"], origin["seed"], str(folder / "adapter_config.json"), trust)
    load_adapter(model.network, folder, objective=model.objective, trust=trust)
    return model.eval()
