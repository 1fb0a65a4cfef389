"""YAML files of the package and of papers: read once while they stay as they are. `read_typed` makes records of what is read."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files import yaml_file

HERE = Path(__file__).parent


def yaml_content(name: str) -> Any:
    """Of a configuration file: a changed comment is no changed configuration."""
    file = packaged(name)
    return copy.deepcopy(_cached_yaml(file, file_age(file)))


@lru_cache(maxsize=256)
def _cached_yaml(file: Path, age: tuple[int, int]) -> Any:
    return read_yaml(file)


def read_yaml(file: Path) -> dict[str, Any]:
    content = yaml_file.read_yaml(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} is no mapping")
    return content


def file_age(file: Path) -> tuple[int, int]:
    """When a file was written and how long it is, so that what was read of it is read again when it changes."""
    try:
        status = file.stat()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size


def packaged(name: str) -> Path:
    return HERE.parent.parent / name


def did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), 2, 0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
