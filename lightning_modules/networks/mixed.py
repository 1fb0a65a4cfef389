"""Classes that are made as a network is built: one of ours mixed in before a library's, so that an instance computes in our way.

No module holds such a class by its name, by which pickle looks for one. An instance says instead what its class is made of, and
the class is made again: `torch.save(network)`, pickle and copies work.
"""

from __future__ import annotations

import copyreg
from functools import cache
from typing import Any


def mixed(prefix: str, mixin: Any, base: Any) -> Any:
    """The class of instances that are both, always the same one.

    Args:
        prefix: Its name begins so, and ends as that of `base`.
        mixin: The methods that come first. A class that a module holds.
        base: What an instance was; such a class itself, perhaps.
    """
    return _made_once(prefix, mixin, base)


@cache
def _made_once(prefix: str, mixin: Any, base: Any) -> Any:  # mypy does not see that classes are hashable, if it sees them
    return type(f"{prefix}{base.__name__}", (mixin, base), {"_made_of": (prefix, mixin, base), "__reduce_ex__": _reduced})


def _reduced(instance: Any, protocol: Any) -> Any:
    library: Any = copyreg
    reduced: Any = object.__reduce_ex__(instance, max(int(protocol), 2))
    if reduced[0] is not library.__newobj__:  # its class says in a way of its own how it is made
        return reduced
    return (_new, (_recipe(type(instance)),), *reduced[2:])


def _recipe(kind: Any) -> Any:
    """What a class is made of; a class that a module holds is its own recipe."""
    if "_made_of" not in vars(kind):
        return kind
    prefix, mixin, base = kind._made_of
    return prefix, mixin, _recipe(base)


def _made(recipe: Any) -> Any:
    if not isinstance(recipe, tuple):
        return recipe
    prefix, mixin, base = recipe
    return mixed(prefix, mixin, _made(base))


def _new(recipe: Any) -> Any:
    kind = _made(recipe)
    return kind.__new__(kind)
