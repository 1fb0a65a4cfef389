"""Values that jsonargparse lets pass though an option's type says otherwise: the null of a file, whatever the type; one value or
a list where an option has options of its own; and an empty text for a place, which would be the working folder.

The classes that a configuration names say the types, by the signatures that are its options; so do the dataclasses in these.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse._util import import_object  # as it finds the classes itself

_PLACES = ("root", "folder", "dir")


def mistyped(held: Any, path: str) -> Iterator[str]:
    """What is wrong with such options, and what to do.

    Args:
        held: A part of a configuration, as plain values.
        path: Where it is.
    """
    if isinstance(held, list):
        for place, each in enumerate(held):
            yield from mistyped(each, f"{path}[{place}]")
    if not isinstance(held, Mapping):
        return
    name = held.get("class_path")
    if not isinstance(name, str):
        for key, each in held.items():
            yield from mistyped(each, f"{path}.{key}")
        return
    try:
        cls = import_object(name)
    except (ImportError, AttributeError, ValueError):
        return  # what cannot be found is told elsewhere
    yield from _of(cls, held.get("init_args") or {}, f"{path}.init_args")


def _of(cls: Any, options: Mapping[str, Any], path: str) -> Iterator[str]:
    typed = _typed(cls)
    for name, value in options.items():
        kind, default = typed.get(name, (Any, None))
        record = _record(kind)
        if value is None:
            if default is not None and not _takes_none(kind):
                yield f"{path}.{name} is null: give it a value, or leave it out for its default."
        elif record is not None and not isinstance(value, Mapping):
            options_of = ", ".join(_typed(record))
            yield f"{path}.{name} is {value!r}, but has options of its own ({options_of}): give them by name."
        elif record is not None and "class_path" not in value:
            yield from _of(record, value, f"{path}.{name}")
        elif value == "" and (kind is Path or name.endswith(_PLACES)):
            yield f"{path}.{name} is empty: give a path, or . for the working folder."
        else:
            yield from mistyped(value, f"{path}.{name}")


@lru_cache(maxsize=256)
def _typed(cls: Any) -> dict[str, tuple[Any, Any]]:
    """Type and default (`inspect.Parameter.empty` without one) of each option: of the class and of those it hands options to."""
    found: dict[str, tuple[Any, Any]] = {}
    for each in reversed(getattr(cls, "__mro__", ())):  # a function has none
        init = vars(each).get("__init__")
        if init is None:
            continue
        try:
            hints = get_type_hints(init)
        except Exception:
            continue
        for name, parameter in inspect.signature(init).parameters.items():
            if name in hints:
                found[name] = hints[name], parameter.default
    return found


def _takes_none(kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_takes_none(part) for part in get_args(kind))
    return kind in (None, NoneType, Any, object)


def _record(kind: Any) -> type | None:
    """The dataclass that a type is, with or without null; None of a type that may be something else too."""
    parts = [part for part in (get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)) if part is not NoneType]
    return parts[0] if len(parts) == 1 and is_dataclass(parts[0]) and isinstance(parts[0], type) else None
