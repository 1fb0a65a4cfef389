"""ROUGE-L (Lin, ACL workshop 2004) as coco-caption's `rouge.py` counts it: the longest common subsequence with each reference,
the greatest precision and the greatest recall over the references separately, F with beta 1.2.

A sentence is split at single spaces, as there: one without words counts as one empty word.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from lightning_modules.metrics.captions.caption_metric import CaptionMetric, Floats

BETA = 1.2


class ROUGEL(CaptionMetric):
    """ROUGE-L, key rouge_l."""

    name = "rouge_l"
    heading = "ROUGE-L"

    def score_images(self, references: Sequence[Sequence[str]], captions: Sequence[str]) -> Floats:
        return rouge_l(references, captions)


def rouge_l(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> npt.NDArray[np.float64]:
    """ROUGE-L of every image [I], between 0 and 1. The score of the whole set is the mean.

    Args:
        references: Tokenized sentences of each image.
        candidates: One tokenized sentence an image.

    Raises:
        InputError: Not one candidate an image, or an image without references.
    """
    if len(references) != len(candidates):
        raise InputError(f"{len(candidates)} captions for {len(references)} images: every image needs exactly one")
    scores = np.zeros(len(candidates))
    for row, (sentences, candidate) in enumerate(zip(references, candidates, strict=True)):
        if not sentences:
            raise InputError(f"image row {row} has no references: every image needs at least one")
        words = candidate.split(" ")
        places: dict[str, int] = {}  # of each word: the set of its places in the candidate, as bits
        for place, word in enumerate(words):
            places[word] = places.get(word, 0) | 1 << place
        precision = recall = 0.0
        for sentence in sentences:
            others = sentence.split(" ")
            common = _common(places, len(words), others)
            precision, recall = max(precision, common / len(words)), max(recall, common / len(others))
        if precision and recall:
            scores[row] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


def _common(places: dict[str, int], length: int, others: list[str]) -> int:
    """Length of the longest common subsequence, a row of the usual table at a time: bit i of `row` is 0 where the table's row
    grows from place i to i + 1 (Hyyrö 2004)."""
    row = (1 << length) - 1
    for word in others:
        found = row & places.get(word, 0)
        row = (row + found) | (row - found)
    return length - (row & ((1 << length) - 1)).bit_count()
