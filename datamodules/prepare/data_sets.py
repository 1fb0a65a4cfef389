"""Which data sets there are: every file in `datamodules/sources`, and classes of the user's own by class path.

Names are found without importing anything, so that help and mistakes cost no time.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

from datamodules import sources
from datamodules.errors import InputError
from datamodules.source import Source


def names() -> list[str]:
    """Of the data sets that come with crosslight, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(sources.__path__))


def source_of(kind: str) -> type[Source]:
    """The class of a data set.

    Args:
        kind: One of `names()`, or the class path of your own, such as my_module.MyData: a `Source` or a data module.

    Raises:
        InputError: there is none, or the class is no `Source`.
    """
    if kind in names():
        module = import_module(f"{sources.__name__}.{kind}")
        return next(value for value in vars(module).values() if _is_source(value) and value.__module__ == module.__name__)
    module_name, _, class_name = kind.rpartition(".")
    if not module_name:
        raise InputError(
            f"unknown kind of data {kind!r}; choose one of {', '.join(names())}, or give the class path of your own "
            "(my_module.MyData)."
        )
    try:
        found = getattr(import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        raise InputError(f"{kind}: no module {error.name!r} is found; its folder must be on PYTHONPATH.") from error
    except AttributeError:
        raise InputError(f"{kind}: module {module_name} has no {class_name}.") from None
    if not _is_source(found):
        raise InputError(f"{kind} is not a data set: derive it from datamodules.source.Source or ImageTextDataModule.")
    return found


def open_source(kind: str, root: str | Path, **options: Any) -> Source:
    """The files of a data set.

    Args:
        kind: See `source_of`.
        root: Folder of the data set.
        options: Those of its class.

    Raises:
        InputError: as `source_of`, or an option is out of range.
    """
    make: Any = source_of(kind)
    opened: Source = make(root=str(root), **options)
    return opened


def _is_source(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Source)
