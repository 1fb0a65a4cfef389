"""A cache of the Hugging Face hub (HF_HOME) with stand-ins for models and tokenizers, under the names that recipes have."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datamodules.errors import InputError
from datamodules.files.atomic import whole_folder, write_atomically
from datamodules.files.stand_in import MARK, begin
from datamodules.files.yaml_file import read_yaml
from datamodules.formats.typed import read_typed
from lightning_modules.checkpoints.standin.values import random_module
from lightning_modules.checkpoints.standin.vocabularies import Vocabulary, write_tokenizer
from lightning_modules.networks.quiet_loading import quiet_loading

_COMMIT = "57a4d1" + "0" * 34
_TABLE = Path(__file__).parent / "hub.yaml"
_METADATA = {"format": "pt", "stand_in": "random values"}


@dataclass(frozen=True)
class _Entry:
    """See hub.yaml.

    Args:
        kind: The library's class.
        tokenizer: What kind.
        sizes: Of its configuration, where they are not the class's own.
        longest: Tokens of a text.
        images: preprocessor_config.json.
    """

    kind: str
    tokenizer: Vocabulary
    sizes: dict[str, Any] = field(default_factory=dict)
    longest: int | None = None
    images: dict[str, Any] | None = None


def hub_names() -> list[str]:
    """Models of transformers that there is a stand-in for."""
    return list(_table())


def hub_config(name: str) -> tuple[dict[str, Any], int | None]:
    """Configuration of one of `hub_names`, with its `model_type`, and how many tokens a text has: what counts its parameters."""
    entry = _table()[name]
    return {"model_type": _class_of(entry).config_class.model_type, **copy.deepcopy(entry.sizes)}, entry.longest


@cache
def _table() -> dict[str, _Entry]:
    entries: dict[str, dict[str, Any]] = read_yaml(_TABLE)
    renamed = {name: {"kind" if key == "class" else key: value for key, value in each.items()} for name, each in entries.items()}
    return {name: read_typed(_Entry, each, f"{_TABLE}: {name}") for name, each in renamed.items()}


def write_hub_model(home: Path, name: str, half: bool = False) -> None:
    """A model of transformers with its tokenizer; one that is there stays.

    Args:
        home: The cache, HF_HOME.
        name: One of `hub_names`.
        half: Numbers of 16 bits in place of 32.

    Raises:
        InputError: There is no stand-in for it.
    """
    if name not in _table():
        raise InputError(f"there is no stand-in for {name}; {_TABLE} has {', '.join(_table())}: add an entry with its sizes")
    entry = _table()[name]

    def write(folder: Path) -> None:
        model = _unfilled(entry)
        random_module(model)
        model.tie_weights()
        with quiet_loading():
            (model.half() if half else model).save_pretrained(folder)
        write_tokenizer(folder, entry.tokenizer, entry.longest)
        if entry.images is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(entry.images, indent=1))

    _write(home, name, write)


def _unfilled(entry: _Entry) -> Any:
    """The model, on the meta device."""
    kind = _class_of(entry)
    sizes = copy.deepcopy(entry.sizes)  # the library changes what it is given
    with torch.device("meta"):
        return kind(kind.config_class(**sizes))


def _class_of(entry: _Entry) -> Any:
    import transformers

    return getattr(transformers, entry.kind)


def hub_bytes(name: str) -> int:
    """Of the weights of one of `hub_names`, in 32 bits."""
    return 4 * sum(parameter.numel() for parameter in _unfilled(_table()[name]).parameters())


def write_timm_model(home: Path, name: str, half: bool = False) -> None:
    """A model of timm, with the classifier that the published one has; one that is there stays.

    Args:
        home: The cache, HF_HOME.
        name: timm's.
        half: Numbers of 16 bits in place of 32.

    Raises:
        InputError: timm has no weights of that name on the hub.
    """
    import timm

    repository = timm_repository(name)
    file = timm.get_pretrained_cfg(name).hf_hub_filename or "model.safetensors"
    _write(home, repository, lambda folder: _save(_unfilled_timm(name), folder / file, half))


def timm_repository(name: str) -> str:
    """Where timm's weights of a model are on the hub.

    Raises:
        InputError: Nowhere.
    """
    import timm

    settings = timm.get_pretrained_cfg(name)
    if settings is None or not settings.hf_hub_id:
        raise InputError(f"timm has no weights of {name} on the hub, so there is no stand-in for it")
    repository = str(settings.hf_hub_id)
    return f"{repository}{name}" if repository.endswith("/") else repository


def _unfilled_timm(name: str) -> nn.Module:
    import timm

    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def timm_bytes(name: str) -> int:
    """Of a model's weights, in 32 bits."""
    return 4 * sum(parameter.numel() for parameter in _unfilled_timm(name).parameters())


def write_open_clip_model(home: Path, name: str, tag: str, half: bool = False) -> None:
    """A model of open_clip; one that is there stays.

    Args:
        home: The cache, HF_HOME.
        name: open_clip's.
        tag: Of its weights.
        half: Numbers of 16 bits in place of 32.

    Raises:
        InputError: open_clip is not installed, or has no such weights on the hub.
    """
    file = "open_clip_model.safetensors"
    _write(home, open_clip_repository(name, tag), lambda folder: _save(_unfilled_open_clip(name), folder / file, half))


def open_clip_repository(name: str, tag: str) -> str:
    """Where open_clip's weights of a model are on the hub.

    Raises:
        InputError: Nowhere, or open_clip is not installed.
    """
    repository = str(_open_clip().get_pretrained_cfg(name, tag).get("hf_hub") or "").rstrip("/")
    if not repository:
        raise InputError(f"open_clip has no weights {tag} of {name} on the hub, so there is no stand-in for them")
    return repository


def open_clip_bytes(name: str) -> int:
    """Of a model's weights, in 32 bits."""
    return 4 * sum(parameter.numel() for parameter in _unfilled_open_clip(name).parameters())


def _open_clip() -> Any:
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise InputError("open_clip is not installed: pip install 'crosslight[open_clip]'") from error
    return open_clip


def _unfilled_open_clip(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = _open_clip().create_model(name, load_weights=False, device=torch.device("meta"), pretrained_text=False)
    return model


def _save(model: nn.Module, file: Path, half: bool) -> None:
    from safetensors.torch import save_file

    state = dict(random_module(model).state_dict())
    if half:
        state = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    save_file(state, file, _METADATA)


def place(home: Path, repository: str) -> Path:
    """The folder of a repository's files in the cache, whether it is there or not."""
    return home / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / _COMMIT


def _write(home: Path, repository: str, write: Callable[[Path], None]) -> None:
    """One repository of the cache, whole or not at all: refs/main names the one commit, whose snapshot holds the files."""
    snapshot = place(home, repository)
    if not snapshot.exists():
        if not (home / MARK).exists():
            begin(home, {"of": "the Hugging Face hub"})
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(snapshot) as folder:
            write(folder)
            (folder / MARK).write_text("random values in the layout of the hub\n")
    reference = snapshot.parent.parent / "refs" / "main"
    reference.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(reference, _COMMIT)
