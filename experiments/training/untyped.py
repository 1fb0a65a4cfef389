"""Arguments of a user's own classes whose types are not said: jsonargparse fills those that were not given with null."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any


def unsaid(value: Any, name: str = "") -> Iterator[str]:
    """A sentence for each argument that a constructor needs, that has no annotation, and that is null.

    Args:
        value: A configuration with plain values, or a part of it.
        name: Of the part.
    """
    if isinstance(value, list):
        for each in value:
            yield from unsaid(each, name)
    if not isinstance(value, Mapping):
        return
    if isinstance(path := value.get("class_path"), str):
        given = value.get("init_args") or {}
        for argument in _untyped(path):
            if given.get(argument) is None:
                yield (
                    f"{name}: {path} needs {argument}, and its constructor does not say of what type that is: annotate it there "
                    f"({argument}: int, or what it is), and give --{name}.init_args.{argument}."
                )
    for key, inner in value.items():
        yield from unsaid(inner, f"{name}.{key}" if name else str(key))


def _untyped(path: str) -> list[str]:
    """Of a class that has been imported: what its constructor needs and gives no type."""
    module, _, tail = path.rpartition(".")
    owner = getattr(sys.modules.get(module), tail, None)
    if not inspect.isclass(owner):
        return []
    try:
        parameters = inspect.signature(owner).parameters.values()
    except (TypeError, ValueError):  # a constructor without a readable signature
        return []
    by_name = (each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY))
    return [each.name for each in by_name if each.default is each.empty and each.annotation is each.empty]
