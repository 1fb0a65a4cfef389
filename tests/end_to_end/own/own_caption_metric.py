"""Somebody's own caption metric: how near a caption comes to the length of some reference, in words. Nothing of ours names it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_modules.metrics.captions.caption_metric import CaptionMetric


class LengthMatch(CaptionMetric):
    name = "length_match"
    heading = "length"

    def score_images(self, references: Sequence[Sequence[str]], captions: Sequence[str]) -> list[float]:
        return [
            max(_ratio(len(sentence.split()), len(caption.split())) for sentence in own)
            for own, caption in zip(references, captions, strict=True)
        ]


def _ratio(one: int, other: int) -> float:
    return min(one, other) / max(one, other, 1)
