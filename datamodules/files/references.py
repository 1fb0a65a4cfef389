"""`${envvar:NAME}` in the command of a sweep: it may be a secret, so whatever is written down keeps the reference, and a process
looks it up where it starts. `python -m datamodules.files.references COMMAND ...` starts a program that knows none of this.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from datamodules.errors import InputError

REFERENCE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
_SHORTEST = 6  # characters of what is concealed: a shorter value chooses something, and stands in other words too
_known: dict[str, str] = {}  # what this process has looked up, and the reference that stands for it


def look_up(text: str) -> str:
    """With the variables' values.

    Raises:
        InputError: One is not set (wandb's agent would put its name there).
    """
    return REFERENCE.sub(lambda reference: variable(reference[1]), text)


def variable(name: str) -> str:
    """A variable's value.

    Raises:
        InputError: It is not set.
    """
    if name not in os.environ:
        raise InputError(f"${{envvar:{name}}} is named, and there is no such environment variable. Set it.")
    if len(value := os.environ[name]) >= _SHORTEST:
        _known[value] = f"${{envvar:{name}}}"
    return value


def conceal(content: Any) -> Any:
    """A text, or all texts of a configuration, with the references in place of what `look_up` gave for them."""
    if isinstance(content, dict):
        # a class path is no secret, and a module may be called like what a variable chooses
        return {key: value if key == "class_path" else conceal(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(conceal(value) for value in content)
    if isinstance(content, str):
        for value in sorted(_known, key=len, reverse=True):
            content = content.replace(value, _known[value])
    return content


def reveal(content: Any) -> Any:
    """What `conceal` was given: all texts of a configuration with the variables' values.

    Raises:
        InputError: One is not set.
    """
    if isinstance(content, dict):
        return {key: reveal(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(reveal(value) for value in content)
    return look_up(content) if isinstance(content, str) else content


def starting(words: Sequence[str]) -> list[str]:
    """The command line of another program that has references: one that looks them up and becomes it."""
    if not any(REFERENCE.search(word) for word in words):
        return list(words)
    return [sys.executable, "-m", __name__, *words]


if __name__ == "__main__":
    try:
        command = [look_up(word) for word in sys.argv[1:]]
    except InputError as error:
        raise SystemExit(f"crosslight: error: {error}") from None
    os.execvp(command[0], command)
