"""How many processes a machine may be asked for."""

from __future__ import annotations

import os


def most_workers() -> int:
    """Processes that decode, at most: with many more than there are cores a machine only stands still."""
    return max(32, 4 * (os.cpu_count() or 1))
