"""`crosslight demo`: it runs what its exhibits need and no more, and ends on their report."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runs import fill

from experiments.analysis import run_maps
from experiments.demo import headlines as demo
from experiments.papers.plan import plan
from experiments.runs.results import read_results


def test_the_runs_are_those_of_the_shown_exhibits_each_once_after_what_it_needs(tmp_path: Path) -> None:
    launches = demo.headline_launches(tmp_path, [0])
    planned = [run for run in plan(demo.SHOWN, "miniature", [0]) if not set(run.names) & set(demo.LEFT_OUT)]
    assert {launch.key for launch in launches} == {run.key for run in planned}, "a second sweep finds them"
    assert len({launch.key for launch in launches}) == len(launches)
    done: set[str] = set()
    for launch in launches:
        assert set(launch.after) <= done
        assert launch.gpus == 0
        done.add(launch.key)
    assert {name.partition("/")[0] for name in demo.HEADLINES} == {"mwa", "iais", "i_tuning"}
    assert len(demo.headline_launches(tmp_path, [0, 1])) == 2 * len(launches)


def test_it_ends_on_the_report_and_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "demo"
    fill(runs, demo.HEADLINES, "miniature", [0], skip=["coco-ae_only"])
    (broken,) = runs.glob("mwa-base-coco-ae_only-*")
    assert read_results(broken).status in ("failed", "oom")
    looked: list[Path] = []
    monkeypatch.setattr(run_maps, "make_maps", lambda folder: looked.append(folder) or folder)
    monkeypatch.setattr(demo, "_draw_queries", lambda *_: None)  # both want models, and nothing here is one

    assert demo.run_demo(out, runs, [0]) == 1, "a run failed"

    text = capsys.readouterr().out
    lines = text.rstrip().splitlines()
    assert lines[-1] == f"report:  {out / 'report' / 'index.html'}"
    assert (out / "report" / "mwa-table3.html").is_file()
    assert (out / "report" / "i-tuning-figure3.html").is_file()
    assert {folder.name.rpartition("-s0-")[0] for folder in looked} == {
        "iais-base-flickr30k-baseline", "iais-base-flickr30k-singular", "iais-base-flickr30k-distributed",
        "i_tuning-coco-large", "i_tuning-coco-large-vlp",
    }  # fmt: skip
    (row,) = (line for line in lines if line.strip().startswith("KE only"))
    assert "(57.32)" in row, "the paper's own beside ours"
    (row,) = (line for line in lines if line.strip().startswith("AE only"))
    assert "– (57.88)" in row
    assert row.rstrip().endswith(read_results(broken).status)
    assert "A red cone." in text
    assert "? not decided: “dropping either component" in text
