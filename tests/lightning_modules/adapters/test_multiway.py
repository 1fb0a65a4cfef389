"""MultiWay-Adapter: the equations, the published counts, and what an injection may and may not change."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_captioner import FAMILIES, LAYERS, captioner
from torch import nn

from datamodules.errors import InputError
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.multiway import READINGS, AlignmentEnhancer, KnowledgeExtractor, MultiWayAdapter
from lightning_modules.adapters.tuning import count_parameters, set_mode, set_tuning

KE_KEYS = {
    "knowledge_extractor.down.weight",
    "knowledge_extractor.down.bias",
    "knowledge_extractor.up.weight",
    "knowledge_extractor.up.bias",
}
AE_KEYS = {
    "alignment_enhancer.fc1.weight",
    "alignment_enhancer.fc1.bias",
    "alignment_enhancer.fc2.weight",
    "alignment_enhancer.fc2.bias",
}
BOTTLENECK = {
    "alignment_enhancer.down.weight",
    "alignment_enhancer.down.bias",
    "alignment_enhancer.up.weight",
    "alignment_enhancer.up.bias",
}
SUB_LN = {"alignment_enhancer.sub_norm.weight", "alignment_enhancer.sub_norm.bias"}
IN_LN = {f"{part}.norm.{kind}" for part in ("knowledge_extractor", "alignment_enhancer") for kind in ("weight", "bias")}
SCALES = {"knowledge_extractor.scale", "alignment_enhancer.scale"}

# options -> keys of one block, identity at the start, parameters of one block of width 16 and FFN 64 by hand
TABLE: dict[str, tuple[dict[str, Any], set[str], bool, int]] = {
    "printed": ({}, KE_KEYS | AE_KEYS | SUB_LN, True, (2 * 16 * 64 + 80) + (2 * 16 * 128 + 144 + 256)),
    "released": ({"reading": "released"}, KE_KEYS | AE_KEYS | SUB_LN, False, (2 * 16 * 64 + 80) + (2 * 16 * 64 + 80 + 128)),
    "text": (
        {"reading": "text"}, KE_KEYS | BOTTLENECK | IN_LN | SCALES, True, (2 * 16 * 64 + 80 + 33) + (2 * 16 * 128 + 144 + 33),
    ),
    "KE only": ({"alignment_enhancer": False, "knowledge_extractor_mid": 8}, KE_KEYS, True, 2 * 16 * 8 + 24),
    "AE only": ({"knowledge_extractor": False, "alignment_enhancer_mid": 8}, AE_KEYS | SUB_LN, True, 2 * 16 * 8 + 24 + 16),
    "AE of mid 0": ({"alignment_enhancer_mid": 0, "knowledge_extractor_mid": 6}, KE_KEYS, True, 2 * 16 * 6 + 22),
    "KE of mid 0, released AE": (
        {"knowledge_extractor_mid": 0, "init": "released", "alignment_enhancer_mid": 4, "sub_norm": False},
        AE_KEYS, False, 2 * 16 * 4 + 20,
    ),
    "wide AE, identity": (
        {"knowledge_extractor": False, "alignment_enhancer_mid": "ffn"}, AE_KEYS | SUB_LN, True, 2 * 16 * 64 + 80 + 128,
    ),
    "LN out": (
        {"layer_norm": "out", "alignment_enhancer": False, "knowledge_extractor_mid": 4},
        KE_KEYS | {"knowledge_extractor.norm.weight", "knowledge_extractor.norm.bias"}, True, 2 * 16 * 4 + 20 + 32,
    ),
}  # fmt: skip
HOSTS = [("timm_vit", "bert"), ("vit", "roberta"), ("clip", "clip"), ("dinov2", "bert")]


def put_into(network: nn.Module, **options: Any) -> MultiWayAdapter:
    adapter = MultiWayAdapter(**options)
    adapter.inject(network)
    return adapter


def encode(network: Any, tiny: Any) -> torch.Tensor:
    return torch.cat([network.encode_images(tiny.images()), network.encode_texts(tiny.texts())])


@pytest.mark.parametrize("row", TABLE)
def test_options_and_what_they_put_in(tiny, row):
    """On one pair of towers; test_adapters_contract.py has every adapter on every host."""
    options, keys, identity, parameters = TABLE[row]
    network = tiny.network()
    before, base = encode(network, tiny), {name: value.clone() for name, value in network.state_dict().items()}
    adapter = put_into(network, **options)
    assert isinstance(adapter, Adapter)

    # base keys and values untouched, the new keys exactly as declared
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in base.items())
    new = after.keys() - base.keys()
    assert {name.split(".multiway.")[1] for name in new} == keys
    assert len(new) == len(keys) * 4  # two towers of two blocks
    assert all(adapter.owns(name) for name in new)
    assert not any(adapter.owns(name) for name in base)

    # identity at the start as declared: bit by bit, or really not
    assert adapter.identity_at_start is identity
    assert torch.equal(encode(network, tiny), before) is identity

    # exactly the declared parameters train, and all of them get a gradient (zero-init hides some in the first step)
    counts = set_tuning(network, adapter, "adapter", train_heads="none")
    assert counts.trainable == counts.adapter == 4 * parameters
    assert {name for name, p in network.named_parameters() if p.requires_grad} == new
    tiny.randomise(network, "multiway")
    (encode(network, tiny) * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()} == new


def normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """The norm without its hooks."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def eq2(block: Any, x: torch.Tensor, values: Any) -> torch.Tensor:
    """Eq. 1 and 2 and the AE for a timm block, written out."""
    multiway = block.multiway
    x = x + block.attn(normed(block.norm1, x))  # x'
    ke = multiway.knowledge_extractor
    inner = normed(ke.norm, x) if values.knowledge_extractor_norm == "in" else x
    adapted = torch.relu(inner @ ke.down.weight.T + ke.down.bias) @ ke.up.weight.T + ke.up.bias
    x = block.mlp(normed(block.norm2, x)) + ke.scale * adapted + x  # Eq. 2
    ae = multiway.alignment_enhancer
    if values.alignment_enhancer_form == "bottleneck":
        inner = normed(ae.norm, x)
        return x + ae.scale * (torch.relu(inner @ ae.down.weight.T + ae.down.bias) @ ae.up.weight.T + ae.up.bias)
    hidden = F.gelu(x @ ae.fc1.weight.T + ae.fc1.bias)
    return x + normed(ae.sub_norm, hidden) @ ae.fc2.weight.T + ae.fc2.bias


@pytest.mark.parametrize("reading", READINGS)
def test_a_pre_norm_block_computes_the_equations(tiny, reading):
    network = tiny.network()
    adapter = put_into(network, reading=reading)
    tiny.randomise(network, "multiway")
    block: Any = network.image.blocks[1]
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(block(x), eq2(block, x, adapter.values), atol=1e-5)
    assert block.multiway._residual is None  # x' is not kept alive


def test_a_post_norm_block_completes_the_sum_before_its_last_norm(tiny):
    network = tiny.network()
    put_into(network)
    tiny.randomise(network, "multiway")
    block: Any = network.text.blocks[0]
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    before_ffn = block.attention(x, None)[0]
    total = block.output.dense(block.intermediate(before_ffn)) + before_ffn + block.multiway.knowledge_extractor(before_ffn)
    expected = normed(block.output.LayerNorm, total + block.multiway.alignment_enhancer(total))
    found = block(x, None)
    assert torch.allclose(found[0] if isinstance(found, tuple) else found, expected, atol=1e-5)


@pytest.mark.parametrize(("width", "layers", "ffn", "ke_only", "printed", "released"), [
    # facts of the official code on the meta device, two modalities a layer; the paper prints 7.13 M for base
    (768, 12, 3072, 2_379_264, 7_125_504, 2_379_264 + 2 * 56_742_912),
    (1024, 24, 4096, 6_343_680, 18_994_176, 6_343_680 + 2 * 201_646_080),
])  # fmt: skip
def test_published_parameter_counts_of_beit3(width, layers, ffn, ke_only, printed, released):
    def count(reading: str) -> tuple[int, int]:
        values = READINGS[reading]
        with torch.device("meta"):
            parts = values.knowledge_extractor(width), values.alignment_enhancer(width, ffn)
        ke, ae = (2 * layers * sum(p.numel() for p in part.parameters()) for part in parts if part is not None)
        return ke, ke + ae

    assert count("printed") == (ke_only, printed)
    # BEiT-3 shares one full-size AE between its modalities; two towers have one each
    assert count("released") == (ke_only, released)
    if width == 768:
        assert round(count("printed")[1] / 1e6, 2) == 7.13
        assert count("text")[0] == 2_416_128 + 2 * layers  # KE with LN, plus its learnable scale


def test_released_initialization_is_the_codes():
    torch.manual_seed(0)
    alignment_enhancer = AlignmentEnhancer(256, 1024, init="released")
    for layer in (alignment_enhancer.fc1, alignment_enhancer.fc2):
        assert layer.weight.abs().max() <= 0.02
        assert layer.weight.std().item() == pytest.approx(0.0108, rel=0.02)  # N(0, .02) cut at one sigma
        assert not layer.bias.any()
    knowledge_extractor = KnowledgeExtractor(256, 64)
    assert not knowledge_extractor.up.weight.any()
    assert knowledge_extractor.down.weight.abs().max() <= 1 / 16  # kaiming_uniform(a = sqrt 5): 1 / sqrt(fan in)


def test_towers_can_be_chosen(tiny):
    for side in ("image", "text"):
        network = tiny.network()
        put_into(network, towers=side)
        assert {name.split(".")[0] for name in network.state_dict() if ".multiway." in name} == {side}


def test_nothing_below_the_first_adapter_requires_a_gradient(tiny):
    for image, text in HOSTS:
        network = tiny.network(image, text)
        adapter = put_into(network)
        set_tuning(network, adapter, "adapter")
        seen: dict[str, bool] = {}

        def note(name: str, seen: dict[str, bool] = seen) -> Any:
            return lambda _module, _args, out: seen.update({name: (out[0] if isinstance(out, tuple) else out).requires_grad})

        watched = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.Embedding)
        modules = {name: module for name, module in network.named_modules() if isinstance(module, watched)}
        handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
        encode(network, tiny)
        for handle in handles:
            handle.remove()
        first = {side: getattr(network, side)._blocks_path for side in ("image", "text")}
        for name, requires in seen.items():
            side, _, rest = name.partition(".")
            if ".multiway." in name or side not in first:
                assert requires
            elif not rest.startswith(first[side] + ".") or rest.startswith(first[side] + ".0."):
                behind = rest.endswith("output.LayerNorm") and ".attention." not in rest  # BERT: behind the first adapter
                after = rest.startswith("model.") and "norm" in rest and first[side] not in rest and "pre_" not in rest
                after &= "embeddings" not in rest  # the final norm of the tower
                assert requires is (behind or after), name


def test_checkpoint_deepcopy_and_autocast_keep_the_adapter(tiny):
    network = tiny.network()
    put_into(network)
    tiny.randomise(network, "multiway")
    expected = encode(network, tiny)
    twin = copy.deepcopy(network)
    tiny.randomise(network, "multiway", seed=6)  # the twin's hooks must call the twin's modules
    assert torch.equal(encode(twin, tiny), expected)
    assert not torch.equal(encode(network, tiny), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert (encode(twin, tiny) * expected).sum(1).min() > 0.98


def test_compiled_blocks_keep_the_adapter_without_graph_breaks(tiny):
    torch._dynamo.reset()
    network = tiny.network()
    put_into(network)
    tiny.randomise(network, "multiway")
    expected = encode(network, tiny)
    network.image.model = torch.compile(network.image.model, backend="eager")
    network.text.model.compile(backend="eager", fullgraph=True)
    for block in network.image.blocks:
        block.compile(backend="eager", fullgraph=True)
    assert torch.allclose(encode(network, tiny), expected, atol=1e-5)


def test_compiled_blocks_have_the_adapters_gradients(tiny):
    """As autograd is traced as well (aot_eager), a block a tower: what is around the blocks has nothing of ours."""
    torch._dynamo.reset()
    network = tiny.network(depth=1)
    set_tuning(network, put_into(network), "adapter")
    tiny.randomise(network, "multiway")
    found = []
    for _ in range(2):
        encoded = encode(network, tiny)
        encoded.square().sum().backward()
        found.append((encoded.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}))
        network.zero_grad()
        for block in (*network.image.blocks, *network.text.blocks):
            block.compile(backend="aot_eager", fullgraph=True)
    (plain, gradients), (compiled, traced) = found
    assert torch.allclose(compiled, plain, atol=1e-5)
    assert traced.keys() == gradients.keys()
    assert all(torch.allclose(traced[name], gradients[name], atol=1e-4) for name in gradients)


def test_modes_of_frozen_and_trained_parts(tiny):
    network = tiny.network(drop=0.1)
    adapter = put_into(network)
    set_tuning(network, adapter, "adapter")
    set_mode(network, True, adapter)
    on = {name for name, module in network.named_modules() if module.training}
    assert on >= {"image_projection", "image.model.blocks.0.multiway.knowledge_extractor.dropout"}
    assert all(".multiway" in name or name in ("", "image_projection", "text_projection") for name in on)
    set_mode(network, False, adapter)
    assert not any(module.training for module in network.modules())
    plain = tiny.network(drop=0.1)
    set_tuning(plain, None, "full")
    set_mode(plain, True)
    off = {name for name, module in plain.named_modules() if not module.training}
    assert not off, off
    set_tuning(plain, None, "head")
    set_mode(plain, True)
    assert {name for name, module in plain.named_modules() if module.training} == {"", "image_projection", "text_projection"}


def test_dropout_of_the_adapter_is_active_in_training_only(tiny):
    network = tiny.network()
    adapter = put_into(network, dropout=0.5)
    tiny.randomise(network, "multiway")
    set_tuning(network, adapter, "adapter")
    set_mode(network, True, adapter)
    assert not torch.equal(encode(network, tiny), encode(network, tiny))
    set_mode(network, False, adapter)
    assert torch.equal(encode(network, tiny), encode(network, tiny))


def test_tuning_modes_and_counts(tiny):
    network = tiny.network()
    heads = {"image_projection.weight", "text_projection.weight", "logit_scale"}
    total = sum(p.numel() for p in network.parameters())
    counts = set_tuning(network, None, "full")
    assert counts.trainable == counts.total == total
    assert counts.percent == 100
    assert set_tuning(network, None, "frozen").trainable == 0
    counts = set_tuning(network, None, "head")
    assert {name for name, p in network.named_parameters() if p.requires_grad} == heads
    assert counts.trainable == counts.heads == 2 * 16 * 8 + 1
    adapter = put_into(network)
    counts = set_tuning(network, adapter, "adapter")
    assert counts.trainable == counts.adapter + counts.heads
    assert counts.total == counts.backbone + counts.adapter + counts.heads == total + counts.adapter
    assert counts.percent == pytest.approx(100 * counts.trainable / total)
    assert count_parameters(network, adapter) == counts


def test_an_adapter_trains_the_heads_that_no_checkpoint_brought(tiny, caplog):
    def training(**options: Any) -> set[str]:
        set_tuning(network, adapter, "adapter", **options)
        return {name for name, parameter in network.named_parameters() if parameter.requires_grad and not adapter.owns(name)}

    network = tiny.network()
    adapter = put_into(network)
    heads = {"image_projection.weight", "text_projection.weight", "logit_scale"}
    with caplog.at_level(logging.INFO, "crosslight"):
        assert training() == training(train_heads="all") == heads
        assert not caplog.messages
        network.loaded_heads = frozenset({"image_projection.weight"})
        assert training() == training(train_heads="new") == heads - {"image_projection.weight"}
        assert training(train_heads="none") == set()
    assert [message.partition("because ")[2] for message in caplog.messages] == [
        "a checkpoint brought them: image_projection.weight",
        "a checkpoint brought them: image_projection.weight",
        "train_heads is none: image_projection.weight, logit_scale, text_projection.weight",
    ]
    assert training(train_heads="all") == heads
    plain = tiny.network()
    plain.loaded_heads = frozenset(heads)
    assert set_tuning(plain, None, "head").trainable == set_tuning(plain, None, "head", "new").heads > 0


@pytest.mark.parametrize(("arrange", "words"), [
    (lambda n, t: set_tuning(n, None, "adapter"), ["needs an adapter"]),
    (lambda n, t: set_tuning(n, MultiWayAdapter(), "full"), ["'full' takes no adapter"]),
    (lambda n, t: set_tuning(n, MultiWayAdapter(), "head"), ["'head' takes no adapter"]),
    (lambda n, t: set_tuning(n, MultiWayAdapter(), "adapter"), ["not injected"]),
    (lambda n, t: set_tuning(n, None, "head", train_heads="none"), ["trains nothing"]),
    (lambda n, t: (put_into(n), put_into(n)), ["already"]),
    (lambda n, t: put_into(t.network("cnn")), ["image tower", "InvertedResidual", "towers to text", "BertLayer"]),
    (lambda n, t: put_into(nn.Sequential(nn.Linear(2, 2))), ["made of Sequential"]),
    (lambda n, t: put_into(nn.Sequential(nn.Linear(2, 2)), towers="text"), ["no text tower"]),
    (lambda n, t: put_into(n, knowledge_extractor=False, alignment_enhancer=False), ["both"]),
    (lambda n, t: set_tuning(n, MultiWayAdapter(), "frozen"), ["'frozen' takes no adapter"]),
    (lambda n, t: put_into(n, knowledge_extractor_mid=-1), ["0 or more"]),
    (lambda n, t: put_into(n, dropout=1.5), ["dropout"]),
    (lambda n, t: put_into(n, reading="printd"), ["printd", "printed, released, text"]),
])  # fmt: skip
def test_contradictions_are_input_errors(tiny, arrange, words):
    with pytest.raises(InputError) as error:
        arrange(tiny.network(), tiny)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_failed_injection_leaves_the_network_as_it_was(tiny):
    network = tiny.network("cnn")
    keys = [*network.state_dict()]
    with pytest.raises(InputError):
        put_into(network)  # the text tower would have matched
    assert [*network.state_dict()] == keys


def test_any_transformer_can_be_adapted_alone(tiny):
    model = tiny.text_tower("bert").model
    put_into(model)
    assert sum(".multiway." in name for name in model.state_dict()) == 2 * 10


@pytest.mark.parametrize("family", FAMILIES)
def test_language_models_that_it_knows_are_those_that_docs_name(family: str) -> None:
    """docs/multiway.md and docs/extend/backbone.md: GPT-2 and Llama's family, not GPT-NeoX and OPT."""
    network = captioner(family)
    if family in ("gpt2", "llama", "mistral", "qwen2", "qwen3"):
        MultiWayAdapter(towers="text").inject(network)
        assert sum(hasattr(block, "multiway") for block in network.language.blocks) == LAYERS
    else:
        with pytest.raises(InputError, match="the text tower has no block it knows"):
            MultiWayAdapter(towers="text").inject(network)
