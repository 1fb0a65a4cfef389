"""Rebuilds a model from what a run or an export says of itself: the same typed signatures that the command line uses."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningModule
from torch import Tensor

from datamodules.errors import InputError, find_input_error
from datamodules.files.text import open_bytes
from datamodules.files.yaml_file import read_yaml
from datamodules.formats.typed import read_typed
from lightning_modules.base import TunedModule
from lightning_modules.checkpoints.adapter_export import CONFIG_FILE, load_adapter, read_adapter_config
from lightning_modules.checkpoints.dial import Dial
from lightning_modules.checkpoints.fill import fill_inside
from lightning_modules.checkpoints.fingerprint import Identity
from lightning_modules.checkpoints.fresh import brought_later, fresh_parameters
from lightning_modules.checkpoints.hub_repository import is_hub_name, pulled
from lightning_modules.checkpoints.places import found_again, resolved, with_tokenizer
from lightning_modules.checkpoints.run_folder import best_checkpoint, fit_of, no_result
from lightning_modules.checkpoints.trainable import trainable_state_dict
from lightning_modules.checkpoints.trust import importing_only
from lightning_modules.checkpoints.weights import read_torch, require_finite, unreadable
from lightning_modules.networks.random_state import drawing


def build(
    model_config: dict[str, Any], seed: int = 0, source: str = "the configuration", trust: Collection[str] = ()
) -> LightningModule:
    """Instantiate the `model:` section of a configuration. `seed` makes randomly initialized parts those of the run.

    The random state of the process is as before afterwards, unlike after Lightning's `seed_everything`.

    Raises:
        InputError: The section names classes or arguments that this version does not have, values that they do not take, or
            classes of modules that are neither ours nor trusted.
    """
    import lightning_modules.retrieval  # noqa: F401 - its classes may be named in short

    parser = ArgumentParser(exit_on_error=False)  # the configuration of a run is resolved: no interpolation left
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    try:
        with drawing(), importing_only(source, trust):
            config = parser.parse_object({"model": copy.deepcopy(model_config)}, defaults=False)  # it parses lists in place
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            model: LightningModule = parser.instantiate_classes(config).model
            fill_inside(model)  # a TunedModule has filled its network itself
            return model
    except (ArgumentError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if (told := find_input_error(error)) is not None:  # a class of ours has said it; jsonargparse wraps what it catches
            raise InputError(f"{source}: {told}") from error
        reason = " ".join(str(error).split()) or type(error).__name__  # jsonargparse's has a paragraph for each member of a union
        raise InputError(
            f"{source}: the model's configuration cannot be built ({reason:.600}). Use the version that wrote it."
        ) from error


_PARTS: dict[str, type] = {  # of a checkpoint: what resuming needs beside the weights, as Lightning writes it
    "pytorch-lightning_version": str,
    "epoch": int,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}


def read_checkpoint(path: str | Path, resumes: bool = False) -> dict[str, Any]:
    """A checkpoint of a run, its tensors mapped from the file (read when used).

    Args:
        path: The file.
        resumes: Whether it must also hold what training goes on from.

    Raises:
        InputError: No such file, a truncated or damaged one, something that Lightning did not write, or weights that are not
            finite.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"checkpoint {file} does not exist. Give a file, for example RUN/checkpoints/best.ckpt.")
    with open_bytes(file, "a checkpoint of a run", archives=True):  # empty files, web pages and the like
        pass
    try:
        checkpoint = read_torch(file)
    except Exception as error:  # of torch, of zip and of pickle: a damaged file can raise anything
        raise InputError(
            f"checkpoint {file} {unreadable(file, error)}: it is truncated, damaged or no checkpoint. Give another, for example "
            "RUN/checkpoints/best.ckpt."
        ) from error
    ours = {"crosslight_backbone", "crosslight_config"}  # of a module of ours, or of any that a run trained
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or not ours & checkpoint.keys():
        raise InputError(
            f"checkpoint {file} is not of a crosslight run. To start new training from plain weights, use "
            "--model.init_args.init_from."
        )
    read_typed(dict[str, Tensor], checkpoint["state_dict"], f"checkpoint {file}: state_dict")
    if "crosslight_backbone" in checkpoint:
        read_typed(Identity, checkpoint["crosslight_backbone"], f"checkpoint {file}: crosslight_backbone")
    for name, kind in _PARTS.items() if resumes else ():
        if name not in checkpoint:
            raise InputError(f"checkpoint {file} has no {name}, so training cannot go on from it. Give the run's last.ckpt.")
        read_typed(kind, checkpoint[name], f"checkpoint {file}: {name}")
    require_finite(checkpoint["state_dict"], f"checkpoint {file}")
    return checkpoint


def load_export_or_run(
    path: str | Path,
    trust: Collection[str] = (),
    backbone: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> LightningModule:
    folder = pulled(str(path)) if is_hub_name(str(path)) else Path(path).expanduser()
    model: Any = None
    if (folder / CONFIG_FILE).exists():
        model = _load_export(folder, trust, backbone, tokenizer)
    elif (folder / "config.yaml").exists():
        section, seed = run_section(folder, backbone, tokenizer)
        model = load_run(folder, section, seed, trust)
    if model is not None:
        model.no_result = no_result(folder)
        return cast(LightningModule, model)
    raise InputError(
        f"{folder} is neither a run folder (config.yaml) nor an adapter export (adapter_config.json). Give one of these, or the "
        "name of an export on the Hugging Face Hub (OWNER/NAME)."
    )


def run_section(folder: Path, backbone: str | Path | None, tokenizer: str | Path | None = None) -> tuple[dict[str, Any], int]:
    """What a run says of its model: the `model:` section of its configuration, with paths as they are now, and its seed.

    Raises:
        InputError: config.yaml cannot be read, or what it names is gone.
    """
    file = folder / "config.yaml"
    config = read_yaml(file, "the configuration of a run")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise InputError(f"{file} has no section `model`: it is not the configuration of a run.")
    seed = read_typed(int | None, config.get("seed_everything"), f"{file}: seed_everything") or 0
    return found_again(with_tokenizer(config["model"], tokenizer, str(file)), folder, backbone), seed


def load_run(folder: Path, section: dict[str, Any], seed: int, trust: Collection[str]) -> LightningModule:
    """The trained model of a run folder, built from the section that `run_section` gives.

    Raises:
        InputError: See `lightning_modules.load`.
    """
    fit = fit_of(folder)
    state = None
    if fit is None or fit.skipped is None:  # else nothing trained: the configuration is the model
        state = _best_state(folder)
    model = build(section, seed, str(folder / "config.yaml"), trust)
    if state is not None:
        _take(model, state)
    return model.eval()


def load_dial(folder: Path, section: dict[str, Any], seed: int, trust: Collection[str] = ()) -> tuple[TunedModule, Dial]:
    """The trained model of a run folder as `load_run` gives it, and its dial: `dial.turn(model.network, alpha)`.

    Raises:
        InputError: As `load_run`; or nothing trained, the module is no `TunedModule`, or there is nothing to go back to.
    """
    fit = fit_of(folder)
    if fit is not None and fit.skipped is not None:
        raise InputError(f"{folder}: {fit.skipped}, so there is no training to take back a part of.")
    checkpoint = _best_state(folder)
    model = build(section, seed, str(folder / "config.yaml"), trust)
    if not isinstance(model, TunedModule):
        raise InputError(
            f"{folder}: {type(model).__name__} does not derive from {TunedModule.__module__}.TunedModule, which knows what "
            "trains and what it started from."
        )
    fresh = fresh_parameters(model.network)
    start = _copies(trainable_state_dict(model.network))
    _take(model, checkpoint)
    try:
        return model.eval(), Dial.of(model.adapter, start, _copies(trainable_state_dict(model.network)), fresh)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def _copies(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def _best_state(folder: Path) -> dict[str, Any]:
    best = best_checkpoint(folder)
    if best is None:
        raise InputError(f"{folder} holds no best checkpoint (checkpoints/best.ckpt): the run never reached a validation.")
    return read_checkpoint(best)


def _take(model: LightningModule, checkpoint: dict[str, Any]) -> None:
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=False)


def _load_export(
    folder: Path, trust: Collection[str], backbone: str | Path | None, tokenizer: str | Path | None
) -> LightningModule:
    source = str(folder / CONFIG_FILE)
    config = read_adapter_config(folder)
    origin = config.backbone_config
    if origin is None:
        raise InputError(f"{source} does not say how its backbone is built. Use load_adapter(network, folder).")
    with brought_later():
        section = with_tokenizer(resolved(origin.model, folder, source, backbone, config.backbone_files), tokenizer, source)
        model = build(section, origin.seed, source, trust)
    load_adapter(model.network, folder, objective=model.objective, trust=trust, backbone=backbone)
    return model.eval()
