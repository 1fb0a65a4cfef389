"""LoRA: the formula, equal budgets, names, and what is refused. The contract itself is in test_adapters_contract.py."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from datamodules.errors import InputError
from lightning_modules.adapters.lora import LoRAAdapter, merge
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.networks.beit3 import BEiT3Retrieval

LARGE = {"width": 1024, "num_layers": 24, "num_heads": 16, "ffn_width": 4096}


def put_into(network: nn.Module, **options: Any) -> LoRAAdapter:
    adapter = LoRAAdapter(**options)
    adapter.inject(network)
    return adapter


def encode(network: Any, tiny: Any) -> torch.Tensor:
    return torch.cat([network.encode_images(tiny.images()), network.encode_texts(tiny.texts())])


@pytest.mark.parametrize(("sizes", "budget", "targets", "towers", "rank", "parameters"), [
    # sums of in + out features by hand: qkv 4 d, out 2 d, fc1 and fc2 5 d each, twice a layer
    ({}, 7_125_504, "all", "both", 24, 24 * 24 * 16 * 768),
    ({}, 7_125_504, "attention", "both", 64, 64 * 24 * 6 * 768),
    ({}, 7_125_504, "ffn", "both", 38, 38 * 24 * 10 * 768),
    ({}, 7_125_504, ["qkv"], "both", 96, 96 * 24 * 4 * 768),
    ({}, 3_562_752, "all", "image", 24, 24 * 12 * 16 * 768),
    (LARGE, 18_994_176, "all", "both", 24, 24 * 48 * 16 * 1024),
])  # fmt: skip
def test_the_largest_rank_within_a_budget(sizes, budget, targets, towers, rank, parameters):
    with torch.device("meta"):
        network = BEiT3Retrieval(**sizes)
        assert LoRAAdapter(budget=budget, targets=targets, towers=towers).size(network) == (rank, parameters)
        assert rank != 24 or parameters in (7_077_888, 3_538_944, 18_874_368)
        if targets == "all" and not sizes:
            adapter = put_into(network, budget=budget, towers=towers)
            assert sum(p.numel() for name, p in network.named_parameters() if adapter.owns(name)) == parameters
            assert not any("embed" in name or "head" in name for name, _ in network.named_parameters() if adapter.owns(name))


def test_a_layer_computes_the_formula(tiny):
    network = tiny.network()
    layer = network.image.blocks[1].attn.qkv
    adapter = put_into(network, rank=3, alpha=6)
    tiny.randomise(network, "lora_")
    state, at = network.state_dict(), "image.model.blocks.1.attn.qkv"
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    a, b = state[f"{at}.lora_A.default.weight"], state[f"{at}.lora_B.default.weight"]
    assert (a.shape, b.shape) == ((3, 16), (48, 3))
    expected = linear(x, layer.weight, layer.bias) + 6 / 3 * x @ a.T @ b.T
    torch.testing.assert_close(network.image.blocks[1].attn.qkv(x), expected)
    assert adapter.describe()["init_args"]["alpha"] == 6


def test_dropout_is_active_in_training_only(tiny):
    from lightning_modules.adapters.tuning import set_mode, set_tuning

    network = tiny.network()
    adapter = put_into(network, rank=2, dropout=0.5)
    tiny.randomise(network, "lora_")
    set_tuning(network, adapter, "adapter")
    set_mode(network, True, adapter)
    assert not torch.equal(encode(network, tiny), encode(network, tiny))
    set_mode(network, False, adapter)
    assert torch.equal(encode(network, tiny), encode(network, tiny))


def test_merged_weights_compute_the_same_and_leave_no_trace(tiny):
    network = tiny.network("clip", "bert")
    keys, modules = list(network.state_dict()), [(name, type(module)) for name, module in network.named_modules()]
    put_into(network, rank=2)
    tiny.randomise(network, "lora_")
    expected = encode(network, tiny)
    merge(network)
    torch.testing.assert_close(encode(network, tiny), expected, atol=1e-5, rtol=0)
    assert list(network.state_dict()) == keys
    assert [(name, type(module)) for name, module in network.named_modules()] == modules
    put_into(network, rank=2)  # as on any other network
    with pytest.raises(InputError, match="has no LoRA in it"):
        merge(tiny.network())


def test_strict_loading_speaks_of_the_layers_own_names(tiny):
    network, bare = tiny.network(seed=1), tiny.network(seed=2)
    put_into(network, rank=2)
    state = network.state_dict()
    assert not any("base_layer" in name for name in state)
    network.load_state_dict(state)  # strict, and its own
    result = network.load_state_dict(bare.state_dict(), strict=False)
    assert {name.split(".lora_")[1][0] for name in result.missing_keys} == {"A", "B"}
    assert result.unexpected_keys == []
    partial = {name: value for name, value in bare.state_dict().items() if not name.endswith("attn.qkv.weight")}
    missing = network.load_state_dict(partial, strict=False).missing_keys
    assert {"image.model.blocks.0.attn.qkv.weight", "image.model.blocks.1.attn.qkv.weight"} <= set(missing)
    assert not any("base_layer" in name for name in missing)


def test_compiled_and_autocast(tiny):
    torch._dynamo.reset()
    network = tiny.network(depth=1)
    put_into(network, rank=2)
    tiny.randomise(network, "lora_")
    expected = encode(network, tiny)
    with torch.autocast("cpu", torch.bfloat16):
        assert (encode(network, tiny) * expected).sum(1).min() > 0.98
    network.compile_encoders(backend="eager")
    torch.testing.assert_close(encode(network, tiny), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("options", "words"), [
    ({}, ["exactly one of rank (got None) and budget (got None)"]),
    ({"rank": 2, "budget": 100}, ["exactly one of rank (got 2) and budget (got 100)"]),
    ({"rank": -1}, ["rank must be 0 or more"]),
    ({"rank": 1, "dropout": 1.0}, ["dropout in [0, 1)"]),
    ({"rank": 1, "targets": []}, ["targets named"]),
    ({"budget": 10}, ["a budget of 10 parameters does not allow rank 1", "raise budget"]),
    ({"rank": 1, "targets": ["qkv", "fc9"]}, ["called 'fc9'", "dense, fc1, fc2"]),
])  # fmt: skip
def test_contradictions_are_input_errors(tiny, options, words):
    network = tiny.network()
    keys = list(network.state_dict())
    with pytest.raises(InputError) as error:
        put_into(network, **options)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert list(network.state_dict()) == keys


def test_other_networks_and_a_second_injection_are_refused(tiny):
    network = tiny.network()
    put_into(network, rank=1)
    with pytest.raises(InputError, match="inject only once"):
        put_into(network, rank=1)
    with pytest.raises(InputError, match="Sequential has no linear layer inside a block"):
        put_into(nn.Sequential(nn.Linear(2, 2)), rank=1)
    both = tiny.network()
    MultiWayAdapter().inject(both)
    put_into(both, rank=1)
    assert not any("multiway" in name and "lora" in name for name in both.state_dict())


def test_without_peft_the_message_names_the_extra(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"LoRA needs peft.*pip install 'crosslight\[lora\]'"):
        put_into(tiny.network(), rank=1)
    assert LoRAAdapter(rank=1).size(tiny.network())[1] > 0
