"""Stand-ins for weights: official layouts, sound values, tokenizers of the right sizes; a private cache of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from datamodules.errors import InputError
from datamodules.inputs import TextInput
from datamodules.loading.tokens import Tokenizer
from datamodules.standin.words import words
from lightning_modules.checkpoints import beit3, uniter
from lightning_modules.checkpoints.standin import hub, official
from lightning_modules.checkpoints.standin.hub import hub_names, place, write_hub_model
from lightning_modules.checkpoints.standin.official import NAMES, official_bytes, write_official
from lightning_modules.checkpoints.standin.values import fill_random, random_module
from lightning_modules.checkpoints.standin.vocabularies import Vocabulary, write_sentencepiece, write_tokenizer
from lightning_modules.checkpoints.weights import read_weights
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.uniter import UniterRetrieval

SMALL = {"width": 16, "num_layers": 2, "num_heads": 2, "ffn_width": 32, "vocab_size": 50}
SIZES: dict[Vocabulary, int] = {
    "gpt2": 50_257, "neox": 50_277, "smollm2": 49_152, "opt": 50_265, "clip": 49_408, "bert_cased": 28_996,
    "bert_uncased": 30_522, "siglip": 32_000, "gemma": 256_000,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Official files of small networks."""
    monkeypatch.setattr(official, "_BASE", {**SMALL, "text_positions": 80})


def test_values_are_sane() -> None:
    module = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Linear(200, 300))
    random_module(module.to("meta"))
    state = module.state_dict()
    assert 0.019 < float(state["0.weight"].std()) < 0.021
    assert not torch.equal(state["0.weight"].view(-1)[:1000], state["2.weight"].view(-1)[:1000])
    assert abs(float(state["1.weight"].mean()) - 1) < 0.01
    assert abs(float(state["1.running_var"].mean()) - 1) < 0.01
    assert abs(float(state["0.bias"].mean())) < 0.01
    assert state["1.num_batches_tracked"] == 0
    scalars = {"logit_scale": torch.empty(()), "logit_bias": torch.empty(1)}
    fill_random(scalars)
    assert (round(float(scalars["logit_scale"]), 3), float(scalars["logit_bias"])) == (2.659, -10)


def test_beit3s_file_fills_the_network(small: None, tmp_path: Path) -> None:
    file = tmp_path / "beit3_base_itc_patch16_224.pth"
    write_official(file)
    network = BEiT3Retrieval(224, text_positions=80, weights=str(file), **SMALL)
    network.encoder.to_empty(device="cpu")
    account = beit3.load_official(network, file)
    assert (account.fresh, account.unexpected, account.interpolated) == ((), (), None)
    assert torch.load(file, weights_only=True)["stand_in"] is True
    assert {tensor.dtype for tensor in read_weights(file).values()} == {torch.float32}
    before = file.stat().st_mtime_ns
    write_official(file)
    assert file.stat().st_mtime_ns == before
    write_official(half := tmp_path / "beit3_base_patch16_384_coco_retrieval.pth", half=True)
    assert {tensor.dtype for tensor in read_weights(half).values()} == {torch.float16}
    assert len(read_weights(half)["beit3.encoder.embed_positions.A.weight"]) == 3 + 24**2


def test_uniters_file_is_of_pretraining(small: None, tmp_path: Path) -> None:
    write_official(file := tmp_path / "uniter-base.pt")
    network = UniterRetrieval(text_positions=80, **SMALL)
    left = uniter.load_official(network, file)
    assert "feat_regress.net.0.weight" in left
    assert torch.equal(network.rank.weight[0], network.itm.weight[1])
    assert read_weights(file)["itm_output.weight"].dtype == torch.float16


def test_sizes_are_the_published_ones() -> None:
    assert official_bytes("beit3_base_itc_patch16_224.pth") == 4 * 222_167_041
    assert official_bytes("beit3_large_itc_patch16_224.pth") == 4 * (675_188_737 - 1024 * (24**2 - 14**2))
    assert official_bytes("uniter-base.pt") == 2 * (112_938_887 + 769)
    counts = {
        "gpt2": 124_439_808, "gpt2-large": 774_030_080, "openai/clip-vit-base-patch32": 151_277_313,
        "openai/clip-vit-large-patch14-336": 427_944_193, "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    }  # fmt: skip
    assert {name: hub.hub_bytes(name) // 4 for name in counts} == counts


def test_there_is_no_other_official_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vit\.pth is no official file .* uniter-base\.pt"):
        write_official(tmp_path / "vit.pth")
    assert "beit3.spm" in NAMES


@pytest.mark.parametrize("kind", ["gpt2", "neox", "opt", "clip", "bert_cased", "bert_uncased", "siglip"])
def test_tokenizers_have_the_published_sizes(kind: Vocabulary, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, kind, 40)
    tokenizer = Tokenizer(TextInput(str(tmp_path), 40))
    assert tokenizer.vocabulary_size == SIZES[kind]
    text = " ".join(words(300)[200:210])
    (ids,) = tokenizer.ids([f"zu {text}"])  # the first word of byte pairs has no space before it
    assert len(ids) in (11, 12)
    assert tokenizer._tokenizer.model_max_length == 40
    unknown = tokenizer._tokenizer.unk_token_id
    assert unknown is None or unknown not in ids


def test_beit3s_sentencepiece_file(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "beit3.spm")
    tokenizer = Tokenizer(TextInput(str(tmp_path / "beit3.spm"), 40))
    assert tokenizer.vocabulary_size == 64_002
    assert len(tokenizer.ids([" ".join(words(3000)[-5:])])[0]) == 5
    with pytest.raises(InputError, match="at least"):
        write_sentencepiece(tmp_path / "few.spm", 10)


def test_a_recipes_own_name_loads_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50_257}
    entry = hub._Entry("GPT2Model", "gpt2", sizes)
    monkeypatch.setattr(hub, "_table", lambda: {"gpt2": entry})
    write_hub_model(tmp_path / "hub", "gpt2")
    from huggingface_hub import constants
    from transformers.utils import hub as library

    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache := str(tmp_path / "hub" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("TRANSFORMERS_CACHE", "HF_HUB_CACHE"):
        monkeypatch.setattr(library.constants if name == "HF_HUB_CACHE" else library, name, cache, raising=False)
    network = LanguageModel(name="gpt2")
    state: dict[str, Any] = network.model.state_dict()
    assert torch.equal(state["transformer.wte.weight"], state["lm_head.weight"])
    assert 0.015 < float(state["transformer.h.1.mlp.c_fc.weight"].std()) < 0.025
    assert (place(tmp_path / "hub", "gpt2") / "STAND-IN").exists()
    assert (tmp_path / "hub" / "STAND-IN").exists()
    with pytest.raises(InputError, match=r"there is no stand-in for gpt3; .*hub\.yaml has gpt2"):
        write_hub_model(tmp_path / "hub", "gpt3")


def test_the_table_of_the_hub_is_sound() -> None:
    assert len(hub_names()) == 20
    assert all(hub._table()[name].tokenizer in SIZES for name in hub_names())
