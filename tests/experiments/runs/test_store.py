"""Run folders found: by key in several roots, and below folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.files.locks import locked
from experiments.papers.plan import PlannedRun
from experiments.papers.schema import Recipe
from experiments.runs.provenance import Device, Git, Provenance
from experiments.runs.results import Results, ResultsStatus, now, read_results, write_results
from experiments.runs.store import RunFolders, folder_of, read_run, run_folders_below

PLANNED = PlannedRun("0123456789ab", ("mwa/x",), "miniature", 2, Recipe([]), (), {})


def write(folder: Path, status: ResultsStatus = "finished", error: str | None = None) -> Path:
    folder.mkdir(parents=True)
    write_results(folder, Results(status, "run", "x", "c", now(), seed=2, error=error))
    return folder


def test_a_finished_run_comes_before_any_other_and_else_the_first_root(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    failed = write(here / "mwa-y-s2-01234567", "failed", "no")
    assert RunFolders([here]).find(PLANNED, "mwa/x").error == "no"
    assert folder_of(PLANNED, [there, here]) == failed
    done = write(there / "mwa-x-s2-01234567")
    run = RunFolders([here, there]).find(PLANNED, "mwa/x")
    assert (run.name, run.seed, run.status, run.folder, run.planned) == ("mwa/x", 2, "finished", done, PLANNED)
    assert RunFolders([here, there]).of(PLANNED) == [failed, done]
    assert RunFolders([there]).seeds == [2]
    other = PlannedRun("f" * 12, ("mwa/z",), "miniature", 0, Recipe([]), (), {})
    assert RunFolders([there]).find(other, "mwa/z").status == "missing"
    assert folder_of(other, [tmp_path / "none", there]) == tmp_path / "none" / "mwa-z-s0-ffffffff"
    with pytest.raises(InputError, match="none is not a folder"):
        RunFolders([tmp_path / "none"])


def test_a_run_says_how_it_is(tmp_path: Path) -> None:
    running = write(tmp_path / "running", "running")
    assert read_run(running).status == "interrupted"
    assert "was killed" in read_run(running).error
    with locked(running / ".lock"):
        assert (read_run(running).status, read_run(running).error) == ("running", "")
    (running / "results.json").write_text("{")
    assert read_run(running).status == "unreadable"
    assert str(running / "results.json") in read_run(running).error
    (running / "results.json").unlink()
    assert (read_run(running).status, read_run(running).name) == ("interrupted", "running")


def test_folders_below_folders(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a" / "one"), write(tmp_path / "two")
    assert run_folders_below([tmp_path]) == [one, two]
    assert run_folders_below([two, one]) == [two, one]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no results\.json: there is no run in it\."):
        run_folders_below([two, tmp_path / "empty"])
    with pytest.raises(InputError, match=r"holds no metrics\.csv: there is no run in it that logged anything\."):
        run_folders_below([two], "metrics.csv")
    with pytest.raises(InputError, match=r"nowhere is not a folder\. Give run folders"):
        run_folders_below([tmp_path / "nowhere"])


def test_a_run_on_stand_ins_is_no_result(tmp_path: Path) -> None:
    folder = write(tmp_path / "mwa-x-s2-01234567")
    device = Device("cpu", "x", "32-true", 1, "here")
    write_results(folder, replace(read_results(folder), provenance=Provenance(Git(), {}, device, stand_in=True)))
    run = RunFolders([tmp_path]).find(PLANNED, "mwa/x")
    assert (run.status, run.results) == ("unreadable", None)
    assert run.error.startswith(f"{folder} is a run on stand-ins (data or weights of random contents, or what was made of them")
