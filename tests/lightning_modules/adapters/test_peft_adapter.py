"""Methods of peft by name: what is refused and why, what is merged, and that nothing of the backbone is touched.

DoRA, (IA)3 and VeRA go through the table of `test_contract.py`; here are the others, on one host.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from tiny_captioner import captioner, images, texts
from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.combined import Combined
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.adapters.linear_layers import LinearLayer
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.peft_adapter import PEFTAdapter
from lightning_modules.adapters.peft_layers import require_repeatable
from lightning_modules.adapters.tuning import set_mode, set_tuning
from lightning_modules.checkpoints.trainable import trainable_names
from lightning_modules.optimization import Optimization, parameter_groups

ROWS = torch.tensor([0, 0, 1])
# method -> options that a width of 16 allows, and whether it begins as the backbone
OTHERS: dict[str, tuple[dict[str, Any], bool]] = {
    "RSLoRA": ({"r": 2}, True),
    "LoHa": ({"r": 2}, True),
    "LoKr": ({"r": 2}, True),
    "OFT": ({"oft_block_size": 4}, True),
    "HiRA": ({"r": 2}, True),
    "MiSS": ({"r": 4}, True),
    "PSOFT": ({"r": 4}, True),
    "RandLoRA": ({"r": 4}, True),
    "SHiRA": ({"r": 2}, True),
    "BEFT": ({}, True),
    "FourierFT": ({"n_frequency": 10}, False),  # its spectrum begins at random
    "C3A": ({"block_size": 4}, False),
}


def randomise(network: nn.Module, adapter: Adapter) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if adapter.owns(name):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def encode(network: Any, tiny: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([network.encode_images(tiny.images()), network.encode_texts(tiny.texts())])


@pytest.mark.parametrize("method", ["LoRA", "RSLoRA", "DoRA"])
def test_the_dial_turns_lora_as_our_own(tiny: Any, method: str) -> None:
    """At alpha of 0.25 a layer changes by a quarter; DoRA, whose weights do not just add up, is on the line."""
    network, adapter = tiny.network(), PEFTAdapter(method, {"r": 2, "lora_alpha": 3})
    adapter.inject(network)
    start = {name: value.clone() for name, value in network.state_dict().items() if adapter.owns(name)}
    randomise(network, adapter)
    trained = {name: value.clone() for name, value in network.state_dict().items() if adapter.owns(name)}
    layer, x = network.get_submodule("image.model.blocks.0.mlp.fc1"), torch.randn(3, 16)
    outputs = []
    for alpha in (0.0, 0.25, 1.0):
        network.load_state_dict(adapter.scaled(start, trained, alpha), strict=False)
        with torch.no_grad():
            outputs.append(layer(x))
    before, between, after = outputs
    assert torch.equal(before, layer.get_base_layer()(x))
    if method == "DoRA":
        halfway = {name: torch.lerp(start[name], trained[name], 0.25) for name in trained}
        torch.testing.assert_close(adapter.scaled(start, trained, 0.25), halfway)
    else:
        torch.testing.assert_close(between - before, 0.25 * (after - before))


def logits(network: Any) -> Tensor:
    with torch.no_grad():
        return network.logits(network.encode_images(images(2)), texts([0, 0, 1]), ROWS)


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_are_put_in_loaded_and_merged(tiny: Any, method: str) -> None:
    options, identity = OTHERS[method]
    network, adapter = tiny.network(), PEFTAdapter(method, options)
    before, keys = encode(network, tiny), list(network.state_dict())
    modules = [(name, type(module)) for name, module in network.named_modules()]
    adapter.inject(network)
    assert adapter.identity_at_start is identity is torch.equal(encode(network, tiny), before)
    assert [key for key in network.state_dict() if not adapter.owns(key)] == keys
    trained = {key for key in network.state_dict() if adapter.owns(key)}
    assert trained
    randomise(network, adapter)
    after = encode(network, tiny)
    assert (after - before).abs().max() > 1e-3

    twin, again = tiny.network(), PEFTAdapter(**adapter.describe()["init_args"])
    torch.manual_seed(9)  # nothing of it is drawn otherwise than its trained part
    again.inject(twin)
    twin.load_state_dict({key: value for key, value in network.state_dict().items() if key in trained}, strict=False)
    assert torch.equal(encode(twin, tiny), after)

    assert adapter.merge(network) is None
    torch.testing.assert_close(encode(network, tiny), after, atol=1e-5, rtol=0)
    assert list(network.state_dict()) == keys
    assert [(name, type(module)) for name, module in network.named_modules()] == modules
    with pytest.raises(InputError, match=f"has no {method} in it"):
        adapter.merge(network)


DROPPING = {
    "DoRA": {"r": 2, "lora_dropout": 0.5},
    "LoHa": {"r": 2, "module_dropout": 0.5},
    "LoKr": {"r": 2, "rank_dropout": 0.5},
}


@pytest.mark.parametrize("method", DROPPING)
def test_dropout_of_a_method_works_in_frozen_layers(tiny: Any, method: str) -> None:
    """peft's wrappers ask themselves whether they train; the layers that they are around stay in eval mode."""
    network, adapter = tiny.network(), PEFTAdapter(method, DROPPING[method], targets=["attn.qkv"], towers="image")
    adapter.inject(network)
    randomise(network, adapter)
    set_tuning(network, adapter, "adapter", "none")
    set_mode(network, True, adapter)
    wrapped = {name: module for name, module in network.named_modules() if hasattr(module, "base_layer")}
    assert all(module.training and not module.base_layer.training for module in wrapped.values())
    assert not any(network.get_submodule(name.rpartition(".")[0]).training for name in wrapped)
    torch.manual_seed(3)
    first, *others = [encode(network, tiny) for _ in range(8)]
    assert not all(torch.equal(first, other) for other in others)
    set_mode(network, False, adapter)
    assert torch.equal(encode(network, tiny), encode(network, tiny))


def test_weight_decay_leaves_factors_at_1(tiny: Any) -> None:
    """(IA)3's are matrices by their shape alone: decay would switch off what they scale."""
    network, adapter = tiny.network(), Combined([LoRAAdapter(1, towers="text"), PEFTAdapter("ia3", towers="image")])
    adapter.inject(network)
    set_tuning(network, adapter, "adapter", "none")
    groups = parameter_groups(network, Optimization(weight_decay=0.3), adapter.owns, None, adapter.spares)
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    found = {name: decays[id(value)] for name, value in network.named_parameters() if id(value) in decays}
    assert {decay for name, decay in found.items() if "ia3_l" in name} == {0.0}
    assert {decay for name, decay in found.items() if "lora_" in name} == {0.3}


def test_a_wrapped_layer_that_trains_is_kept(tiny: Any) -> None:
    """A language model that is tuned beside ClipCap with LoRA in it: its own weights are in the checkpoint, too."""
    network, adapter = tiny.network(), LoRAAdapter(1)
    everything = set(network.state_dict())
    adapter.inject(network)
    network.requires_grad_(True)
    assert {name for name in trainable_names(network) if not adapter.owns(name)} == everything


def test_ia3_scales_what_its_paper_scales(tiny: Any) -> None:
    """Outputs of attention, inputs of the FFN; which layers' inputs can be said."""
    network = tiny.network()
    PEFTAdapter("ia3", {"feedforward_modules": ["fc2"]}, targets=["attn.qkv", "mlp.fc1", "mlp.fc2"], towers="image").inject(
        network
    )
    found = {
        name.split(".blocks.0.")[1]: tuple(p.shape)
        for name, p in network.named_parameters()
        if "blocks.0" in name and "ia3" in name
    }
    assert found == {
        "attn.qkv.ia3_l.default": (48, 1),
        "mlp.fc1.ia3_l.default": (64, 1),
        "mlp.fc2.ia3_l.default": (1, 64),
    }


def test_lora_by_name_is_the_adapter_of_that_name(tiny: Any) -> None:
    by_name, own = tiny.network(), tiny.network()
    PEFTAdapter("peft.LoraConfig", {"r": 3, "lora_alpha": 6}, targets="attention").inject(by_name)
    LoRAAdapter(rank=3, alpha=6, targets="attention").inject(own)
    assert list(by_name.state_dict()) == list(own.state_dict())
    by_name.load_state_dict(own.state_dict())
    randomise(by_name, LoRAAdapter(rank=3))
    randomise(own, LoRAAdapter(rank=3))
    assert torch.equal(encode(by_name, tiny), encode(own, tiny))


@pytest.mark.parametrize(("method", "options", "words"), [
    ("DoRRA", {}, ["method DoRRA: peft has none of this name", "Is DORA meant? There are", "IA3", "VERA"]),
    ("prefix_tuning", {}, ["peft has none of this name that changes layers"]),
    ("LN_TUNING", {}, ["it tunes norms"]),
    ("LoHa", {"rank": 2}, ["LoHaConfig of peft has no option 'rank'; is ", "rank_dropout", "it has alpha", " r, "]),
    ("IA3", {"zebra": 2}, ["no option 'zebra'; it has feedforward_modules, init_ia3_weights"]),
    ("LoRA", {"target_modules": ["qkv"]}, ["leave out the option target_modules", "targets"]),
    ("LoRA", {"bias": "all"}, ["leave out the option bias", "stay as they are"]),
    ("LoRA", {"task_type": "CAUSAL_LM"}, ["leave out the option task_type"]),
    ("DoRA", {"use_dora": False}, ["DoRA is LORA with use_dora True, and options say False"]),
])  # fmt: skip
def test_options_are_peft_s_own_and_a_mistake_names_the_nearest(method: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        PEFTAdapter(method, options)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("method", "options", "words"), [
    ("LoRA", {"r": -1}, ["peft refuses", "positive integer"]),
    ("LoRA", {"init_lora_weights": "pissa"}, ["changes weights of the backbone when it is put in"]),
    ("LoHa", {"r": 2}, ["peft refuses", "Conv1D"]),  # GPT-2's layers
    ("AdaLoRA", {"total_step": 10}, ["parts of its own that do not train", "ranknum"]),
    ("Poly", {}, ["peft refuses"]),
])  # fmt: skip
def test_what_peft_or_our_files_cannot_do_is_refused_before_training(
    method: str, options: dict[str, Any], words: list[str]
) -> None:
    network = captioner()
    ITuning(bottleneck=4, init_std=0.5).inject(network)
    before, keys = logits(network), list(network.state_dict())
    with pytest.raises(InputError) as error:
        PEFTAdapter(method, options, towers="text").inject(network)
    assert all(word in str(error.value) for word in words), str(error.value)
    if "changes weights" not in words[0]:
        assert list(network.state_dict()) == keys
        assert torch.equal(logits(network), before)  # I-Tuning's hooks too


@pytest.mark.parametrize(("method", "options", "words"), [
    ("IA3", {"feedforward_modules": ["fc9"]}, "feedforward_modules names fc9, and no layer .* there are dense, fc1, fc2"),
    ("IA3", {"feedforward_modules": "fc9"}, "feedforward_modules names fc9"),
    ("LoRA", {"r": 2, "rank_pattern": {"fc1": 3, "up": 4}}, "rank_pattern names up, and no layer"),
    ("HiRA", {"r": 2, "rank_pattern": {"c_attn": 4}}, "rank_pattern names c_attn"),
])  # fmt: skip
def test_an_option_that_names_no_layer_is_refused(tiny: Any, method: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PEFTAdapter(method, options).inject(tiny.network())


def test_one_name_is_a_name(tiny: Any) -> None:
    network = tiny.network()
    PEFTAdapter("IA3", {"feedforward_modules": "fc2"}, towers="image").inject(network)
    assert {n.rpartition(".")[2] for n, m in network.named_modules() if getattr(m, "is_feedforward", False)} == {"fc2"}


def test_a_method_that_nothing_can_load_again_is_refused() -> None:
    from peft import VeraConfig

    keys = itertools.count()
    layer = LinearLayer("fc", nn.Linear(8, 8))
    with pytest.raises(InputError, match="VeRA: it draws random numbers that no checkpoint keeps"):
        require_repeatable(lambda _: VeraConfig(r=2, projection_prng_key=next(keys), save_projection=False), layer, "VeRA")
    state = torch.get_rng_state()
    require_repeatable(lambda _: VeraConfig(r=2, save_projection=False), layer, "VeRA")
    assert torch.equal(torch.get_rng_state(), state)


def test_what_hooks_a_layer_is_around_the_method() -> None:
    """I-Tuning reads what the FFN reads and adds to what it gives, whatever comes first: DoRA and (IA)3 do not scale its part."""
    for method, options in (("IA3", {}), ("DoRA", {"r": 2})):
        outputs, merged = [], []
        for first in (0, 1):
            network = captioner()
            parts: list[Adapter] = [ITuning(bottleneck=4, init_std=0.5), PEFTAdapter(method, options, towers="text")]
            torch.manual_seed(3)
            for part in parts[:: 1 if first else -1]:
                part.inject(network)
            both = Combined(parts)
            state = {name: p for name, p in network.named_parameters() if both.owns(name)}
            for name in sorted(state):
                state[name].data.copy_(torch.randn(state[name].shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
            outputs.append(logits(network))
            left = both.merge(network)
            assert left is parts[0]
            merged.append(logits(network))
        assert torch.equal(*outputs), method
        torch.testing.assert_close(merged[0], outputs[0], atol=1e-4, rtol=1e-4)
        assert torch.equal(*merged), method


def test_a_second_method_goes_where_the_first_is_not(tiny: Any) -> None:
    network, both = tiny.network(), Combined([LoRAAdapter(rank=2, towers="image"), PEFTAdapter("IA3", towers="text")])
    both.inject(network)
    with pytest.raises(InputError, match=r"image.model.blocks.0.attn.qkv of this network has LoRA .* already; inject only once"):
        PEFTAdapter("VeRA", {"r": 2}).inject(network)
    randomise(network, both)
    after = encode(network, tiny)
    assert both.merge(network) is None
    torch.testing.assert_close(encode(network, tiny), after, atol=1e-5, rtol=0)
    assert not hasattr(network, "peft_config")


def test_around_frozen_layers_in_bf16_what_learns_is_fp32_and_merging_rounds_nothing(tiny: Any) -> None:
    for adapter in (LoRAAdapter(rank=2), PEFTAdapter("VeRA", {"r": 2})):
        network = tiny.network()
        for block in network.image.blocks:
            block.to(torch.bfloat16)
        before = network.state_dict()["image.model.blocks.0.attn.qkv.weight"].float()
        adapter.inject(network)
        assert {p.dtype for name, p in network.named_parameters() if adapter.owns(name)} == {torch.float32}
        randomise(network, adapter)
        layer = network.get_submodule("image.model.blocks.0.attn.qkv")
        x = torch.linspace(-1, 1, 32).reshape(2, 16)
        assert layer(x.bfloat16()).dtype == torch.bfloat16
        delta = layer.get_delta_weight("default").float()
        adapter.merge(network)
        weight = network.state_dict()["image.model.blocks.0.attn.qkv.weight"]
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, before + delta, atol=1e-6, rtol=0)


def test_rank_0_is_no_adapter_and_what_changes_no_weights_is_not_merged(tiny: Any) -> None:
    network, adapter = tiny.network(), PEFTAdapter("DoRA", {"r": 0})
    keys = list(network.state_dict())
    adapter.inject(network)
    assert (adapter.off, adapter.identity_at_start, list(network.state_dict())) == (True, True, keys)
    assert not PEFTAdapter("OFT", {"r": 0, "oft_block_size": 4}).off  # there 0 says: by block size
    MultiWayAdapter().inject(network)
    with pytest.raises(InputError, match="MultiWayAdapter is no change of the network's weights"):
        MultiWayAdapter().merge(network)
    lily = PEFTAdapter("Lily", {"r": 2})
    lily.inject(network)
    with pytest.raises(InputError, match="cannot be folded into one weight"):
        lily.merge(network)


def test_counted_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = captioner()
        adapter = PEFTAdapter("VeRA", {"r": 3}, towers="text")
        adapter.inject(network)
    assert set_tuning(network, adapter, "adapter").adapter == 4 * (4 * 3 + 48 + 16 + 64 + 16)


def test_without_peft_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"IA3 needs peft.*pip install 'crosslight\[lora\]'"):
        PEFTAdapter("IA3")
