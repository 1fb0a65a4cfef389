"""Pre-trained miniatures: small models of ours that are in the package, by name.

`miniature:NAME` stands wherever a weights file may: `weights` of a network, tower or language model, `model.init_args.init_from`;
also with `#PREFIX`. They lie in `miniatures/` beside this file:

    NAME.safetensors    matrices as fp16; networks compute in fp32 all the same
    NAME.md             what made it, and how good it is
    SHA256SUMS          of the weights, as `sha256sum` writes and checks it

No torch here: planning reads it too.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.text import open_bytes, read_text

PREFIX = "miniature:"
SUMS_FILE = "SHA256SUMS"
FOLDER = Path(__file__).parent / "miniatures"
REMEDY = "`make pretrain-miniature` of a checkout makes them anew"
_LINE = re.compile(r"([0-9a-f]{64})  ([\w.-]+)\.safetensors")
_NAMED = re.compile(rf"{PREFIX}([\w.-]*\w)")


def located(source: str) -> str:
    """The path of the file where `source` names a miniature, what stands behind a # kept; anything else as it is.

    Raises:
        InputError: There is no such miniature, or its file is not the one that was released.
    """
    if not source.startswith(PREFIX):
        return source
    name, mark, part = source.removeprefix(PREFIX).partition("#")
    return f"{_file(name)}{mark}{part}"


def _file(name: str) -> Path:
    known = read_sums(FOLDER)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=len(known) or 1, cutoff=0.0)
        raise InputError(
            f"there is no {PREFIX}{name}; "
            + (f"there are (the closest name first) {', '.join(near)}" if known else f"none is in {FOLDER}: {REMEDY}")
        )
    file = FOLDER / f"{name}.safetensors"
    if not file.is_file():
        raise InputError(f"{PREFIX}{name}: {file} is not there; install crosslight again (a checkout: git checkout {file})")
    with open_bytes(file, "weights, as safetensors", archives=True) as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != known[name]:
        raise InputError(
            f"{PREFIX}{name}: {file} has SHA-256 {digest}, but {known[name]} is released: it is damaged or was changed; install "
            f"crosslight again (a checkout: git checkout {file}). {REMEDY[0].upper()}{REMEDY[1:]}, sums included."
        )
    return file


def read_sums(folder: Path) -> dict[str, str]:
    """SHA-256 by name, of the miniatures of a folder; empty where there are none.

    Raises:
        InputError: The file that lists them is damaged.
    """
    file = folder / SUMS_FILE
    if not file.is_file():
        return {}
    sums = {}
    for number, line in enumerate(read_text(file, "SHA-256 of miniatures").splitlines(), 1):
        if not (entry := _LINE.fullmatch(line)):
            raise InputError(f"{file}, line {number}: no SHA-256 and NAME.safetensors; install crosslight again. {REMEDY}")
        sums[entry[2]] = entry[1]
    return sums


def sums_text(sums: Mapping[str, str]) -> str:
    """The content of the file that lists them."""
    return "".join(f"{digest}  {name}.safetensors\n" for name, digest in sorted(sums.items()))


def sums_named_in(text: str) -> dict[str, str]:
    """SHA-256 by name, of those that a text names (a configuration: its result depends on them); "" of unknown ones."""
    known = read_sums(FOLDER) if PREFIX in text else {}
    return {name: known.get(name, "") for name in sorted(set(_NAMED.findall(text)))}
