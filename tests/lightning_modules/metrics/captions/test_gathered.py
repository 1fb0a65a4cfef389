"""Caption metrics over batches and processes, copied and pickled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import caption_worker
import pytest
import torch
from caption_files import random_captions
from fake_java import fake
from forks import two_ranks

from datamodules.errors import InputError
from lightning_modules.metrics.captions.evaluation import JAVA_FREE, CaptionScorer
from lightning_modules.metrics.captions.gathered import CaptionScores
from lightning_modules.metrics.captions.java import METEOR_DATA, METEOR_JAR


def test_metric_gathers_batches_in_any_order() -> None:
    references, candidates = random_captions(6)
    candidates[3] = "naïve café 🐈 w1 w2"  # beyond the basic plane
    metric = CaptionScores(references, JAVA_FREE, "none")
    for rows in ([5, 4], [], [0, 1, 2, 3, 11, 10, 9, 8, 7, 6]):
        metric.update([candidates[row] for row in rows], torch.tensor(rows, dtype=torch.int64))
    assert metric.captions() == candidates
    found = metric.compute()
    expected = CaptionScorer(references, JAVA_FREE, "none").score(candidates)
    assert {name: float(value) for name, value in found.items()} == expected.values
    assert metric.per_image()["cider"].tolist() == expected.per_image["cider"].tolist()
    metric.reset()
    with pytest.raises(RuntimeError, match="needs compute"):
        metric.per_image()
    metric.update(candidates, torch.arange(12))
    assert float(metric.compute()["cider"]) == expected.values["cider"]


def test_metrics_of_one_kind_give_their_own_scores() -> None:
    references, candidates = random_captions(7)
    everything = CaptionScorer(references, JAVA_FREE, "none").score(candidates).values
    for kind, names in (("bleu", {f"bleu_{n}" for n in range(1, 5)}), ("rouge_l", {"rouge_l"}), ("cider", {"cider"})):
        metric = CaptionScores(references, (kind,), "none")
        metric.update(candidates, torch.arange(len(candidates)))
        assert {name: float(value) for name, value in metric.compute().items()} == {n: everything[n] for n in names}


def test_states_say_how_they_are_reduced() -> None:
    metric = CaptionScores([["a"]], JAVA_FREE, "none")
    assert set(metric._reductions) == {"characters", "lengths", "index"}
    assert all(function.__name__ == "dim_zero_cat" for function in metric._reductions.values())


@pytest.mark.parametrize(
    ("rows", "message"), [([0, 1], "1 missing"), ([0, 1, 2, 2], "there more than once"), ([0, 1, 3], "outside 0..2")]
)
def test_missing_and_repeated_images_are_refused(rows: list[int], message: str) -> None:
    metric = CaptionScores([["a b"], ["c d"], ["e f"]], JAVA_FREE, "none")
    metric.update(["a"] * len(rows), torch.tensor(rows))
    with pytest.raises(InputError, match=message):
        metric.compute()


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    references, candidates = random_captions(8)
    everywhere: dict[str, Any] = {"metrics": list(JAVA_FREE)}
    cases = {
        "interleaved": {**everywhere, "shards": [[[0, 2], [4, 6, 8, 10]], [[11, 9, 7], [5, 3, 1]]]},
        "all in one": {**everywhere, "shards": [[], [list(range(12))]]},
        "missing": {**everywhere, "shards": [[[0, 1]], [[2]]]},
        "without its program": {**everywhere, "metrics": ["cider", "spice"], "shards": [[list(range(6))], [list(range(6, 12))]]},
        "failing": {**everywhere, "metrics": ["cider", "meteor"], "shards": [[list(range(6))], [list(range(6, 12))]]},
    }
    for name in (METEOR_JAR, f"data/{METEOR_DATA}"):
        (tmp_path / "captions" / "meteor" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "captions" / "meteor" / name).touch()
    (tmp_path / "behaviour").write_text("stops")
    (tmp_path / "data.json").write_text(json.dumps({"references": references, "candidates": candidates, "cases": cases}))
    java = str(fake(tmp_path))
    ends = two_ranks(caption_worker.main, tmp_path, CROSSLIGHT_CACHE=str(tmp_path), CROSSLIGHT_JAVA=java)
    assert [status for status, _ in ends] == [0, 0], ends
    answers = [json.loads((tmp_path / f"answers-{rank}.json").read_text()) for rank in range(2)]
    assert answers[0] == answers[1]
    expected = CaptionScorer(references, JAVA_FREE, "none").score(candidates)
    for name in ("interleaved", "all in one"):
        assert answers[0][name]["values"] == expected.values
        assert answers[0][name]["cider"] == expected.per_image["cider"].tolist()
    assert "of 12 image rows 9 missing" in answers[0]["missing"]["error"]
    assert answers[0]["without its program"]["values"] == {"cider": expected.values["cider"]}
    assert "install" in answers[0]["without its program"]["left_out"]["spice"]
    assert answers[0]["failing"]["error"] == "METEOR ended with status 1: Error: no dictionary"
    # One process alone runs the program.
    assert sum("-stdio" in call for call in (tmp_path / "calls").read_text().splitlines()) == 1


def test_meteor_alone_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr("lightning_modules.metrics.captions.java._package", lambda name: None)
    with pytest.raises(InputError, match=r"meteor is required and unavailable: install METEOR .* --install meteor"):
        CaptionScores([["a b"], ["c d"]], ("meteor",), "none", required=("meteor",))


def test_metric_is_copied_and_pickled_with_its_references() -> None:
    references, candidates = random_captions(9)
    metric = CaptionScores(references, JAVA_FREE, "none")
    metric.update(candidates, torch.arange(12))
    expected = {name: float(value) for name, value in metric.compute().items()}
    for other in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        other.reset()
        other.update(candidates, torch.arange(12))
        assert {name: float(value) for name, value in other.compute().items()} == expected
