"""Every committed contradiction is explained, and an explanation is shown where its claim is contradicted, nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.errors import InputError
from experiments.papers.schema import SCALES, Claim, Scale
from experiments.report import scales
from experiments.report.explanations import explanation, explanations
from experiments.report.verdicts import Verdict

CLAIM = Claim("more is better", "greater", reason="the recall")


@pytest.mark.parametrize("scale", [scale for scale in SCALES if (scales.RESULTS / scale / "summary.json").is_file()])
def test_every_committed_contradiction_is_explained_and_nothing_else(scale: Scale) -> None:
    content = json.loads((scales.RESULTS / scale / "summary.json").read_text(encoding="utf-8"))
    contradicted = {
        (exhibit["name"], claim["key"])
        for exhibit in content["exhibits"]
        for claim in exhibit["claims"]
        if claim["verdict"] == "contradicted"
    }
    explained = {(exhibit, key): text for exhibit, texts in explanations(scale).items() for key, text in texts.items()}
    assert explained.keys() == contradicted
    assert all(any(letter.isdigit() for letter in text) and text.endswith(".") for text in explained.values())  # with numbers


def test_an_explanation_is_of_its_claim_while_it_is_contradicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "miniature").mkdir()
    key = scales.claim_key(CLAIM)
    (tmp_path / "miniature" / "explanations.yaml").write_text(f"mwa/table1:\n  {key}: It is 3 less.\n", encoding="utf-8")
    monkeypatch.setattr(scales, "RESULTS", tmp_path)
    contradicted = Verdict(CLAIM, "contradicted", "at miniature scale", "3 less")
    beside = "Of the runs of experiments/results/miniature: It is 3 less."
    assert explanation("miniature", "mwa/table1", contradicted) == beside, "no summary is committed"
    (tmp_path / "small").mkdir()
    claims = [{"key": key, "summary": "3 less"}]
    exhibits = [{"name": "mwa/table1", "claims": claims}]
    committed = {"schema": "crosslight.summary/1", "scale": "small", "provenance": {}, "exhibits": exhibits}
    (tmp_path / "small" / "summary.json").write_text(json.dumps(committed), encoding="utf-8")
    (tmp_path / "small" / "explanations.yaml").write_text(f"mwa/table1:\n  {key}: It is 3 less.\n", encoding="utf-8")
    assert explanation("small", "mwa/table1", contradicted) == "It is 3 less."
    others = explanation("small", "mwa/table1", replace(contradicted, summary="4 less"))
    assert others == "Of the runs of experiments/results/small: It is 3 less.", "whose numbers are not these"
    assert explanation("miniature", "mwa/table2", contradicted) == ""
    assert explanation("full", "mwa/table1", contradicted) == ""
    assert explanation("miniature", "mwa/table1", replace(contradicted, outcome="supported")) == ""
    other = replace(contradicted, claim=replace(CLAIM, margin=2.0))  # another test of the same words
    assert explanation("miniature", "mwa/table1", other) == ""


def test_a_damaged_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "miniature").mkdir()
    (tmp_path / "miniature" / "explanations.yaml").write_text("mwa/table1: because\n", encoding="utf-8")
    monkeypatch.setattr(scales, "RESULTS", tmp_path)
    with pytest.raises(InputError, match=r"explanations\.yaml.*mwa/table1"):
        explanations("miniature")
