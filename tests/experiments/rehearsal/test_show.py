"""The page of a rehearsal: what would fail, and what only this machine lacks."""

from __future__ import annotations

from pathlib import Path

from experiments.rehearsal.changes import Settings
from experiments.rehearsal.life import Place
from experiments.rehearsal.show import faults, missing, page
from experiments.runs.rehearsed import Rehearsed, Verdict
from experiments.sweep.launches import Launch


def test_what_the_machine_lacks_is_said_once_and_is_no_fault(tmp_path: Path) -> None:
    launch = Launch("k", "captioner", "captioner", tmp_path, "run")
    lack = Verdict("report", "unknown", "1 numbers of 1 exhibits; without meteor: install METEOR")
    record = Rehearsed(launch.title, "r", "s", (Verdict("devices", "unknown", "no GPU"), lack))
    done = {launch.key: record}
    assert faults([launch], done) == []
    said = f"report unknown: {lack.said} [{launch.title}]"
    assert missing([launch], done) == [said]
    text = page([launch], done, Place(tmp_path, tmp_path, Settings(3)))
    assert text.endswith(f"## What this machine lacks\n\n- {said}\n")
    assert "What would fail" not in text
