"""The tokenizer without Java gives the PTB tokenizer's recorded words, whatever characters a caption has."""

from __future__ import annotations

import pytest
from caption_files import recorded

from lightning_modules.metrics.captions.evaluation import CaptionScorer
from lightning_modules.metrics.captions.tokenizer import simple


def test_words_of_captions_with_odd_characters_are_those_of_ptb() -> None:
    rows = recorded("ptb_characters")["rows"]
    assert len(rows) > 80
    assert [(raw, simple([raw])[0]) for raw, _ in rows] == [(raw, tokens) for raw, tokens in rows]


@pytest.mark.parametrize("extra", [" \U0001f6b2", "\u200b", "\ufeff", "\u00ad", "\ufe0f", "\u2060", "\ue000", "\ud83d"])
def test_characters_that_ptb_drops_cost_nothing(extra: str) -> None:
    captions = ["a red ball on a table", "two dogs run over grass"]
    scorer = CaptionScorer([[caption] for caption in captions], ("bleu", "cider", "rouge_l"), "simple")
    assert scorer.score([caption + extra for caption in captions]).values == scorer.score(captions).values
