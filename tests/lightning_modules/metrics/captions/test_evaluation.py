"""BLEU, ROUGE-L and CIDEr-D: equal to coco-caption's recorded scores and to obvious twins; the metric over batches, processes and
domains."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caption_files import longest_common, naive_bleu, naive_cider, naive_rouge, recorded
from fake_java import fake

from datamodules.errors import InputError
from lightning_modules.metrics.captions.bleu import BLEUCounts
from lightning_modules.metrics.captions.cider import CIDErReferences
from lightning_modules.metrics.captions.evaluation import JAVA_FREE, CaptionScorer
from lightning_modules.metrics.captions.gathered import CaptionScores
from lightning_modules.metrics.captions.java import METEOR_DATA, METEOR_JAR
from lightning_modules.metrics.captions.ngrams import ReferenceNgrams
from lightning_modules.metrics.captions.rouge_l import rouge_l

OURS = {**{f"Bleu_{n}": f"bleu_{n}" for n in range(1, 5)}, "CIDEr": "cider", "ROUGE_L": "rouge_l"}
ROOT = Path(__file__).resolve().parents[4]


def random_captions(seed: int, images: int = 12) -> tuple[list[list[str]], list[str]]:
    """Few words, so that n-grams repeat within and between sentences; references differ in number; some sentences are short, one
    candidate is empty, and candidates go on from a reference with words that no reference has."""
    draw = random.Random(seed)
    words = [f"w{n}" for n in range(7)]

    def sentence(least: int, most: int, extra: list[str]) -> str:
        return " ".join(draw.choices(words + extra, k=draw.randint(least, most)))

    references = [[sentence(1, 12, []) for _ in range(draw.randint(1, 6))] for _ in range(images)]
    candidates = [f"{draw.choice(own)} {sentence(1, 6, ['new', 'unseen'])}" for own in references]
    candidates[draw.randrange(images)] = ""
    return references, candidates


def cider(references: list[list[str]], candidates: list[str]) -> list[float]:
    counted = ReferenceNgrams(references)
    return CIDErReferences(counted).scores(counted.match(candidates)).tolist()


# ------------------------------------------------------------------------------------------------------------- equal scores


@pytest.mark.parametrize("name", ["caption_metrics_small", "caption_metrics_raw"])
def test_equals_coco_caption(name: str) -> None:
    about = recorded(name)
    tokens = about.get("tokenised")
    ids = list(about["references"])
    references = [tokens[i]["references"] if tokens else about["references"][i] for i in ids]
    candidates = [tokens[i]["result"] if tokens else about["candidates"][i] for i in ids]
    found = CaptionScorer(references, JAVA_FREE, "none").score(candidates)
    assert not found.unavailable
    compared = 0
    for theirs, our in OURS.items():
        assert found.values[our] == pytest.approx(about["computed"][theirs], rel=1e-12)
        for row, image in enumerate(ids):
            if theirs in about["per_image"][image]:
                assert found.per_image[our][row] == pytest.approx(about["per_image"][image][theirs], rel=1e-9, abs=1e-15)
                compared += 1
    assert compared >= 3 * len(ids)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_obvious_way(seed: int) -> None:
    references, candidates = random_captions(seed)
    counted = ReferenceNgrams(references)
    matched = counted.match(candidates)
    assert cider(references, candidates) == pytest.approx(naive_cider(references, candidates), rel=1e-12, abs=1e-14)
    assert BLEUCounts(counted, matched).corpus() == pytest.approx(naive_bleu(references, candidates), rel=1e-7)
    assert rouge_l(references, candidates) == pytest.approx(naive_rouge(references, candidates), rel=1e-14)


def test_the_twins_differ_from_wrong_ones() -> None:
    """The comparison above could tell: swapped candidates, other frequencies, another clipping."""
    references, candidates = random_captions(0)
    right = naive_cider(references, candidates)
    assert cider(references, candidates[::-1]) != pytest.approx(right, rel=1e-3)
    assert cider(references[:-1], candidates[:-1]) != pytest.approx(right[:-1], rel=1e-3)
    assert cider(references, [f"{c} {c}" for c in candidates]) != pytest.approx(right, rel=1e-3)


def test_references_are_counted_once_for_many_candidate_sets() -> None:
    references, candidates = random_captions(1)
    counted = ReferenceNgrams(references)
    kept = CIDErReferences(counted)
    for seed in (2, 3, 1):
        others = random_captions(seed)[1]
        assert kept.scores(counted.match(others)).tolist() == cider(references, others)
    assert kept.scores(counted.match(candidates)).tolist() == cider(references, candidates)


def test_one_image_has_no_cider_and_identical_pairs_have_ten() -> None:
    assert cider([["a cat sits on a mat"]], ["a cat sits on a mat"]) == [0.0]
    two = [["a cat sits on the mat"], ["some dogs run over wet grass"]]
    assert cider(two, [sentence for (sentence,) in two]) == pytest.approx([10.0, 10.0])


def test_bleu_takes_the_shorter_of_two_references_as_close() -> None:
    references = [["a b c d", "a b c d e f"]]
    counted = ReferenceNgrams(references)
    assert BLEUCounts(counted, counted.match(["a b c d e"])).closest_I.tolist() == [4]
    assert BLEUCounts(counted, counted.match(["a b c d e f g"])).closest_I.tolist() == [6]


def test_empty_captions_score_nothing() -> None:
    found = CaptionScorer([["a cat"], ["a dog runs"]], JAVA_FREE, "none").score(["", ""])
    assert set(found.values) == set(OURS.values())
    assert all(value < 1e-6 for value in found.values.values())
    assert all(np.isfinite(values).all() for values in found.per_image.values())


def test_longest_common_subsequence_of_repeated_words() -> None:
    draw = random.Random(0)
    for _ in range(200):
        a, b = (draw.choices("abc", k=draw.randint(1, 70)) for _ in range(2))
        (score,) = rouge_l([[" ".join(b)]], [" ".join(a)])
        common = longest_common(a, b)
        p, r = common / len(a), common / len(b)
        assert score == pytest.approx(2.44 * p * r / (r + 1.44 * p) if common else 0.0)


# ----------------------------------------------------------------------------------------------------------------- domains


def test_domains_have_the_frequencies_of_the_whole_set() -> None:
    references, candidates = random_captions(4, images=15)
    domains = ["in"] * 4 + ["near"] * 8 + ["out"] * 2 + [None]
    whole = CaptionScorer(references, JAVA_FREE, "none", domains=domains).score(candidates)
    alone = CaptionScorer(references, JAVA_FREE, "none").score(candidates)
    assert {name: value for name, value in whole.values.items() if "/" not in name} == alone.values
    for name in ("cider", "rouge_l"):
        assert whole.values[f"near/{name}"] == pytest.approx(alone.per_image[name][4:12].mean())
    # The whole is the mean of the domains by their images, and of the image without one.
    parts = sum(whole.values[f"{d}/cider"] * domains.count(d) for d in ("in", "near", "out")) + alone.per_image["cider"][-1]
    assert whole.values["cider"] == pytest.approx(parts / 15)
    # BLEU is that of the subset, as a set.
    near = CaptionScorer(references[4:12], JAVA_FREE, "none").score(candidates[4:12])
    assert whole.values["near/bleu_2"] == pytest.approx(near.values["bleu_2"])
    assert whole.values["near/cider"] != pytest.approx(near.values["cider"], rel=1e-3)


def test_subset_frequencies_are_those_of_the_domain_alone() -> None:
    references, candidates = random_captions(5, images=10)
    scorer = CaptionScorer(references, ("cider",), "none", domains=["in"] * 4 + ["out"] * 6, domain_frequencies="subset")
    found = scorer.score(candidates).values
    assert found["out/cider"] == pytest.approx(np.mean(cider(references[4:], candidates[4:])))
    assert found["cider"] == pytest.approx(np.mean(cider(references, candidates)))


# ------------------------------------------------------------------------------------------------------------- as a Metric


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"references": []}, "no images"),
        ({"references": [["a"], []]}, "image row 1 has no references"),
        ({"references": [["a"]], "metrics": ["ciderr"]}, "no metric 'ciderr'; there are bleu, cider, meteor"),
        ({"references": [["a"]], "domains": ["in", "out"]}, "2 domains for 1 images"),
        ({"references": [["a"]], "tokenizer": "spacy"}, "no tokenizer 'spacy'"),
    ],
)
def test_what_cannot_be_scored_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CaptionScorer(**{"tokenizer": "none", **arguments})
    with pytest.raises(InputError, match="2 captions for 1 images"):
        CaptionScorer([["a"]], JAVA_FREE, "none").score(["a", "b"])


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
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CROSSLIGHT_CACHE": str(tmp_path),
        "CROSSLIGHT_JAVA": str(fake(tmp_path)),
    }
    command = [sys.executable, str(ROOT / "tests" / "support" / "caption_worker.py")]
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=180)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
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
