"""Weights files of language models are taken strictly."""

from __future__ import annotations

import pytest
import torch
from tiny_captioner import END, FAMILIES, VOCABULARY
from torch import nn

from datamodules.errors import InputError
from lightning_modules.checkpoints.language_model import load_language_weights
from lightning_modules.networks.language_model import LanguageModel

GPT2 = {**FAMILIES["gpt2"], "vocab_size": VOCABULARY, "bos_token_id": END, "eos_token_id": END}


def test_weights_are_strict_but_for_tied_heads_and_old_buffers() -> None:
    model = LanguageModel(config=GPT2, max_tokens=12).model
    state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for broken, message in (
        ({k: v for k, v in state.items() if k != "transformer.wpe.weight"}, "missing: transformer.wpe.weight"),
        ({**state, "more": torch.zeros(1)}, "left over: more"),
        ({**state, "transformer.ln_f.bias": torch.zeros(3)}, r"transformer.ln_f.bias \[3\] instead of \[16\]"),
    ):
        with pytest.raises(InputError, match=message):
            load_language_weights(model, broken, "the file")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    load_language_weights(model, {**state, "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)}, "the file")
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items() if name in state)
    assert torch.equal(model.lm_head.weight, state["transformer.wte.weight"])
    untied = LanguageModel(config={**GPT2, "tie_word_embeddings": False}, max_tokens=12).model
    assert isinstance(untied.lm_head, nn.Linear)
    with pytest.raises(InputError, match=r"missing: lm_head\.weight"):
        load_language_weights(untied, state, "the file")
