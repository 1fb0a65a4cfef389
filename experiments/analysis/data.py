"""Data modules for what is looked at: a run's own, or one that somebody names by a YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.references import reveal
from datamodules.files.yaml_file import read_yaml


def data_of(folder: Path, name: str | None = None) -> Any:
    """The run's own data module, from its configuration, or of what it was tested on the one of this name.

    Raises:
        InputError: It cannot be built, or names classes of modules that are neither ours nor trusted.
    """
    from jsonargparse import ArgumentError

    from lightning_modules.checkpoints.trust import importing_only

    file = folder / "config.yaml"
    config = read_yaml(file)
    try:
        section = {**(config.get("evaluate") or {})}.get(name) or config["data"]
        with importing_only(str(file)):
            return _built(reveal(section))
    except (ArgumentError, KeyError) as error:
        raise InputError(f"{file}: its data cannot be built ({error}). Use the version that wrote it.") from error


def read_data(option: str, file: str) -> Any:
    """The data module of a YAML with a section `data`, here or packaged; other sections do not count.

    Args:
        option: That names the file, for messages.
        file: Its name, as `-c` of a training takes it.

    Raises:
        InputError: There is no such file, or it does not name a data module with its options.
    """
    from jsonargparse import ArgumentError
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from experiments.training.configs import find_configs

    if not file.endswith((".yaml", ".yml")):
        raise InputError(f"{option} {file}: give a YAML file with a section `data`, such as configs/data/coco.yaml.")
    try:
        (_, found) = find_configs(["-c", file])
    except InputError as error:
        raise InputError(str(error).replace("-c ", f"{option} ", 1)) from None
    content = read_yaml(Path(found))
    if not content.get("data"):
        raise InputError(f"{option} {file}: it holds no section `data` (class_path and init_args of a data set); write one.")
    try:
        return _built(OmegaConf.to_container(OmegaConf.create(content).data, resolve=True))
    except (ArgumentError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{option} {file}: its section `data` cannot be read ({reason:.300}); correct it.") from None


def _built(section: Any) -> Any:
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningDataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    return parser.instantiate_classes(parser.parse_object({"data": section})).data
