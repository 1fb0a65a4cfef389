"""The Makefile's commands run whenever they are asked for: make takes a folder of a command's name for its finished work."""

from __future__ import annotations

import re
from pathlib import Path

MAKEFILE = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")


def test_every_command_is_phony() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M)
    commands = re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.M)
    assert "notebooks" in commands
    assert set(commands) <= set(phony.split())
