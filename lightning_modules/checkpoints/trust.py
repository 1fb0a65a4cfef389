"""A file from elsewhere cannot make us import a module that is not ours, unless the caller says that it may.

Run folders and exports name classes. Importing a module runs it, so what they name must be of crosslight, or of a module that
`trust` names: `lightning_modules.load(path, trust=["my_adapter"])`, or for commands CROSSLIGHT_TRUST=my_adapter,another.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from datamodules.errors import InputError

_OURS = ("lightning_modules", "datamodules", "experiments")
VARIABLE = "CROSSLIGHT_TRUST"


def class_paths(config: Any) -> Iterator[str]:
    """Every class path in a configuration."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "class_path" and isinstance(value, str):
                yield value
            else:
                yield from class_paths(value)
    elif isinstance(config, list):
        for value in config:
            yield from class_paths(value)


def require_trusted(paths: Iterable[str], source: str, trust: Collection[str] = ()) -> None:
    """See that every class path is of crosslight or of a trusted module, or of a module below one.

    Raises:
        InputError: One is not; says how to trust it.
    """
    trusted = (*_OURS, *trust, *filter(None, os.environ.get(VARIABLE, "").split(",")))
    for path in paths:
        module = path.rpartition(".")[0]
        if not any(module == name or module.startswith(f"{name}.") for name in trusted):
            raise InputError(
                f"{source} names the class {path!r}, which is not crosslight's, and loading it would run its module. If you "
                f'trust it: load(..., trust=["{module}"]), or {VARIABLE}={module} for a command.'
            )
