"""Exhibits at scale small: what stands in the place of what, rows that it has and has not, claims of all scales in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_runs import fill

from experiments.cli.main import run_command
from experiments.report.collect import collect
from experiments.report.exports import caption, to_markdown
from experiments.report.scales import other_sides
from experiments.report.verdicts import judge
from experiments.runs.store import RunFolders

NAMES = ["mwa/table1", "mwa/table2", "iais/table2", "i_tuning/table1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    fill(root, NAMES, "small", [0, 1])
    return root


def test_tables_say_what_stands_in_the_place_of_what(runs: Path) -> None:
    for view in collect(NAMES, "small", RunFolders([runs])):
        text = caption(view)
        assert "Small scale" in text, view.name
        assert view.exhibit.at["small"].data in text, view.name
        assert any(variant.finished for variant in view.variants), view.name
    table1, _, distances, captions = collect(NAMES, "small", RunFolders([runs]))
    rows = {variant.label: variant for variant in table1.variants}
    assert rows["DINOv2-S and MiniLM, MWA"].status == "flickr: not at this scale"
    assert rows["large, full"].finished == 0
    assert table1.cell("base, MWA", "coco_ir1").variant == "DINOv2-S and MiniLM, MWA"  # claims name it by its own label
    assert table1.cell("base, MWA", "coco_ir1").n == 2
    assert "Flickr8k IR@1" in to_markdown(table1, [])
    assert distances.variants[1].label == "UNITER of MiniLM, IAIS-singular"
    halves = [
        claim for claim in captions.exhibit.claims if claim.high == [["I-Tuning, GPT-2 large, half of the layers", "coco_cider"]]
    ]
    assert [judge(captions, claim).comparisons != () for claim in halves] == [True]
    larger = next(claim for claim in captions.exhibit.claims if "at every size" in claim.text)
    assert "1 of its 3 comparisons" in judge(captions, larger).scope


def test_a_claim_is_the_same_at_the_other_scales(runs: Path) -> None:
    folders = RunFolders([runs])
    views = collect(NAMES, "miniature", folders)
    small = next(side for side in other_sides(views, "miniature", folders) if side.scale == "small")
    drops = dict(zip((claim.text for claim in views[1].exhibit.claims), small.findings["mwa/table2"], strict=True))
    (finding,) = drops.values()
    assert finding.verdict is not None
    assert "DINOv2-S and MiniLM, MWA" in finding.verdict.comparisons[0].what


def test_the_command_writes_it(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["mwa/table2", "mwa/figure2", "--scale", "small", "--runs", str(runs), "--out", str(tmp_path / "r")]
    assert run_command("report", words) == 0
    assert "small scale" in capsys.readouterr().out
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["scale"] == "small"
    page = (tmp_path / "r" / "summary.md").read_text()
    assert "COCO IR@1, 154 images" in page
    html = (tmp_path / "r" / "mwa-table2.html").read_text()
    assert "from Flickr8k to 154 photographs of COCO in place of COCO to Flickr30k" in html
    assert "what is missing and resumes" not in html
    assert "What is missing runs with" not in page  # rows that this scale does not have are no reason to run it
    (view,) = collect(["mwa/figure2"], "small", RunFolders([runs, tmp_path]))
    assert not view.incomplete
    (view,) = collect(["i_tuning/language_models"], "small", RunFolders([runs]))  # alone-llama was not filled
    assert view.incomplete
