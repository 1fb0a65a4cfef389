"""The one exception for bad input.

Every user mistake (a missing split, a truncated photograph, a mistyped option) is raised as `InputError` with a message that
names the file or option, the key, and what to do. The command line prints that message alone; other exceptions are bugs and
keep their traceback.
"""

from collections.abc import Iterable

SHOWN = 4  # how many keys an error message lists before "and N more"


class InputError(Exception):
    """Bad input by the user or on disk; `str(error)` is complete advice: what, where, and the remedy."""


def some(names: Iterable[str]) -> str:
    """The first few names and how many more there are, for an error message."""
    ordered = list(names)
    text = ", ".join(ordered[:SHOWN])
    return text if len(ordered) <= SHOWN else f"{text} and {len(ordered) - SHOWN} more"
