"""What a launch's folder and log say of it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from experiments.runs.folder import RunFolder
from experiments.runs.results import read_results, write_results
from experiments.sweep.launches import Launch
from experiments.sweep.outcomes import log_of, record, state_of


def test_a_crash_that_opened_nothing_leaves_a_row_that_a_retry_takes_over(tmp_path: Path) -> None:
    launch = Launch("k", "mwa/x s3", "x", tmp_path / "x", "run", seed=3, scale="miniature")
    assert record(launch, "failed", "no such option")
    row = read_results(tmp_path / "x")
    assert (row.seed, row.scale, row.command, row.name) == (3, "miniature", "run", "mwa/x s3")
    folder = RunFolder.open(tmp_path / "x", name="x", command="run", config={"seed_everything": 3})
    assert folder.results.status == "running"
    assert not record(launch, "failed", "never")  # it is open
    os.utime(tmp_path / "x" / "config.yaml", (time.time() - 50, time.time() - 50))
    folder.finish("interrupted")
    counted = read_results(tmp_path / "x").seconds
    assert counted is not None
    assert counted < 50
    assert record(launch, "stopped_early", "hopeless")
    assert read_results(tmp_path / "x").seconds == counted  # the process had counted its attempt
    write_results(tmp_path / "x", replace(row, status="running", seconds=7.0))
    assert record(launch, "failed", "killed")
    assert (read_results(tmp_path / "x").seconds or 0) >= 57  # this one had not
    folder = RunFolder.open(tmp_path / "x", name="x", command="run", config={"seed_everything": 3})
    folder.finish("finished")
    assert state_of(launch)[0] == "finished"


def test_a_log_is_named_like_its_folder(tmp_path: Path) -> None:
    assert log_of(tmp_path, Launch("k", "n", "k", tmp_path / "run-1", None)) == tmp_path / "logs" / "run-1.log"
