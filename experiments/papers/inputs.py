"""What the user must have before runs start: photographs and weights that are not ours to hand on (inputs.yaml)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from datamodules.errors import InputError
from datamodules.formats.typed import read_typed
from experiments.papers import strict_yaml
from experiments.papers.strict_yaml import file_age, read_yaml


@dataclass(frozen=True)
class Needed:
    """One of them.

    Args:
        variable: Of the environment: the folder that `files` are in.
        default: The folder where it is not set, as configurations have it.
        files: Files and folders that must be there, relative to it.
        what: It is.
        how: One gets it.
    """

    variable: str
    default: str
    files: tuple[str, ...]
    what: str
    how: str

    def missing(self) -> list[Path]:
        """Files and folders that are not there."""
        folder = Path(os.environ.get(self.variable) or self.default)
        return [file for name in self.files if not (file := folder / name).exists()]


def read_inputs() -> dict[str, Needed]:
    """All of them, by the names that recipes have for them.

    Raises:
        InputError: The file is wrong.
    """
    file = strict_yaml.HERE / "inputs.yaml"
    return _read_inputs(file, file_age(file))


@lru_cache(maxsize=2)
def _read_inputs(file: Path, age: tuple[int, int]) -> dict[str, Needed]:
    return {name: read_typed(Needed, each, f"{file}: {name}") for name, each in read_yaml(file).items()}


def require_inputs(names: Iterable[str]) -> None:
    """See that all of them are there.

    Raises:
        InputError: Says of each one that is not which variable and files it wants, what it is, and how to get it.
    """
    names = dict.fromkeys(names)
    inputs = read_inputs() if names else {}
    lines = []
    for name in names:
        needed = inputs[name]
        if missing := needed.missing():
            given = os.environ.get(needed.variable)
            where = f"{needed.variable} is {given}" if given else f"{needed.variable} is not set ({needed.default} is taken)"
            lines.append(f"{where}: no {', '.join(map(str, missing))}\n    {needed.what}\n    get it: {needed.how}")
    if lines:
        raise InputError("nothing was started: these runs read what is not here.\n" + "\n".join(f"  {line}" for line in lines))
