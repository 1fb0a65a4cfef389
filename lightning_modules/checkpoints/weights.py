"""Plain weight files: read them safely, and put them into a module strictly with an error one can act on.

Files are safetensors, or torch files opened with `weights_only=True` (nothing is unpickled that could run code). Damage is found
when they are read: torch files carry a CRC-32 of each record, our safetensors a SHA-256 of all tensors (`write_weights`). Values
that are not finite are no weights.

`FILE#PREFIX` is one part of a file: the tensors whose names begin with PREFIX, without it. So a captioner takes its vision tower
from a dual encoder's run, RUN/checkpoints/best.ckpt#network.image.model., and its language model from another,
RUN/checkpoints/best.ckpt#network.language.model. A pre-trained miniature goes by its name, miniature:NAME (miniatures.py).
"""

from __future__ import annotations

import argparse
import hashlib
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datamodules.errors import InputError, chain, some
from datamodules.files.atomic import whole_file
from datamodules.files.text import open_bytes
from lightning_modules.checkpoints.miniatures import located

_CHECKSUM = "sha256 of names, types, shapes and values"  # in our safetensors' metadata


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors` file or of a torch file, on the CPU, as stored.

    A torch file may hold the state dict itself or keep it under `model`, `module` or `state_dict` (the common layouts; beside
    it, training state and the `argparse.Namespace` of official fine-tuned checkpoints are passed over). Large files are mapped,
    not read: copy the tensors into a module before the file may change. `FILE#PREFIX` is a part of a file, see above.

    Raises:
        InputError: No such file, a truncated, damaged or foreign file, a file without tensors (of this prefix), or values that
            are not finite.
    """
    path = Path(located(str(path))).expanduser()
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
    with open_bytes(path, "weights, as safetensors or a torch file", archives=True):  # empty files, web pages and the like
        pass
    try:
        if path.suffix == ".safetensors":
            loaded: Any = _read_safetensors(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # plain attributes; building one runs no code
                loaded = read_torch(path)
    except Exception as error:  # of two libraries and of pickle: a damaged file can raise anything
        raise InputError(
            f"weights file {path} {unreadable(path, error)}; it may be truncated or damaged (fetch or copy it again) or hold "
            "more than plain tensors (convert it to safetensors)"
        ) from error
    for key in ("model", "module", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"weights file {path} holds no plain dictionary of tensors; save a state dict as safetensors")
    state = {str(key): tensor for key, tensor in loaded.items()}
    require_finite(state, f"weights file {path}")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        noted = (file.metadata() or {}).get(_CHECKSUM)
    state = load_file(path)
    if noted is not None and noted != _checksum(state):
        raise ValueError("its checksum does not fit its content")
    return state


def read_torch(path: Path) -> Any:
    """A torch file's content, nothing in it executed, its tensors mapped from the file (read when used).

    Raises:
        Exception: Whatever torch, zip and pickle say of a damaged or foreign file; ValueError for a CRC-32 that does not fit.
    """
    zipped = zipfile.is_zipfile(path)  # else of before torch 1.6: without checksums, and not to be mapped
    if zipped:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.CRC == 0:  # torch was told to write none
                    continue
                with archive.open(record) as stored:  # raises where the CRC-32 of what was read differs
                    while stored.read(1 << 20):
                        pass
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def unreadable(path: Path, error: Exception) -> str:
    """Size and reason, for an error message: "(12 bytes) cannot be read: ..."."""
    reason = f"it is no file of plain tensors ({type(error).__name__})"
    if isinstance(error, (SafetensorError, OSError, ValueError, RuntimeError, zipfile.BadZipFile)) and str(error).strip():
        reason = str(error).strip().splitlines()[0].rstrip(".")  # torch's other errors advise to read it without weights_only
    return f"({path.stat().st_size:,} bytes) cannot be read: {reason}"


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse NaN and infinity: no training comes back from them, and no score means anything.

    Raises:
        InputError: Names the tensors.
    """
    wrong = [name for name, tensor in state.items() if not _is_finite(tensor)]
    if wrong:
        raise InputError(
            f"{source}: {len(wrong)} of {len(state)} tensors have values that are NaN or infinite ({some(wrong)}); it is of a "
            "training that diverged, or damaged: give another"
        )


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return True
    wide = tensor if tensor.is_complex() else tensor.to(torch.float32) if tensor.element_size() < 2 else tensor
    total = wide.sum(dtype=torch.complex64 if tensor.is_complex() else torch.float32)  # twenty times as fast, and passes both on
    return bool(total.isfinite()) or bool(wide.isfinite().all())


def require_sound_model(model: nn.Module, name: str) -> None:
    """What the readers here require of a file, of a model that transformers has read by name or from a folder.

    Raises:
        InputError: Values that are not finite; files of the folder whose checksum differs, or with whole numbers for weights.
    """
    state = model.state_dict()
    require_finite(state, f"weights of {name}")
    for path in sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else ():
        with safe_open(path, "pt") as file:
            whole = [key for key in file.keys() if not file.get_slice(key).get_dtype().startswith(("F", "BF"))]  # noqa: SIM118
            checked = _CHECKSUM in (file.metadata() or {})
        wrong = [key for key in whole if any(key.endswith(own) and value.is_floating_point() for own, value in state.items())]
        if wrong:
            raise InputError(f"weights file {path} has whole numbers for weights ({some(wrong)}); it is of another model")
        if checked:
            try:
                _read_safetensors(path)
            except ValueError as error:
                raise InputError(f"weights file {path} {unreadable(path, error)}; convert or copy it again") from error


def write_weights(state: Mapping[str, Tensor], path: Path, **notes: str) -> None:
    """A safetensors file that takes its name when it is complete, with a checksum that `read_weights` compares. What is tied is
    written once for each of its names. `notes` are further metadata, in no fixed order then."""
    tensors: dict[str, Tensor] = {}
    places = set()
    for name, tensor in state.items():
        stored = tensor.detach().cpu().contiguous()
        tensors[name] = stored.clone() if stored.data_ptr() in places else stored
        places.add(stored.data_ptr())
    with whole_file(path) as part:
        save_file(tensors, part, metadata={_CHECKSUM: _checksum(tensors), **notes})


def write_torch(content: Any, path: Path) -> None:
    """A torch file that takes its name when it is complete.

    Raises:
        OSError: It cannot be written. (Given a name, torch says of a full disk "unexpected pos 64 vs 0" and no more; given an
            open file it says so too, but behind the error of the disk.)
    """
    with whole_file(path) as part:
        try:
            with part.open("wb") as file:
                torch.save(content, file)
        except (RuntimeError, OSError) as error:
            if (of_disk := next((each for each in chain(error) if isinstance(each, OSError)), None)) is not None:
                raise OSError(of_disk.errno, of_disk.strerror, str(path)) from error
            raise


def _checksum(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What of both has another shape in a file than here, or another kind of number: torch would cast whole numbers into weights
    without a word. In words, for an error message."""
    wrong = []
    for name, target in own.items():
        if (tensor := state.get(name)) is None:
            continue
        if tensor.shape != target.shape:
            wrong.append(f"{name} {list(tensor.shape)} instead of {list(target.shape)}")
        elif _kind(tensor) != _kind(target):
            wrong.append(f"{name} {_kind(tensor)} ({tensor.dtype}) instead of {_kind(target)}")
    return wrong


def _kind(tensor: Tensor) -> str:
    return "complex numbers" if tensor.is_complex() else "fractions" if tensor.is_floating_point() else "whole numbers"


def load_weights(
    module: nn.Module,
    path: str | Path,
    *,
    drop: Callable[[str], bool] | None = None,
    spare: Collection[str] = (),
    translate: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    what: str,
) -> None:
    """Put a weights file into `module`, strictly; half precision tensors take the module's own dtype.

    Args:
        module: The module to fill.
        path: The file.
        drop: Tells which of the file's keys the module has no use for by design (a classifier that was left out).
        spare: Names that the file may lack: nothing uses them (a run that trains them not keeps them not).
        translate: Makes the module's names and shapes of the file's.
        what: The module in words, for messages.

    Raises:
        InputError: The file cannot be read, keys are missing or left over, or a shape or kind of number differs.
    """
    state = {key: value for key, value in read_weights(path).items() if drop is None or not drop(key)}
    state = state if translate is None else translate(state)
    wanted = module.state_dict()
    state |= {name: wanted[name] for name in spare if name in wanted and name not in state}
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unexpected:
        parts = [f"{len(missing)} missing: {some(missing)}"] if missing else []
        parts += [f"{len(unexpected)} not in the model: {some(unexpected)}"] if unexpected else []
        raise InputError(
            f"weights file {path} does not fit {what} ({'; '.join(parts)}); choose the architecture (name, config or "
            "options) the file was made with, or another file"
        )
    if wrong := misfits(state, wanted):
        raise InputError(
            f"weights file {path} has other shapes than {what}: {some(wrong)}; choose the architecture (width, patch size, "
            "image size ...) the file was made with"
        )
    module.load_state_dict(state, strict=True)
