"""All caption metrics of a split: equal to coco-caption's recorded scores and to obvious twins; domains, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from caption_files import naive_bleu, naive_cider, naive_rouge, random_captions, recorded

from datamodules.errors import InputError
from lightning_modules.metrics.captions.bleu import BLEUCounts
from lightning_modules.metrics.captions.cider import CIDErReferences
from lightning_modules.metrics.captions.evaluation import JAVA_FREE, CaptionScorer
from lightning_modules.metrics.captions.ngrams import ReferenceNgrams
from lightning_modules.metrics.captions.rouge_l import rouge_l

OURS = {**{f"Bleu_{n}": f"bleu_{n}" for n in range(1, 5)}, "CIDEr": "cider", "ROUGE_L": "rouge_l"}


def cider(references: list[list[str]], candidates: list[str]) -> list[float]:
    counted = ReferenceNgrams(references)
    return CIDErReferences(counted).scores(counted.match(candidates)).tolist()


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


def test_empty_captions_score_nothing() -> None:
    found = CaptionScorer([["a cat"], ["a dog runs"]], JAVA_FREE, "none").score(["", ""])
    assert set(found.values) == set(OURS.values())
    assert all(value < 1e-6 for value in found.values.values())
    assert all(np.isfinite(values).all() for values in found.per_image.values())


@pytest.mark.parametrize(
    ("references", "captions", "remarks"),
    [
        ([["a dog runs over grass"]], ["a dog runs over grass"], {"cider": "is 0 for any caption of a single image"}),
        ([["a dog runs on"]] * 3, ["a dog runs on"] * 3, {"cider": "0 for any caption of 3 images whose references all"}),
        ([["a dog runs on"], ["two cats sit up"]], ["a cat", ""],
         {"captions": "1 captions have no word and score 0 (first: image row 1)", "cider": "document frequencies of 2 images",
          "bleu": "no caption has 3 words: from bleu_3 on"}),
        ([[""], ["two cats sit up"]], ["a b c d"] * 2, {"references": "1 images have no reference with a word"}),
        ([[f"w{n} a b c d"] for n in range(100)], [f"w{n} a b c d" for n in range(100)], {}),
    ],
    ids=["one image", "all alike", "empty and short", "empty reference", "enough"],
)  # fmt: skip
def test_numbers_say_what_they_do_not_show(references: list[list[str]], captions: list[str], remarks: dict[str, str]) -> None:
    found = CaptionScorer(references, JAVA_FREE, "none").score(captions).remarks
    assert remarks.keys() <= found.keys()
    assert all(text in found[name] for name, text in remarks.items())
    assert bool(found) == bool(remarks)


def test_a_domain_of_one_image_with_frequencies_of_its_own_says_so() -> None:
    references = [[f"w{n} a b c"] for n in range(100)]
    scorer = CaptionScorer(references, ("cider",), "none", domains=["in"] + ["out"] * 99, domain_frequencies="subset")
    assert "in: is 0 for any caption of a single image" in scorer.score([own[0] for own in references]).remarks["cider"]


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
