"""A file from elsewhere cannot make us import a module that is not ours, unless the caller says that it may.

Run folders and exports name classes. Importing a module runs it, so what they name must be of crosslight, or of a module that
`trust` names: `lightning_modules.load(path, trust=["my_adapter"])`, or for commands CROSSLIGHT_TRUST=my_adapter,another.

What a file names is looked up in two places: by jsonargparse, wherever a class is expected (which a bare text, or JSON in a text,
names as well as a `class_path`), and by what takes class paths as plain texts (caption metrics). `importing_only` guards both.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from datamodules.errors import InputError

_OURS = ("lightning_modules", "datamodules", "experiments")
VARIABLE = "CROSSLIGHT_TRUST"
_DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")

_ALONE = threading.RLock()  # what jsonargparse may import is a setting of the process: who leaves must not open it for another
_reading: ContextVar[tuple[str, tuple[str, ...]] | None] = ContextVar("_reading", default=None)  # a file, and what it may name


@contextmanager
def importing_only(source: str, trust: Collection[str] = ()) -> Iterator[None]:
    """While inside, what is looked up by name must be of crosslight or of a trusted module, or of a module below one.

    Args:
        source: The file that names it, for the message.
        trust: Modules of the caller's own.

    Raises:
        InputError: Something else is named; says how to trust it.
    """
    from jsonargparse import ArgumentError, set_parsing_settings  # not above: a caption metric is found without it
    from jsonargparse._common import parsing_settings

    with _ALONE:
        token, before = _reading.set((source, _trusted(trust))), dict(parsing_settings)
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(_trusted(trust)))
        try:
            yield
        except ArgumentError as error:
            if denied := _DENIED.search(str(error)):
                raise _refusal(denied[1], source) from error
            raise
        finally:
            parsing_settings.update(before)
            _reading.reset(token)


def require_importable(path: str) -> None:
    """For whoever is about to import what a text names: refuse it where the text is of a file that may not name it.

    Raises:
        InputError: See `importing_only`.
    """
    if (reading := _reading.get()) is not None:
        source, trusted = reading
        require_trusted(path, source, trusted)


def require_trusted(path: str, source: str, trust: Collection[str] = ()) -> None:
    """See that a class path is of crosslight or of a trusted module, or of a module below one.

    Raises:
        InputError: It is not; says how to trust it.
    """
    module = path.rpartition(".")[0]
    if not any(module == name or module.startswith(f"{name}.") for name in _trusted(trust)):
        raise _refusal(path, source)


def is_ours(path: str) -> bool:
    """Whether a class path is of crosslight itself."""
    return path.partition(".")[0] in _OURS


def _trusted(trust: Collection[str]) -> tuple[str, ...]:
    return (*_OURS, *trust, *filter(None, os.environ.get(VARIABLE, "").split(",")))


def _refusal(path: str, source: str) -> InputError:
    module = path.rpartition(".")[0]
    return InputError(
        f"{source} names the class {path!r}, which is not crosslight's, and loading it would run its module. If you "
        f'trust it: load(..., trust=["{module}"]), or {VARIABLE}={module} for a command.'
    )
