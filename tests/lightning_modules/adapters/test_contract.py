"""What every adapter promises on every host, in one table: a new method or host adds rows here.

Keys and counts are written out by hand for blocks of width 16 and FFN 64; every host has two blocks a tower, or two layers of
two experts.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.combined import Combined
from lightning_modules.adapters.linear_layers import WRAPPED
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.peft_adapter import PEFTAdapter
from lightning_modules.adapters.tuning import head_names, set_mode, set_tuning
from lightning_modules.checkpoints.adapter_export import export_adapter, load_adapter
from lightning_modules.checkpoints.fingerprint import backbone_fingerprint
from lightning_modules.checkpoints.init_from import short_fingerprint, start_from
from lightning_modules.checkpoints.trainable import load_trainable, trainable_state_dict
from lightning_modules.networks.beit3 import BEiT3Retrieval

W, F = 16, 64
KE = 2 * W * 64 + 64 + W
SUB_LN_AE = 2 * W * 128 + 128 + W + 2 * 128
WIDE_AE = 2 * W * F + F + W + 2 * F
TEXT_KE, TEXT_AE = KE + 2 * W + 1, 2 * W * 128 + 128 + W + 2 * W + 1  # LayerNorm and a learned scale

# (adapter, identity at start, parameters of a block, or of one expert of BEiT-3, where one AE may serve two)
ADAPTERS: dict[str, tuple[Any, bool, int | None]] = {
    "printed": (lambda: MultiWayAdapter(), True, KE + SUB_LN_AE),
    "released": (lambda: MultiWayAdapter("released"), False, KE + WIDE_AE),
    "text": (lambda: MultiWayAdapter("text"), True, TEXT_KE + TEXT_AE),
    "KE only": (lambda: MultiWayAdapter(alignment_enhancer=False, knowledge_extractor_mid=8), True, 2 * W * 8 + 8 + W),
    "AE only": (lambda: MultiWayAdapter(knowledge_extractor=False), True, SUB_LN_AE),
    "LoRA": (lambda: LoRAAdapter(rank=3), True, None),
    "LoRA attention": (lambda: LoRAAdapter(rank=2, alpha=4, targets="attention", dropout=0.1), True, None),
    "LoRA FFN": (lambda: LoRAAdapter(rank=2, targets="ffn"), True, None),
    "LoRA budget": (lambda: LoRAAdapter(budget=5000), True, None),
    "DoRA": (lambda: PEFTAdapter("DoRA", {"r": 2}), True, None),
    "IA3": (lambda: PEFTAdapter("IA3"), True, None),
    "VeRA": (lambda: PEFTAdapter("VeRA", {"r": 3, "vera_dropout": 0.1}), True, None),
    "printed + LoRA": (lambda: Combined([MultiWayAdapter(), LoRAAdapter(rank=3)]), True, None),
}
# method of peft -> what it calls its parts in a layer, and parameters of a layer with so many inputs and outputs
METHODS: dict[str, tuple[tuple[str, ...], Any]] = {
    "LoRA": (("lora_A.default.weight", "lora_B.default.weight"), lambda i, o, attention: 3 * (i + o)),
    "DoRA": (
        ("lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default.weight"),
        lambda i, o, attention: 2 * (i + o) + o,
    ),
    "IA3": (("ia3_l.default",), lambda i, o, attention: o if attention else i),
    "VeRA": (("vera_lambda_b.default", "vera_lambda_d.default"), lambda i, o, attention: 3 + o),
}
_SHARED = {"released": WIDE_AE, "text": TEXT_AE}  # in BEiT-3 one AE a layer there

_FFN = {"mlp.fc1": W + F, "mlp.fc2": F + W}
_BERT = {
    "attention": {f"attention.self.{x}": 2 * W for x in ("query", "key", "value")} | {"attention.output.dense": 2 * W},
    "ffn": {"intermediate.dense": W + F, "output.dense": F + W},
}
_VIT = {"attention": {f"attention.{x}_proj": 2 * W for x in "qkvo"}, "ffn": _FFN}
_CLIP = {"attention": {f"self_attn.{x}_proj": 2 * W for x in ("k", "v", "q", "out")}, "ffn": _FFN}
_TIMM = {"attention": {"attn.qkv": W + 3 * W, "attn.proj": 2 * W}, "ffn": _FFN}
_BEIT3: dict[str, dict[str, int]] = {
    "attention": {f"{side}.{x}": size for side in ("image", "text") for x, size in (("qkv", 4 * W), ("out", 2 * W))},
    "ffn": {f"{side}.{x}": W + F for side in ("image", "text") for x in ("fc1", "fc2")},
}
# host -> (prefix of the blocks, linear layers of a block: in + out features) for each list of blocks
HOSTS: dict[str, list[tuple[str, dict[str, dict[str, int]]]]] = {
    "beit3": [("encoder.layers", _BEIT3)],
    "timm_vit+bert": [("image.model.blocks", _TIMM), ("text.model.encoder.layer", _BERT)],
    "vit+roberta": [("image.model.layers", _VIT), ("text.model.encoder.layer", _BERT)],
    "clip+clip": [("image.model.encoder.layers", _CLIP), ("text.model.encoder.layers", _CLIP)],
    "dinov2+bert": [("image.model.encoder.layer", _VIT), ("text.model.encoder.layer", _BERT)],
}


def host(tiny: Any, name: str, seed: int = 0) -> Any:
    if name != "beit3":
        return tiny.network(*name.split("+"), seed=seed)
    torch.manual_seed(seed)
    network = BEiT3Retrieval(
        image_size=16,
        width=W,
        num_layers=2,
        num_heads=2,
        ffn_width=F,
        patch_size=8,
        vocab_size=40,
        text_positions=16,
        max_tokens=8,
    )
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return network.eval()


def encode(network: Any, tiny: Any) -> Tensor:
    return torch.cat([network.encode_images(tiny.images()), network.encode_texts(tiny.texts())])


def own(network: Any, adapter: Adapter) -> set[str]:
    return {name for name in network.state_dict() if adapter.owns(name)}


def randomise(network: Any, adapter: Adapter, seed: int = 5) -> None:
    """An adapter that does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if adapter.owns(name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def multiway_keys(name: str, host_name: str) -> set[str]:
    """Keys of a MultiWay-Adapter: a KE and an AE a block, or a modality of a BEiT-3 layer."""

    def leaves(modules: str) -> set[str]:
        return {f"{module}.{kind}" for module in modules.split() for kind in ("weight", "bias")}

    bottleneck = leaves("norm down up") | {"scale"} if name == "text" else leaves("down up")
    parts = {
        "knowledge_extractor": set() if name == "AE only" else bottleneck,
        "alignment_enhancer": {"KE only": set(), "text": bottleneck}.get(name, leaves("fc1 sub_norm fc2")),
    }
    keys = set()
    for prefix, _ in HOSTS[host_name]:
        for part, names in parts.items():
            places = ["."]
            if host_name == "beit3":
                places = [".shared."] if part == "alignment_enhancer" and name in _SHARED else [".image.", ".text."]
            keys |= {f"{prefix}.{i}.multiway.{part}{place}{leaf}" for i in range(2) for place in places for leaf in names}
    return keys


def lora_keys(name: str, host_name: str) -> tuple[set[str], int]:
    """Keys of LoRA, and in + out features of all its layers."""
    parts = {"LoRA attention": ("attention",), "LoRA FFN": ("ffn",)}.get(name, ("attention", "ffn"))
    linears = {
        f"{prefix}.{block}.{path}": size
        for prefix, kinds in HOSTS[host_name]
        for block in range(2)
        for part in parts
        for path, size in kinds[part].items()
    }
    return {f"{path}.lora_{x}.default.weight" for path in linears for x in "AB"}, sum(linears.values())


def method_keys(name: str, host_name: str, bare: Any) -> tuple[set[str], int]:
    """Keys of a method of peft in all linear layers, and its parameters."""
    leaves, count = METHODS[name]
    keys, parameters = set(), 0
    for prefix, kinds in HOSTS[host_name]:
        for block in range(2):
            for part, linears in kinds.items():
                for path in linears:
                    keys |= {f"{prefix}.{block}.{path}.{leaf}" for leaf in leaves}
                    outputs, inputs = bare.get_submodule(f"{prefix}.{block}.{path}").weight.shape
                    parameters += count(inputs, outputs, part == "attention")
    return keys, parameters


@pytest.mark.parametrize("host_name", HOSTS)
@pytest.mark.parametrize("name", ADAPTERS)
def test_contract_of_every_adapter_on_every_host(tiny: Any, name: str, host_name: str, tmp_path: Path) -> None:
    build, identity, each = ADAPTERS[name]
    network, adapter = host(tiny, host_name), build()
    assert isinstance(adapter, Adapter)
    assert not adapter.off
    before, base = encode(network, tiny), {key: value.clone() for key, value in network.state_dict().items()}
    fingerprint = backbone_fingerprint(network, set())
    adapter.inject(network)
    keys = own(network, adapter)

    # existing keys and values are untouched, in their order; the new keys are exactly the declared ones
    after = network.state_dict()
    assert [key for key in after if key not in keys] == list(base)
    assert all(torch.equal(after[key], value) for key, value in base.items())
    assert not any(adapter.owns(key) for key in base)
    if name.startswith("LoRA"):
        expected, features = lora_keys(name, host_name)
        assert keys == expected
        rank = {"LoRA": 3, "LoRA budget": 5000 // features}.get(name, 2)
        parameters = rank * features
        assert adapter.size(host(tiny, host_name)) == (rank, parameters)
        assert name != "LoRA budget" or (rank > 1 and parameters <= 5000 < parameters + features)
    elif name in METHODS:
        expected, parameters = method_keys(name, host_name, host(tiny, host_name))
        assert keys == expected
    elif name == "printed + LoRA":
        expected, parameters = method_keys("LoRA", host_name, host(tiny, host_name))
        assert keys == expected | multiway_keys("printed", host_name)
        parameters += 4 * (KE + SUB_LN_AE)
    else:
        assert keys == multiway_keys(name, host_name)
        parameters = 4 * each - (2 * _SHARED.get(name, 0) if host_name == "beit3" else 0)

    # the same at the start, bit by bit, or really not
    assert adapter.identity_at_start is identity
    assert torch.equal(encode(network, tiny), before) is identity

    # exactly these train, and each gets a gradient (zero starts hide some of them in the first step)
    counts = set_tuning(network, adapter, "adapter", train_heads="none")
    assert counts.trainable == counts.adapter == sum(after[key].numel() for key in keys) == parameters
    assert {key for key, p in network.named_parameters() if p.requires_grad} == keys
    randomise(network, adapter)
    adapted = encode(network, tiny)
    (adapted * torch.randn(adapted.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert {key for key, p in network.named_parameters() if p.grad is not None and p.grad.any()} == keys
    assert (adapted - before).abs().max() > 1e-3

    # the backbone's fingerprint is what it was without the adapter
    assert short_fingerprint(network) == {key: fingerprint[key] for key in ("architecture", "weights")}

    # modes: frozen parts stay in eval mode, the adapter's follow, and what peft has put around a layer
    set_mode(network, True, adapter)
    modes = {part: module.training for part, module in network.named_modules()}
    wrappers = {part for part, module in network.named_modules() if hasattr(module, WRAPPED)}
    assert all(training == (adapter.owns(part) or part in wrappers) for part, training in modes.items())
    set_mode(network, False, adapter)

    # save and load: deepcopy, an export into a bare and into an injected network, a checkpoint's trained part
    adapted = adapted.detach()
    assert torch.equal(encode(copy.deepcopy(network), tiny), adapted)
    folder = export_adapter(network, adapter, tmp_path / "export")
    for injected in (False, True):
        fresh = host(tiny, host_name)
        if injected:
            build().inject(fresh)
        assert load_adapter(fresh, folder) is not None
        assert torch.equal(encode(fresh, tiny), adapted)
    again, twin = host(tiny, host_name), build()
    twin.inject(again)
    set_tuning(again, twin, "adapter", train_heads="none")
    load_trainable(again, trainable_state_dict(network))
    assert torch.equal(encode(again, tiny), adapted)


@pytest.mark.parametrize("host_name", ["beit3", "timm_vit+bert"])
@pytest.mark.parametrize("name", ["printed", "LoRA"])
def test_a_full_checkpoint_goes_under_a_new_adapter(tiny: Any, name: str, host_name: str, tmp_path: Path) -> None:
    parent, network, adapter = host(tiny, host_name, seed=1), host(tiny, host_name, seed=2), ADAPTERS[name][0]()
    torch.save({"state_dict": {f"network.{key}": value for key, value in parent.state_dict().items()}}, tmp_path / "best.ckpt")
    adapter.inject(network)
    assert set(start_from(network, adapter, tmp_path / "best.ckpt")) == own(network, adapter)
    assert torch.equal(encode(network, tiny), encode(parent, tiny))
    assert network.loaded_heads == head_names(network)
    counts = set_tuning(network, adapter, "adapter")
    assert counts.trainable == counts.adapter


@pytest.mark.parametrize("adapter", [
    MultiWayAdapter(knowledge_extractor_mid=0, alignment_enhancer=False),
    MultiWayAdapter(knowledge_extractor_mid=0, alignment_enhancer_mid=0),
    MultiWayAdapter("released", knowledge_extractor=False, alignment_enhancer_mid=0), LoRAAdapter(rank=0),
])  # fmt: skip
@pytest.mark.parametrize("host_name", ["beit3", "timm_vit+bert"])
def test_size_0_is_no_adapter(tiny: Any, adapter: Any, host_name: str) -> None:
    network = host(tiny, host_name)
    before, keys = encode(network, tiny), list(network.state_dict())
    adapter.inject(network)
    assert adapter.off
    assert adapter.identity_at_start
    assert list(network.state_dict()) == keys
    assert torch.equal(encode(network, tiny), before)
    counts = set_tuning(network, adapter, "adapter")
    assert counts.trainable == counts.heads > 0  # heads that nobody brought
    network.loaded_heads = head_names(network)
    assert set_tuning(network, adapter, "adapter").trainable == 0
