"""Where the files lie that a `model:` section names: on this machine, in an export, or wherever the caller says.

A section names the tokenizer, weights (files, or folders of Hugging Face's) and the run that training started from. In an export
none of these is a path of the machine that wrote it:

    export:files/NAME        in the export itself: tokenizers, and whatever else is no weights
    backbone:NAME            weights of the backbone: not in the export, found where the caller says, by their name or content

A hub name, or that of an official file or of a miniature, stays as it is. A value may end in `#PREFIX`, a part of a weights file
(weights.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.errors import InputError, shown
from datamodules.files.references import reveal
from datamodules.files.releases import CHECKPOINTS, TOKENIZER, UNITER_CHECKPOINTS
from lightning_modules.checkpoints.miniatures import PREFIX as MINIATURE
from lightning_modules.checkpoints.run_folder import require_inside
from lightning_modules.networks.start import RANDOM

EXPORT, BACKBONE = "export:", "backbone:"
VARIABLE = "CROSSLIGHT_BACKBONE"
FOLDERS = {  # variables of configs/model/*.yaml: a folder of weights files, or one model's and what it is called by default
    "CROSSLIGHT_WEIGHTS": None,
    "CROSSLIGHT_MINILM": "all-MiniLM-L6-v2",
    "CROSSLIGHT_SMOLLM2": "smollm2-135m",
}
PARENT = "init_from"
_NAMING = ("tokenizer", "weights", "name", PARENT)  # arguments whose value may be a path without looking like one
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".npz")
_OFFICIAL = {name for whole in (*CHECKPOINTS, *UNITER_CHECKPOINTS, TOKENIZER) for name in (whole, Path(whole).stem)}
_REMEDY = f"give `backbone` of load, --backbone of a command, or {VARIABLE}; {', '.join(FOLDERS)} are looked at too"

Keys = tuple[str | int, ...]


def texts(section: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Every text in a section, with the keys that lead to it."""
    if isinstance(section, str):
        yield keys, section
    elif isinstance(section, dict):
        for key, value in section.items():
            yield from texts(value, (*keys, key))
    elif isinstance(section, (list, tuple)):
        for key, value in enumerate(section):
            yield from texts(value, (*keys, key))


def replaced(section: Any, change: Callable[[Keys, str], Any], keys: Keys = ()) -> Any:
    """The section with every text as `change` gives it."""
    if isinstance(section, str):
        return change(keys, section)
    if isinstance(section, dict):
        return {key: replaced(value, change, (*keys, key)) for key, value in section.items()}
    if isinstance(section, (list, tuple)):
        return [replaced(value, change, (*keys, key)) for key, value in enumerate(section)]
    return section


def split_part(value: str) -> tuple[str, str]:
    """A path, and the `#PREFIX` behind it ("" where there is none)."""
    name, mark, prefix = value.rpartition("#")
    return (name, mark + prefix) if mark and not Path(value).expanduser().exists() else (value, "")


def is_path(keys: Keys, value: str) -> bool:
    """Whether a text names a file or folder of this machine, there or gone; hub names, official ones and those of
    miniatures do not."""
    name = split_part(value)[0]
    if keys[-1:] == ("class_path",) or name in ("", RANDOM) or name.startswith(MINIATURE):
        return False
    looks_like_one = name.startswith(("./", "../", "~/")) or os.path.isabs(name)
    may_be_one = "." in name or (keys and keys[-1] in _NAMING)
    return looks_like_one or keys[-1:] == (PARENT,) or bool(may_be_one and Path(name).exists())


def weights_in(path: Path) -> list[Path]:
    """A file of weights itself, or those in a folder."""
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    return [file for file in files if file.suffix in _WEIGHTS and file.is_file()]


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each path: its last part, or as many of its last parts as tell it from the others."""
    distinct = sorted(set(paths))
    for depth in range(1, max((len(path.parts) for path in distinct), default=0) + 1):
        names = {path: "/".join(path.parts[-depth:]).strip("/") for path in distinct}
        if len(set(names.values())) == len(distinct):
            return names
    return {}


def inside(folder: Path, name: str, where: str) -> Path:
    """A file that a file of a folder names, which must lie in it.

    Raises:
        InputError: The name is absolute or climbs out. (Links are whoever made the folder's own.)
    """
    require_inside(name, where)
    return folder / name


def with_tokenizer(section: Any, tokenizer: str | Path | None, source: str) -> Any:
    """The section with another tokenizer in place of the one that it names (or leaves to its language model); None: as it is.

    Args:
        section: Of a run or an export.
        tokenizer: A folder or file, or a name on the Hub.
        source: The section's file, for errors.

    Raises:
        InputError: Nothing in the section takes a tokenizer.
    """
    if tokenizer is None:
        return section
    path = Path(tokenizer).expanduser()
    value = str(path.absolute()) if path.exists() else str(tokenizer)
    taken: list[str] = []

    def change(part: Any) -> Any:
        if isinstance(part, dict):
            taken.extend(key for key in part if key == "tokenizer")
            return {key: value if key == "tokenizer" else change(inner) for key, inner in part.items()}
        return [change(inner) for inner in part] if isinstance(part, list) else part

    options = dict(section.get("init_args") or {})
    options["network"] = change(options.get("network"))
    if not taken:
        raise InputError(f"{source}: the network takes no tokenizer, and {tokenizer} is given as one. Leave it out.")
    return {**section, "init_args": options}


# ----------------------------------------------------------------------------------------------------------------- runs


def found_again(section: Any, folder: Path, backbone: str | Path | None) -> Any:
    """The section of a run's configuration, with what it names by a path looked up: as it is, from a folder above the run's
    (relative paths are of wherever the run was started), the run it started from beside it (they may have been moved together;
    another run of that name has other weights, and is refused), where the caller says that it lies now, or where the variables of
    our configurations say that weights lie (FOLDERS).

    Raises:
        InputError: Weights, or the run it started from, are not there; says how to tell where they are. A variable is not set.
    """
    section = reveal(section)
    given = _given(backbone)
    gone = {}
    known: dict[str, str] = {}
    for keys, value in texts(section):
        if not is_path(keys, value):
            continue
        name, part = split_part(value)
        path = Path(name).expanduser()
        above = () if path.is_absolute() else tuple(parent / path for parent in folder.resolve().parents)
        beside = [folder.resolve().parent.joinpath(*path.parts[-depth:]) for depth in (1, 2, 3)] if keys[-1] == PARENT else []
        there = next((place for place in (path, *above, *beside) if place.exists()), None)
        if there is None:
            gone[value] = keys
        elif there is not path:
            known[value] = f"{there}{part}"
    for value, keys in gone.items():
        name, part = split_part(value)
        place = None if given is None else _place(given, Path(name).name, alone=len(gone) == 1)
        if place is None and keys[-1] != PARENT:
            place = _in_folders(Path(name))
        if place is not None:
            known[value] = f"{place}{part}"
        elif keys[-1] in _NAMING and keys[-1] != "tokenizer":  # a model is built without: whoever tokenizes says that it is gone
            what = "the run that it started from" if keys[-1] == PARENT else "weights"
            raise InputError(
                f"{folder / 'config.yaml'}: model.{'.'.join(map(str, keys))} is {name}, {what}, and is not there"
                f"{'' if given is None else f', nor {Path(name).name} in {given}'}. Say where it is now: {_REMEDY}."
            )
    return replaced(section, lambda keys, value: known.get(value, value) if is_path(keys, value) else value)


# -------------------------------------------------------------------------------------------------------------- exports


def resolved(section: Any, folder: Path, source: str, backbone: str | Path | None, sums: Mapping[str, str]) -> Any:
    """The section of an export with paths of this machine in it.

    Args:
        section: Of the export.
        folder: The export.
        source: The section's file, for errors.
        backbone: Where the weights lie that it names: a file, or a folder that has them by their names, or by other names.
        sums: SHA-256 of these files, as the export lists them.

    Raises:
        InputError: A path leads out of the export, or a part of the backbone is not found; says how to tell where it is.
    """
    given = _given(backbone)
    wanted = {split_part(value.removeprefix(BACKBONE))[0] for _, value in texts(section) if value.startswith(BACKBONE)}

    def change(keys: Keys, value: str) -> str:
        if value.startswith(EXPORT):
            return str(inside(folder, value.removeprefix(EXPORT), source).absolute())  # links keep their names, and so endings
        if value.startswith(BACKBONE):
            name, part = split_part(value.removeprefix(BACKBONE))
            inside(folder, name, source)
            files = {file: digest for file, digest in sums.items() if file == name or file.startswith(f"{name}/")}
            place = None if given is None else _place(given, name, alone=len(wanted) == 1) or _same_content(given, name, files)
            place = place or _in_folders(Path(name))
            if place is None and name not in _OFFICIAL:
                where = f"not in {given}" if given is not None else "not in the export"
                raise InputError(
                    f"{source}: the backbone needs {', '.join(files) or name} ({'.'.join(map(str, keys))}), which is {where}. "
                    f"Say where it is, the file or a folder that holds it (its name there does not matter): {_REMEDY}."
                )
            return f"{place or name}{part}"
        if os.path.isabs(value) or value.startswith("~/") or ".." in PurePosixPath(value).parts:
            raise InputError(f"{source}: {'.'.join(map(str, keys))} is {shown(value)}, which is no file of this folder.")
        return value

    return replaced(section, change)


def _given(backbone: str | Path | None) -> Path | None:
    named = backbone if backbone is not None else os.environ.get(VARIABLE) or None
    if named is None:
        return None
    path = Path(named).expanduser()
    if not path.exists():
        raise InputError(f"backbone {path} does not exist (it is relative to {Path.cwd()}).")
    return path.resolve()


def _place(given: Path, name: str, alone: bool) -> Path | None:
    if (given / name).exists():
        return given / name
    return given if alone else None


def _in_folders(gone: Path) -> Path | None:
    """What has the name of a file or folder that is gone, where a variable says that weights lie. Whether its content is the same
    is seen when it is loaded: a run and an export have its digests."""
    for variable, model in FOLDERS.items():
        if not (named := os.environ.get(variable)):
            continue
        folder = Path(named).expanduser().absolute()
        place = folder / gone.name if model is None else folder
        if place.exists() and (model is None or gone.name in (model, folder.name)):
            return place
    return None


def _same_content(folder: Path, name: str, files: Mapping[str, str]) -> Path | None:
    """What has another name in a folder: the file, or the folder with the files, of these SHA-256."""

    def same(path: Path, file: str) -> bool:  # the ending first: others need not be read
        return path.suffix == Path(file).suffix and path.is_file() and sha256_of(path) == files[file]

    entries = sorted(folder.iterdir()) if files and folder.is_dir() else []
    places = (entry for entry in entries if all(same(entry / file[len(name) :].lstrip("/"), file) for file in files))
    return next(places, None)


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
