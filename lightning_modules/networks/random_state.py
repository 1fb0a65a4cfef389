"""The process's random state, which threads share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.seed import isolate_rng

_ALONE = threading.RLock()


@contextmanager
def drawing() -> Iterator[None]:
    """Inside, a seed may be set and drawn from: no other thread that draws so is inside, and Python's, numpy's and torch's random
    states are as before afterwards."""
    with _ALONE, isolate_rng():
        yield
