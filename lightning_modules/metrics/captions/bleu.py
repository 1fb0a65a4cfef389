"""BLEU-1..4 (Papineni et al., ACL 2002) as coco-caption's `bleu_scorer.py` counts it: n-grams clipped by the reference that has
most of them, brevity against the reference of the closest length (of two as close, the shorter), over the whole set.

Per-image values are smoothed there by tiny constants only, so an image without a common 4-gram has a BLEU-4 of about 1e-12.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_modules.metrics.captions.caption_metric import CaptionMetric, Captions, MetricScores
from lightning_modules.metrics.captions.ngrams import ORDERS, Candidates, ReferenceNgrams

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# The reference's smoothing: nothing divides by zero, and nothing found stays (nearly) 0.
_SMALL, _TINY = 1e-9, 1e-15


class BLEU(CaptionMetric):
    """BLEU-1..4, keys bleu_1 to bleu_4. The score of a set is not the mean of its images'."""

    name = "bleu"

    def columns(self) -> dict[str, str]:
        return {"bleu_4": "B@4"}

    def score(self, captions: Captions) -> MetricScores:
        counts = BLEUCounts(self.references.ngrams, captions.matched)
        values: dict[str, float] = {}
        for prefix, rows in (("", None), *((f"{domain}/", rows) for domain, rows in self.references.rows_of.items())):
            values |= {f"{prefix}bleu_{order}": float(value) for order, value in enumerate(counts.corpus(rows), 1)}
        per_image = {f"bleu_{order}": column for order, column in enumerate(counts.per_image().T, 1)}
        bare = np.flatnonzero(~counts.guessed_IN.any(0)) + 1  # orders of which no caption has an n-gram
        remark = f"no caption has {bare[0]} words: from bleu_{bare[0]} on, only smoothing is left" if len(bare) else ""
        return MetricScores(values, per_image, remark)


class BLEUCounts:
    """What BLEU is made of, image by image: `correct_IN` and `guessed_IN` n-grams of orders 1..4, `lengths_I` of the candidates
    and `closest_I` of the references that brevity is measured against.

    Args:
        references: The references of the images.
        candidates: What `references.match` gives.
    """

    def __init__(self, references: ReferenceNgrams, candidates: Candidates) -> None:
        images = references.images
        correct = []
        for entries, match in zip(references.orders, candidates.orders, strict=True):
            found = match.candidates
            most = np.zeros(len(found.count_E), np.int64)
            np.maximum.at(most, match.place_E[match.hit_E], entries.count_E[match.hit_E])
            clipped = np.minimum(most, found.count_E)
            correct.append(np.bincount(found.row_E, clipped, images).astype(np.int64))
        self.correct_IN: Integers = np.stack(correct, 1)
        self.lengths_I: Integers = candidates.lengths_I
        self.guessed_IN: Integers = np.maximum(0, self.lengths_I[:, None] - np.arange(ORDERS))
        distance_S = np.abs(references.lengths_S - self.lengths_I[references.image_S])
        # By image, then distance, then length; the first of each image.
        order_S = np.lexsort((references.lengths_S, distance_S, references.image_S))
        first_I = np.cumsum(references.references_I) - references.references_I
        self.closest_I: Integers = references.lengths_S[order_S][first_I]

    def corpus(self, rows: Integers | None = None) -> Floats:
        """BLEU-1..4 [4] of all images, or of those of `rows`, between 0 and 1."""
        chosen = slice(None) if rows is None else rows
        return _bleu(
            self.correct_IN[chosen].sum(0),
            self.guessed_IN[chosen].sum(0),
            self.lengths_I[chosen].sum(),
            self.closest_I[chosen].sum(),
        )

    def per_image(self) -> Floats:
        """BLEU-1..4 [I, 4] of each image alone."""
        return _bleu(self.correct_IN, self.guessed_IN, self.lengths_I, self.closest_I)


def _bleu(correct: Integers, guessed: Integers, length: Integers, closest: Integers) -> Floats:
    """Orders are the last dimension of the first two."""
    precision = np.cumprod((correct + _TINY) / (guessed + _SMALL), -1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (length + _TINY) / (closest + _SMALL)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))[..., None]
