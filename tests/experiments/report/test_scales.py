"""What other scales say of a report's claims: from their own runs, else from committed results, and never of another claim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runs import fill

from datamodules.errors import InputError
from experiments.papers.schema import SCALES, Claim, Scale
from experiments.report import scales
from experiments.report.collect import View, collect
from experiments.report.verdicts import judge
from experiments.runs.store import RunFolders

NAMES = ["mwa/table1", "mwa/figure2", "iais/figure3"]


def miniature_of(views: list[View], scale: Scale, roots: list[Path]) -> scales.Side:
    (side,) = (each for each in scales.other_sides(views, scale, RunFolders(roots)) if each.scale == "miniature")
    return side


@pytest.fixture
def committed(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The made-up miniature report as a committed one."""
    file = tmp_path / "results" / "miniature" / "summary.json"
    file.parent.mkdir(parents=True)
    file.write_bytes((site / "summary.json").read_bytes())
    monkeypatch.setattr(scales, "RESULTS", tmp_path / "results")
    return file


def test_committed_verdicts_are_those_of_the_runs_that_made_them(home: Path, committed: Path) -> None:
    views = collect(NAMES, "full", RunFolders([]))
    side = miniature_of(views, "full", [])
    assert side.source == "committed results: revision 148bf7a000; seeds 0, 1"
    for view, there in zip(views, collect(NAMES, "miniature", RunFolders([home / "runs"])), strict=True):
        for claim, found in zip(view.exhibit.claims, side.findings[view.name], strict=True):
            verdict = judge(there, claim)
            if found.verdict is None:
                assert found.absent == scales.absence(there, verdict) != ""
                continue
            assert found.verdict.claim is claim, "a line is of one claim"
            assert (found.verdict.outcome, found.verdict.scope) == (verdict.outcome, verdict.scope)
            for one, other in zip(found.verdict.comparisons, verdict.comparisons, strict=True):
                assert (one.what, one.outcome, one.bound) == (other.what, other.outcome, other.bound)
                if one.spread is not None and other.spread is not None:
                    stored, own = ([each.mean, each.low, each.high] for each in (one.spread, other.spread))
                    assert stored == pytest.approx(own, rel=1e-5, nan_ok=True)


def test_a_claim_that_is_put_to_another_test_now_has_no_committed_verdict(home: Path, committed: Path) -> None:
    (view,) = collect(["mwa/table1"], "full", RunFolders([]))
    first, *rest = view.exhibit.claims
    reworded = replace(first, text="the same in other words", reason="the recalls, both of them")
    stricter = replace(first, margin=first.margin / 2)
    for claim, absent in ((reworded, ""), (stricter, scales.OTHER_CLAIM)):
        changed = replace(view, exhibit=replace(view.exhibit, claims=[claim, *rest]))
        assert miniature_of([changed], "full", []).findings["mwa/table1"][0].absent == absent


def test_runs_in_the_folders_come_before_committed_results_and_bad_ones_are_told(
    home: Path, committed: Path, tmp_path: Path
) -> None:
    views = collect(["mwa/figure2"], "full", RunFolders([]))
    fill(tmp_path / "runs", ["mwa/figure2"], "miniature", [3])
    side = miniature_of(views, "full", [tmp_path / "runs"])
    assert side.source.startswith("from ")
    assert all(each.verdict is None or "1 seed" in each.verdict.scope for each in side.findings["mwa/figure2"])
    for file in (tmp_path / "runs").glob("*/results.json"):
        file.write_text("{")
    side = miniature_of(views, "full", [tmp_path / "runs"])
    assert side.source.startswith("committed results: ")
    assert "more here did not finish or cannot be read (`crosslight report --scale miniature` says why)" in side.source


def test_a_scale_without_anything_says_what_is_not_run_and_what_cannot_be(home: Path) -> None:
    views = collect(["mwa/table1"], "miniature", RunFolders([home / "runs"]))
    (full,) = (each for each in scales.other_sides(views, "miniature", RunFolders([home / "runs"])) if each.scale == "full")
    assert full.source == scales.NOT_RUN
    by_text = {claim.text: found for claim, found in zip(views[0].exhibit.claims, full.findings["mwa/table1"], strict=True)}
    assert by_text["loses less than 1 point"].absent == scales.NOT_RUN
    tested = by_text["no significant decrease"].verdict
    assert tested is not None
    assert tested.outcome == "not tested"
    own = scales.side_of_runs("miniature", [(views[0], [judge(views[0], each) for each in views[0].exhibit.claims])])
    unlucky = dict(zip((each.text for each in views[0].exhibit.claims), own.findings["mwa/table1"], strict=True))
    assert unlucky["beats the unlucky"].verdict is not None, "half of it was measured"


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "crosslight.summary/1", "scale": "full"}'])
def test_a_damaged_summary_is_refused_by_name(home: Path, committed: Path, content: str) -> None:
    committed.write_text(content)
    with pytest.raises(InputError, match=r"results/miniature/summary\.json"):
        scales.other_sides(collect(NAMES, "full", RunFolders([])), "full", RunFolders([]))


def test_a_key_is_of_the_test_and_not_of_its_words() -> None:
    claim = Claim("a", "greater", [["x", "y"]], [["z", "y"]])
    assert scales.claim_key(replace(claim, text="b", reason="c")) == scales.claim_key(claim)
    others = [replace(claim, margin=1.0), replace(claim, test="within"), replace(claim, low=[["w", "y"]])]
    assert len({scales.claim_key(each) for each in (claim, *others)}) == 4


@pytest.mark.parametrize("scale", SCALES)
def test_what_is_committed_can_be_read(scale: Scale) -> None:
    """Each summary is of its scale, and none of its claims would be lost by a reader of today."""
    file = scales.RESULTS / scale / "summary.json"
    if file.is_file():
        content = json.loads(file.read_text())
        assert content["scale"] == scale
        assert all(claim["key"] for exhibit in content["exhibits"] for claim in exhibit["claims"])
