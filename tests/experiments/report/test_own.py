"""A report of one's own runs: their scores, curves and errors under a title of its own, and nothing of papers."""

from __future__ import annotations

import csv
import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from configurations import changed
from fake_runs import ranks, write_run
from fresh_process import modules_after

from datamodules.errors import InputError
from experiments.cli.main import run_command
from experiments.runs.results import read_results, write_results
from lightning_modules.checkpoints.run_folder import Fit


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two learning rates, the second one better by validation, a run that failed, and one that only tested."""
    for name, lr, curve in (("one", 0.001, [300.0, 310.0, 305.0]), ("two", 0.002, [300.0, 330.0, 320.0])):
        arrays = {"coco": ranks(np.random.default_rng(0), 0.5)}
        folder = write_run(tmp_path / "runs" / name, arrays, logged={"train/loss": [3.0, 2.0, 1.0], "val/rsum": curve})
        (folder / "config.yaml").write_text(yaml.safe_dump(changed(model__init_args__optimization__lr=lr)))
        write_results(folder, replace(read_results(folder), fit=Fit(30, 3, "val/rsum", max(curve))))
    write_run(tmp_path / "runs" / "bad", {}, status="failed", error="no <b>space</b> left")
    (tmp_path / "runs" / "bad" / "config.yaml").write_text(yaml.safe_dump(changed()))
    tested = write_run(tmp_path / "runs" / "tested", {"flickr30k": ranks(np.random.default_rng(1), 0.3)})
    write_results(tested, replace(read_results(tested), fit=None, command="test"))
    return tmp_path / "runs"


def text_of(page: Path) -> str:
    """What is read on it."""
    source = re.sub(r"<(style|script|svg).*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())


def test_every_line_is_in_the_legend_whatever_its_name(tmp_path: Path) -> None:
    """matplotlib leaves out what begins with an underscore."""
    for name in ("_first", "second", "_child0 $x^2$"):
        folder = write_run(tmp_path / "runs" / name.split()[0], {}, name=name, logged={"train/loss": [3.0, 2.0, 1.0]})
        (folder / "config.yaml").write_text(yaml.safe_dump(changed()))
    assert run_command("report", [str(tmp_path / "runs"), "--out", str(tmp_path / "site")]) == 0
    page = (tmp_path / "site" / "index.html").read_text()
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert {"second", "_first", "_child0 $x^2$"} <= {html.unescape(each).strip("\N{ZERO WIDTH SPACE}\n ") for each in drawn}


def test_scores_curves_and_errors_under_a_title(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "site"
    assert run_command("report", [str(runs), "--out", str(out), "--title", "Rates <of> mine"]) == 0
    assert capsys.readouterr().out == f"report: {out / 'index.html'} (4 runs, 3 finished)\n"
    assert sorted(each.name for each in out.iterdir()) == ["index.html", "runs.csv", "runs.md"]
    page = (out / "index.html").read_text()
    assert "<h1>Rates &lt;of&gt; mine</h1>" in page
    assert "<title>Rates &lt;of&gt; mine</title>" in page
    text = text_of(out / "index.html")
    for nothing in ("paper", "exhibit", "claim", "scale of"):
        assert nothing not in text.lower(), nothing
    assert "3 finished" in text
    assert re.search(r" 0\.002 [^±]*? 330\.0 .* 0\.001 [^±]*? 310\.0 ", text), "the best validation first"
    assert "no <b>space</b> left" in text
    assert page.count("<figure>") == 2, "the loss and what chose the checkpoint"
    assert 'aria-label="val/rsum over steps: two from 300 at step 0 to 320 at step 20; one from 300 at step 0' in page
    assert "tested from" not in page, "a test has no curve"
    assert "0.002" in (out / "runs.md").read_text()
    with open(out / "runs.csv", newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} == {"one", "two", "bad", "tested"}


def test_without_a_title_it_has_the_folders_names(runs: Path, tmp_path: Path) -> None:
    assert run_command("report", [str(runs / "one"), str(runs / "two"), "--out", str(tmp_path / "site")]) == 0
    assert f"<h1>Runs in {runs / 'one'}, {runs / 'two'}</h1>" in (tmp_path / "site" / "index.html").read_text()
    with pytest.raises(InputError, match=r"--maps is of exhibits. `crosslight caption RUN IMAGE --maps DIR` draws"):
        run_command("report", [str(runs), "--maps", "--out", str(tmp_path / "other")])


def test_a_run_that_cannot_be_read_hides_no_other(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "two" / "metrics.csv").write_text("step,val/rsum\n0,high\n")
    (runs / "bad" / "results.json").write_text("{")
    assert run_command("report", [str(runs), "--out", str(tmp_path / "site")]) == 0
    assert "bad/results.json is not JSON" in capsys.readouterr().err
    text = text_of(tmp_path / "site" / "index.html")
    assert "unreadable" in text
    assert "310.0" in text


def test_of_many_runs_the_best_have_lines(tmp_path: Path) -> None:
    for number in range(18):
        folder = write_run(tmp_path / "runs" / f"r{number}", {}, logged={"val/rsum": [100.0, 100.0 + number]}, name=f"r{number}")
        write_results(folder, replace(read_results(folder), fit=Fit(20, 2, "val/rsum", 100.0 + number)))
    assert run_command("report", [str(tmp_path / "runs"), "--out", str(tmp_path / "site")]) == 0
    page = (tmp_path / "site" / "index.html").read_text()
    assert "2 further runs are left out: those whose validation was worse." in page
    assert "r17 from" in page
    assert "r1 from" not in page


def test_a_run_has_one_color_in_all_pictures(runs: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "silent", {}, logged={"train/loss": [9.0, 8.0]}, name="silent", status="interrupted")
    assert run_command("report", [str(runs), "--out", str(tmp_path / "site")]) == 0
    loss, rsum = re.findall(r"<figure>(.*?)</figure>", (tmp_path / "site" / "index.html").read_text(), flags=re.DOTALL)
    assert "silent from 9 at step 0" in loss
    for color in ("var(--line-1)", "var(--line-2)"):
        assert color in loss
        assert color in rsum
    assert "var(--line-3)" in loss, "the run that was not validated"
    assert "var(--line-3)" not in rsum


def test_it_needs_no_torch_and_no_pandas(runs: Path, tmp_path: Path) -> None:
    modules = modules_after("report", runs, "--out", tmp_path / "site", folder=tmp_path)
    assert "experiments.report.own" in modules
    assert not modules & {"torch", "pandas"}
