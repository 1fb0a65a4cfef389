"""A sentencepiece model of BEiT-3's kind with some dozen pieces."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import sentencepiece
from tiny_data import WORDS, caption

OTHERS = ["Two young, White males are outside.", "A child pets a yak!", "naïve café", "A meal in bright colors is on trays."]


def train_spm(path: Path, **options: Any) -> Path:
    """Train on the captions of the tiny data sets and write the model to `path`; `options` are sentencepiece's."""
    corpus = [*WORDS, *(caption(seed) for seed in range(60)), *OTHERS]
    model = io.BytesIO()
    chosen = {"model_type": "unigram", "vocab_size": 120, "hard_vocab_limit": False, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=model, **chosen)
    path.write_bytes(model.getvalue())
    return path
