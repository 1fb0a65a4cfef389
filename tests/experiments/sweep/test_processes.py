"""Processes that launches are forked from, and what they share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LEAVES_A_SEMAPHORE = """
from multiprocessing import resource_tracker
from experiments.sweep.processes import _about_what_was_killed
with _about_what_was_killed():
    resource_tracker.ensure_running()
resource_tracker.register("/of-a-run-that-was-killed", "semaphore")
"""


def test_what_killed_runs_leave_behind_is_no_warning() -> None:
    """Each rehearsal kills each of its runs."""
    told = []
    for program in (LEAVES_A_SEMAPHORE, LEAVES_A_SEMAPHORE.replace("with _about_what_was_killed()", "if True")):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
        told.append(subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True))
    assert told[0].stderr == ""
    assert "leaked semaphore" in told[1].stderr
