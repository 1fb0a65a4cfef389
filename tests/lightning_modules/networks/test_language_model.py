"""Language models by folder; what captioners do with them is in test_networks_captioner.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from datamodules.errors import InputError
from lightning_modules.networks.language_model import LanguageModel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=48, vocab_size=20, bos_token_id=1, eos_token_id=2)
    )
    model.half().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_in_half_precision_becomes_fp32(folder: Path) -> None:
    found = LanguageModel(name=str(folder)).model.state_dict()
    stored = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float16).state_dict()
    assert found.keys() == stored.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, stored[name].float(), rtol=0, atol=0, msg=name)


def test_on_the_meta_device_weights_stay_unread(folder: Path) -> None:
    """`crosslight params` counts models that are named."""
    whole = LanguageModel(name=str(folder))
    (folder / "model.safetensors").unlink()
    with torch.device("meta"):
        counted = LanguageModel(name=str(folder))
    assert all(parameter.is_meta for parameter in counted.parameters())
    assert {name: tensor.shape for name, tensor in counted.named_parameters()} == {
        name: tensor.shape for name, tensor in whole.named_parameters()
    }
    assert (counted.bos, counted.eos, counted.width) == (1, 2, 8)
    with pytest.raises(InputError, match="no usable causal language model"):
        LanguageModel(name=str(folder))


def test_gpt2s_activation_is_one_kernel_of_the_same_function() -> None:
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 9, "bos_token_id": 8, "eos_token_id": 8}
    language = LanguageModel(config={"model_type": "gpt2", **sizes}, max_tokens=4)
    plain = GPT2LMHeadModel(language.model.config).eval()
    plain.load_state_dict(language.model.state_dict())
    assert {type(block.mlp.act) for block in plain.transformer.h} != {torch.nn.GELU}
    assert {type(block.mlp.act) for block in language.model.transformer.h} == {torch.nn.GELU}
    ids = torch.tensor([[8, 1, 2, 3]])
    torch.testing.assert_close(language.model.eval()(ids).logits, plain(ids).logits, atol=1e-6, rtol=1e-5)
