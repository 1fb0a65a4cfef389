"""Somebody's own caption metric: the part of a caption's words that some reference has. Nothing of ours names it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_modules.metrics.captions.caption_metric import CaptionMetric


class WordPrecision(CaptionMetric):
    name = "word_precision"
    heading = "words"

    def score_images(self, references: Sequence[Sequence[str]], captions: Sequence[str]) -> list[float]:
        return [_precision(own, caption.split()) for own, caption in zip(references, captions, strict=True)]


def _precision(references: Sequence[str], words: Sequence[str]) -> float:
    known = {word for sentence in references for word in sentence.split()}
    return sum(word in known for word in words) / len(words) if words else 0.0
