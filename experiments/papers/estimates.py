"""Runs of which nobody has said what they cost."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.errors import some


def without_estimate(names: Sequence[str]) -> str:
    """How many they are, which, and what to do about it."""
    runs = "run" if len(names) == 1 else "runs"
    return f"{len(names)} {runs} without an estimate ({some(dict.fromkeys(names))}: write `cost` into the recipe)"
