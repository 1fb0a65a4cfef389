"""ROUGE-L's longest common subsequences; its scores are compared in test_evaluation.py."""

from __future__ import annotations

import random

import pytest
from caption_files import longest_common

from lightning_modules.metrics.captions.rouge_l import rouge_l


def test_longest_common_subsequence_of_repeated_words() -> None:
    draw = random.Random(0)
    for _ in range(200):
        a, b = (draw.choices("abc", k=draw.randint(1, 70)) for _ in range(2))
        (score,) = rouge_l([[" ".join(b)]], [" ".join(a)])
        common = longest_common(a, b)
        p, r = common / len(a), common / len(b)
        assert score == pytest.approx(2.44 * p * r / (r + 1.44 * p) if common else 0.0)
