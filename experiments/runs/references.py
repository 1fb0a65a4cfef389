"""`${envvar:NAME}` in the command of a sweep: it may be a secret, so whatever is written down keeps the reference, and a process
looks it up where it starts. `python -m experiments.runs.references COMMAND ...` starts a program that knows none of this.
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
    """With the variables' values. One that is not set leaves its name, as with wandb's agent."""
    found = REFERENCE.sub(lambda reference: os.environ.get(reference[1], reference[1]), text)
    for reference in REFERENCE.finditer(text):
        if len(value := os.environ.get(reference[1], "")) >= _SHORTEST:
            _known[value] = reference[0]
    return found


def variable(name: str) -> str:
    """A variable's value, for `${envvar:NAME}` in a configuration.

    Raises:
        InputError: It is not set.
    """
    if name not in os.environ:
        raise InputError(f"the configuration names ${{envvar:{name}}}, and there is no such environment variable. Set it.")
    return look_up(f"${{envvar:{name}}}")


def conceal(content: Any) -> Any:
    """A text, or all texts of a configuration, with the references in place of what `look_up` gave for them."""
    if isinstance(content, dict):
        return {key: conceal(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(conceal(value) for value in content)
    if isinstance(content, str):
        for value in sorted(_known, key=len, reverse=True):
            content = content.replace(value, _known[value])
    return content


def starting(words: Sequence[str]) -> list[str]:
    """The command line of another program that has references: one that looks them up and becomes it."""
    if not any(REFERENCE.search(word) for word in words):
        return list(words)
    return [sys.executable, "-m", __name__, *words]


if __name__ == "__main__":
    command = [look_up(word) for word in sys.argv[1:]]
    os.execvp(command[0], command)
