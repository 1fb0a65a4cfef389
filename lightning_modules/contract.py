"""What a class of one's own has otherwise than its base class says: told in one line, before anything trains.

What it lacks altogether is told when it is built: base classes mark it abstract. This is the rest: a method
that takes other arguments, or a method where a property is expected (`off` as a method would always be true).
"""

from __future__ import annotations

import inspect
from typing import Any

from datamodules.errors import InputError


def require_signatures(given: object, base: type, option: str) -> None:
    """Refuse an object that cannot be called as its base class is.

    Args:
        given: A network, an adapter, an objective.
        base: The class that says how it is called.
        option: Where it was given, for the message.

    Raises:
        InputError: It does not derive from the base class, or the first member that differs, and how.
    """
    own = f"{type(given).__module__}.{type(given).__qualname__}"
    if not isinstance(given, base):
        raise InputError(f"{option}: {own} does not derive from {base.__module__}.{base.__qualname__}.")
    ours = [kind for kind in base.__mro__ if kind.__module__.startswith("lightning_modules.")]
    for name, member in {name: member for kind in reversed(ours) for name, member in vars(kind).items()}.items():
        if not name.startswith("_") and (differs := _difference(inspect.getattr_static(type(given), name), member, name)):
            raise InputError(f"{option}: {own} {differs}, as {base.__module__}.{base.__qualname__} says.")


def _difference(own: Any, owed: Any, name: str) -> str | None:
    if isinstance(owed, property):
        return f"has {name} as a method, and it must be a property or an attribute" if inspect.isfunction(own) else None
    if not inspect.isfunction(owed) or isinstance(own, (staticmethod, classmethod)):
        return None
    if not inspect.isfunction(own):
        return f"has {name} that is no method, and it is called as {name}{_parameters(owed)}"
    given = [parameter for parameter in inspect.signature(owed).parameters.values() if parameter.default is parameter.empty]
    try:
        inspect.signature(own).bind(*given)
    except TypeError:
        return f"has {name}{_parameters(own)}, and it is called as {name}{_parameters(owed)}"
    return None


def _parameters(function: Any) -> str:
    return f"({', '.join(list(inspect.signature(function).parameters)[1:])})"
