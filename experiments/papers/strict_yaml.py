"""YAML files as typed records, strictly: an unknown key, a missing one or a wrong type names its place."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from datamodules.errors import InputError

HERE = Path(__file__).parent


def yaml_content(name: str) -> Any:
    """Of a configuration file: a changed comment is no changed configuration."""
    file = packaged(name)
    return copy.deepcopy(_cached_yaml(file, file_age(file)))


@lru_cache(maxsize=256)
def _cached_yaml(file: Path, age: tuple[int, int]) -> Any:
    return read_yaml(file)


def read_typed(kind: Any, content: Any, where: str) -> Any:
    """`content` of a YAML as a type: dataclasses, lists, mappings, literals and plain values, strictly. (jsonargparse would build
    the class that a class_path among options names.)

    Raises:
        InputError: An unknown or missing key, or a value of another type; names the place in the file.
    """
    if kind is Any:
        return content
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if content is None and type(None) in inside:
            return None
        (kind,) = (each for each in inside if each is not type(None))
        return read_typed(kind, content, where)
    if origin is Literal:
        if content not in inside or isinstance(content, bool):
            raise InputError(f"{where} is {content!r}; it is one of {', '.join(map(str, inside))}")
        return content
    if origin is list and isinstance(content, list):
        return [read_typed(inside[0], each, f"{where}[{place}]") for place, each in enumerate(content)]
    if origin is dict and isinstance(content, dict):
        return {read_typed(inside[0], key, where): read_typed(inside[1], each, f"{where}.{key}") for key, each in content.items()}
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(content, dict):
        hints = _hints(kind)
        if unknown := [str(key) for key in content if key not in hints]:
            raise InputError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(hints)}")
        missing = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
        if missing := [name for name in missing if name not in content]:
            raise InputError(f"{where}: {missing[0]!r} is missing")
        return kind(**{key: read_typed(hints[key], each, f"{where}: {key}") for key, each in content.items()})
    if kind is float and isinstance(content, int) and not isinstance(content, bool):
        return float(content)
    if not isinstance(kind, type) or is_dataclass(kind) or not isinstance(content, kind) or (kind is int and content is True):
        name = "a mapping" if is_dataclass(kind) or origin is dict else "a list" if origin is list else f"of type {kind.__name__}"
        raise InputError(f"{where} is {content!r}; it must be {name}")
    return content


@lru_cache(maxsize=16)
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Strict)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is no mapping")
    return content


class _Strict(yaml.SafeLoader):
    """Safe, and a name that is there twice is a mistake, not the last of the two. What `<<` brings may be overridden."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


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
