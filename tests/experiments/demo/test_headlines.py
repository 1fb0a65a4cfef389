"""`crosslight demo`: it runs what its exhibits need and no more, and ends on their report."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import pytest
from fake_runs import fill, write_run

from experiments.analysis import run_maps
from experiments.analysis.stored_maps import MAPS_FOLDER, SHARES_FILE, store_map, stored_shares
from experiments.demo import headlines as demo
from experiments.papers.plan import plan
from experiments.papers.schema import Paper


class _Here:
    """In place of a pool: does at once, in this process, where what draws can be replaced."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done


@pytest.mark.parametrize("papers", [[], ["iais"], ["i_tuning"], ["mwa", "i_tuning"]], ids=["all", "iais", "i_tuning", "two"])
def test_the_runs_are_those_of_the_shown_exhibits_each_once_after_what_it_needs(papers: list[Paper], tmp_path: Path) -> None:
    launches = demo.demo_launches(papers, tmp_path, [0])
    planned = plan(demo.exhibits_of(papers), "miniature", [0])
    left_out = [run for run in planned if not papers and set(run.names) & set(demo.ROWS_WITH_A_NAME)]
    assert {launch.key for launch in launches} == {run.key for run in planned if run not in left_out}, "a sweep finds them"
    assert len(left_out) == (0 if papers else len(demo.ROWS_WITH_A_NAME)), "none of its names is stale"
    assert len({launch.key for launch in launches}) == len(launches)
    done: set[str] = set()
    for launch in launches:
        assert set(launch.after) <= done
        assert launch.gpus == 0
        done.add(launch.key)
    assert {name.partition("/")[0] for name in demo.exhibits_of(papers)} == set(papers or ("mwa", "iais", "i_tuning"))
    assert len(demo.demo_launches(papers, tmp_path, [0, 1])) == 2 * len(launches)


def test_a_paper_that_is_named_has_more() -> None:
    assert demo.exhibits_of([]) == ["mwa/table3", "iais/figure7", "i_tuning/table3", "i_tuning/figure3"]
    assert demo.exhibits_of(["i_tuning", "iais"]) == ["iais/figure7", "iais/table2", "i_tuning/table3", "i_tuning/figure3"]


def test_it_ends_on_the_report_and_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "demo"
    for run in fill(runs, demo.exhibits_of([]), "miniature", [0]):
        if {"mwa/base-coco-ae_only", *demo.ROWS_WITH_A_NAME} & set(run.names):
            shutil.rmtree(runs / run.folder_name)
        if "mwa/base-coco-ae_only" in run.names:
            write_run(runs / run.folder_name, {}, status="oom", error="out of memory")
    (captioner,) = runs.glob("i_tuning-coco-large-s0-*")
    shares = stored_shares(captioner)
    assert shares is not None
    (captioner / MAPS_FOLDER / SHARES_FILE).unlink()
    looked: list[Path] = []
    monkeypatch.setattr(run_maps, "make_maps", lambda folder: looked.append(folder) or folder)
    monkeypatch.setattr(run_maps, "make_shares", lambda folder, by: store_map(folder, SHARES_FILE, shares))
    monkeypatch.setattr(demo, "ProcessPoolExecutor", _Here)
    monkeypatch.setattr(demo, "QUERIES_OF", "no run")  # drawing wants a model, and nothing here is one

    assert demo.run_demo([], out, runs, [0]) == 1, "a run failed"

    text = capsys.readouterr().out
    lines = text.rstrip().splitlines()
    assert lines[-1] == f"report:  {out / 'report' / 'index.html'}"
    assert (out / "report" / "mwa-table3.html").is_file()
    assert (out / "report" / "i-tuning-figure3.html").is_file()
    assert {folder.name.rpartition("-s0-")[0] for folder in looked} == {
        "iais-base-flickr30k-baseline", "iais-base-flickr30k-singular", "i_tuning-coco-large",
    }  # fmt: skip
    value, difference = (line for line in lines if line.strip().startswith("KE only"))
    assert "(57.32)" in value, "the paper's own beside ours"
    assert difference.count("[") == 2, "both recalls against full fine-tuning, with intervals"
    (row,) = (line for line in lines if line.strip().startswith("AE only"))
    assert "– (57.88)" in row
    assert row.rstrip().endswith("oom")
    value, _ = (line for line in lines if line.strip().startswith("the start (frozen)"))
    assert " ours " in value
    (row,) = (line for line in lines if line.strip().startswith("I-Tuning, half of the layers"))
    assert row.rstrip().endswith(" 0  left out")
    assert "left out: `crosslight demo i_tuning` has these rows" in text
    (row,) = (line for line in lines if line.strip().startswith("UNITER-base, IAIS-distributed"))
    assert row.rstrip().endswith(" 0  left out")
    assert "left out: `crosslight demo iais` has these rows" in text
    figure3 = lines[next(at for at, line in enumerate(lines) if line.endswith("i_tuning/figure3")) :]
    value, look = (line for line in figure3 if line.split("  ")[0].strip() == "I-Tuning, GPT-2 large")
    assert f" {100 * shares.inside_W.mean():.1f} " in value, "measured by this demo"
    # all have three times their area, and half of that a layer before
    assert re.search(rf" 3\.0 \[3\.0, 3\.0\] +0: \d\d, 1: \d\d +{shares.patches_W.min():.1f} +10 +40$", look.rstrip())
    verdicts = [line for line in figure3 if "can correctly attend" in line]
    assert len(verdicts) == 1, "a claim on rows that the demo leaves out has no verdict there"
    assert "supported at miniature scale" in verdicts[0]
    assert "A red cone." in text
    assert "? not decided: “dropping either component" in text
