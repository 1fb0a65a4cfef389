"""Content of a JSON or YAML file as typed records, strictly: an unknown key, a missing one or a wrong type names its place."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from datamodules.errors import InputError, shown


def read_typed(kind: Any, content: Any, where: str) -> Any:
    """`content` as a type: dataclasses, lists, tuples, mappings, literals and plain values, strictly. (jsonargparse would build
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
            raise InputError(f"{where} is {shown(content)}; it is one of {', '.join(map(str, inside))}")
        return content
    if origin in (list, tuple) and isinstance(content, list):  # of tuples those of one type, tuple[X, ...]
        return origin(read_typed(inside[0], each, f"{where}[{place}]") for place, each in enumerate(content))
    if origin is dict and isinstance(content, dict):
        return {read_typed(inside[0], key, where): read_typed(inside[1], each, f"{where}.{key}") for key, each in content.items()}
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(content, dict):
        hints = _hints(kind)
        if unknown := [str(key) for key in content if key not in hints]:
            raise InputError(f"{where}: unknown key {shown(unknown[0])}; there are {', '.join(hints)}")
        missing = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
        if missing := [name for name in missing if name not in content]:
            raise InputError(f"{where}: {missing[0]!r} is missing")
        return kind(**{key: read_typed(hints[key], each, f"{where}: {key}") for key, each in content.items()})
    if kind is float and isinstance(content, int) and not isinstance(content, bool):
        try:
            return float(content)
        except OverflowError:
            raise InputError(f"{where} is a number of {len(str(content))} digits; it must be of type float") from None
    if not isinstance(kind, type) or is_dataclass(kind) or not isinstance(content, kind) or (kind is int and content is True):
        named = {dict: "a mapping", list: "a list", tuple: "a list"}
        name = "a mapping" if is_dataclass(kind) else named.get(origin, f"of type {getattr(kind, '__name__', kind)}")
        raise InputError(f"{where} is {shown(content, 200)}; it must be {name}")
    return content


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
