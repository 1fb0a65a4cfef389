"""BLEU's brevity; its scores are compared in test_evaluation.py."""

from __future__ import annotations

from lightning_modules.metrics.captions.bleu import BLEUCounts
from lightning_modules.metrics.captions.ngrams import ReferenceNgrams


def test_bleu_takes_the_shorter_of_two_references_as_close() -> None:
    references = [["a b c d", "a b c d e f"]]
    counted = ReferenceNgrams(references)
    assert BLEUCounts(counted, counted.match(["a b c d e"])).closest_I.tolist() == [4]
    assert BLEUCounts(counted, counted.match(["a b c d e f g"])).closest_I.tolist() == [6]
