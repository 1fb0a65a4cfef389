"""Loading models of Hugging Face without their tables and progress bars, and with errors of one line.

Code that a folder or hub entry brings is never run: whoever calls the library says `trust_remote_code=False`, since without it
the library asks on the terminal, and takes a "y" of any pipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.hub import without_waiting

_LONGEST = 200  # characters


@contextmanager
def hugging_face(what: str, remedy: str, name: str | None = None) -> Iterator[None]:
    """While inside, what the library says of a damaged or foreign folder is an `InputError`.

    Args:
        what: What is loaded, and that it cannot be.
        remedy: What to do about it.
        name: Folder or hub name, where one is read: a hub that cannot be reached is not waited for.

    Raises:
        InputError: Whatever is raised inside.
    """
    if name is not None:
        if is_path(name) and not Path(name).expanduser().exists():
            place = "" if Path(name).expanduser().is_absolute() else f" under {Path.cwd()}"
            raise InputError(
                f"{what} (there is no such folder{place}); {remedy}. "
                "docs/data_and_weights.md says where each configuration of the package looks for its weights, and who has them."
            )
        without_waiting(name)
    try:
        with quiet_loading():
            yield
    except InputError:
        raise
    except Exception as error:  # of the library and of those below it: a damaged file can raise anything
        first = first_line(error)
        raise InputError(f"{what} ({first}); {remedy}") from error


def is_path(name: str) -> bool:
    """Whether a name cannot be one of the hub, which has OWNER/NAME at most."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def first_line(error: Exception) -> str:
    """The first line of what a library of Hugging Face's says."""
    text = str(error).strip()
    if "custom code" in text or "trust_remote_code" in text:
        return "it brings code of its own, which is never run here"
    first = text.partition("\n")[0].rstrip(".") or type(error).__name__
    return first if len(first) <= _LONGEST else f"{first[:_LONGEST]} ..."  # it may list all models that there are


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Loading tables and progress bars off: what matters in them is checked here and raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
