"""CIDEr-D: what its document frequencies mean, and that a wrong twin is noticed."""

from __future__ import annotations

import pytest
from caption_files import naive_cider, random_captions

from lightning_modules.metrics.captions.cider import CIDErReferences
from lightning_modules.metrics.captions.ngrams import ReferenceNgrams


def cider(references: list[list[str]], candidates: list[str]) -> list[float]:
    counted = ReferenceNgrams(references)
    return CIDErReferences(counted).scores(counted.match(candidates)).tolist()


def test_one_image_has_no_cider_and_identical_pairs_have_ten() -> None:
    assert cider([["a cat sits on a mat"]], ["a cat sits on a mat"]) == [0.0]
    two = [["a cat sits on the mat"], ["some dogs run over wet grass"]]
    assert cider(two, [sentence for (sentence,) in two]) == pytest.approx([10.0, 10.0])


def test_references_are_counted_once_for_many_candidate_sets() -> None:
    references, candidates = random_captions(1)
    counted = ReferenceNgrams(references)
    kept = CIDErReferences(counted)
    for seed in (2, 3, 1):
        others = random_captions(seed)[1]
        assert kept.scores(counted.match(others)).tolist() == cider(references, others)
    assert kept.scores(counted.match(candidates)).tolist() == cider(references, candidates)


def test_the_twins_differ_from_wrong_ones() -> None:
    """The comparison above could tell: swapped candidates, other frequencies, another clipping."""
    references, candidates = random_captions(0)
    right = naive_cider(references, candidates)
    assert cider(references, candidates[::-1]) != pytest.approx(right, rel=1e-3)
    assert cider(references[:-1], candidates[:-1]) != pytest.approx(right[:-1], rel=1e-3)
    assert cider(references, [f"{c} {c}" for c in candidates]) != pytest.approx(right, rel=1e-3)
