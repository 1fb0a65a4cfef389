"""A tiny data set, a word tokenizer, and what a network that uses them wants."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from tiny_data import WORDS, write_flickr8k

from datamodules.inputs import ImageInput, Inputs, TextInput


@pytest.fixture
def flickr8k_root(tmp_path: Path) -> Path:
    """13 + 5 + 3 images with 1 to 5 captions each."""
    return write_flickr8k(tmp_path / "flickr8k")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level tokenizer in Hugging Face's layout: [pad] 0, [unk] 1, [cls] 2, [sep] 3, then WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[pad]", "[unk]", "[cls]", "[sep]"]
    vocabulary = {word: row for row, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[cls] $A [sep]", special_tokens=[("[cls]", 2), ("[sep]", 3)])
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[pad]", unk_token="[unk]", cls_token="[cls]", sep_token="[sep]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def inputs(tokenizer_folder: Path) -> Inputs:
    """16 px squashed images and captions of at most 8 tokens."""
    half = (0.5, 0.5, 0.5)
    return Inputs(ImageInput(16, half, half, resize="squash"), TextInput(str(tokenizer_folder), max_tokens=8))
