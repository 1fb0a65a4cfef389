"""What a process of several says of why it ended, for the first one, which writes how the run ended.

The others learn only that their connections are torn, or are told to end by who started them.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from datamodules.errors import chain

_FILE = "error-{}.log"
_TORN = re.compile(r"Connection (closed|reset) by peer|Broken pipe|remote process exited", re.IGNORECASE)


def leave(folder: Path, rank: int, message: str) -> None:
    """Say why this process ends."""
    with contextlib.suppress(OSError):
        (folder / _FILE.format(rank)).write_text(message + "\n", encoding="utf-8", errors="backslashreplace")


def forget(folder: Path) -> None:
    """What processes of an earlier attempt said."""
    for file in folder.glob(_FILE.format("*")):
        file.unlink(missing_ok=True)


def of_another(folder: Path) -> str | None:
    """What another process said, and which; None where none has."""
    for file in sorted(folder.glob(_FILE.format("*"))):
        with contextlib.suppress(OSError):
            return f"process {file.stem.rpartition('-')[2]}: {file.read_text(encoding='utf-8').strip()}"
    return None


def torn(error: BaseException) -> bool:
    """Whether an error says that another process was gone."""
    return any(isinstance(each, (RuntimeError, OSError)) and _TORN.search(str(each)) is not None for each in chain(error))
