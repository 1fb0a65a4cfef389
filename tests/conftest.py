"""The order of all tests: the files that take longest first, so that two workers (`--dist loadfile`) end together. Where
libraries keep things, which is not the home of whoever runs them. When Python looks for garbage, and who hears signals."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

LONG = ("end_to_end", "test_lazy_imports.py")
# One folder for all runs: matplotlib lists all fonts where it has not yet.
KEPT = Path(tempfile.gettempdir()) / f"crosslight-tests-{os.getuid()}"

for name in ("CROSSLIGHT_CACHE", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "MPLCONFIGDIR"):
    os.environ.setdefault(name, str(KEPT / name.lower()))

# A fifth of importing what the tests import goes into looking for garbage among a million objects that stay.
gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    yield
    gc.freeze()  # what is there now stays to the end: no search looks at it again
    gc.set_threshold(10_000)  # else what tests build, and their fixtures keep, is searched so often that it takes one part in 20
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or nanobind (triton's) names at the end all that it takes for leaked


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Nobody listens to Slurm behind a test: what is forked then would not hear SIGTERM, and who ends it would wait for ever."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
            if (preemption := sys.modules.get("experiments.training.preemption")) is not None:
                preemption._Notice.listener = None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(part in LONG for part in item.path.parts))
