"""Plain weight files: read them safely, and put them into a module strictly with an error one can act on.

Files are safetensors, or torch files opened with `weights_only=True` (nothing is unpickled that could run code).

`FILE#PREFIX` is one part of a file: the tensors whose names begin with PREFIX, without it. So a captioner takes its vision tower
from a dual encoder's run, RUN/checkpoints/best.ckpt#network.image.model., and its language model from another,
RUN/checkpoints/best.ckpt#network.language.model.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from datamodules.errors import InputError, some


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors` file or of a torch file, on the CPU, as stored.

    A torch file may hold the state dict itself or keep it under `model`, `module` or `state_dict` (the common layouts; beside
    it, training state and the `argparse.Namespace` of official fine-tuned checkpoints are passed over). Large files are mapped,
    not read: copy the tensors into a module before the file may change. `FILE#PREFIX` is a part of a file, see above.

    Raises:
        InputError: No such file, a truncated or foreign file, or a file without tensors (of this prefix).
    """
    path = Path(path).expanduser()
    name, mark, prefix = str(path).rpartition("#")
    if not mark or path.exists():
        return _read_file(path)
    whole = _read_file(Path(name))
    part = {key.removeprefix(prefix): tensor for key, tensor in whole.items() if key.startswith(prefix)}
    if not part:
        raise InputError(
            f"weights file {name} has no tensor whose name begins with {prefix!r} (it has {some(sorted(whole))}); correct what "
            "stands behind the #"
        )
    return part


def _read_file(path: Path) -> dict[str, Tensor]:
    """As `read_weights`, of a whole file."""
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist; check the path (it is relative to {Path.cwd()})")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain attributes; building one runs no code
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError) as error:
        raise InputError(
            f"weights file {path} ({path.stat().st_size:,} bytes) cannot be read: {str(error).splitlines()[0]}; it may be "
            "truncated (download it again) or hold more than plain tensors (convert it to safetensors)"
        ) from error
    for key in ("model", "module", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"weights file {path} holds no plain dictionary of tensors; save a state dict as safetensors")
    return dict(loaded)


def load_weights(module: nn.Module, path: str | Path, *, drop: Callable[[str], bool] | None = None, what: str) -> None:
    """Put a weights file into `module`, strictly; half precision tensors take the module's own dtype.

    Args:
        module: The module to fill.
        path: The file.
        drop: Tells which of the file's keys the module has no use for by design (a classifier that was left out).
        what: The module in words, for messages.

    Raises:
        InputError: The file cannot be read, keys are missing or left over, or a shape differs.
    """
    state = {key: value for key, value in read_weights(path).items() if drop is None or not drop(key)}
    wanted = module.state_dict()
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unexpected:
        parts = [f"{len(missing)} missing: {some(missing)}"] if missing else []
        parts += [f"{len(unexpected)} not in the model: {some(unexpected)}"] if unexpected else []
        raise InputError(
            f"weights file {path} does not fit {what} ({'; '.join(parts)}); choose the architecture (name, config or "
            "options) the file was made with, or another file"
        )
    wrong = [f"{k} {list(state[k].shape)} instead of {list(v.shape)}" for k, v in wanted.items() if state[k].shape != v.shape]
    if wrong:
        raise InputError(
            f"weights file {path} has other shapes than {what}: {some(wrong)}; choose the architecture (width, patch size, "
            "image size ...) the file was made with"
        )
    module.load_state_dict(state, strict=True)
