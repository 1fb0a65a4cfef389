"""The dual encoder on any towers: unit vectors, layer ids, frozen towers, checkpointing, compilation, precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from datamodules.errors import InputError
from datamodules.records import ImageBatch
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.tuning import set_mode, set_tuning
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.networks.towers.hugging_face import HFTextTower


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def loss(network: DualEncoder, tiny: Any) -> torch.Tensor:
    similarity = network.encode_images(tiny.images()) @ network.encode_texts(tiny.texts()).T
    return (similarity * network.logit_scale.exp()).log_softmax(-1).diagonal().sum()


class Saved:
    """Counts the bytes autograd keeps for the backward pass."""

    def __enter__(self) -> Saved:
        self.bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


def test_weight_decay_spares_what_the_library_of_a_tower_spares(tiny: Any) -> None:
    assert tiny.network("timm_vit").no_decay_parameters() == {"image.model.cls_token", "image.model.pos_embed"}
    assert tiny.network("clip", "clip").no_decay_parameters() == frozenset()


PAIRS = [("timm_vit", "bert"), ("vit", "roberta"), ("clip", "clip"), ("dinov2", "bert"), ("cnn", "bert")]


@pytest.mark.parametrize(("image", "text"), PAIRS)
def test_every_tower_gives_unit_vectors_and_full_tuning_reaches_every_trainable_parameter(tiny, image, text):
    network = tiny.network(image, text)
    set_tuning(network, None, "full")
    images, texts = network.encode_images(tiny.images(size=network.inputs.image.size)), network.encode_texts(tiny.texts())
    assert images.shape == texts.shape == (4, 8)
    assert images.norm(dim=1).allclose(torch.ones(4))
    assert texts.norm(dim=1).allclose(torch.ones(4))
    ((images @ texts.T) * network.logit_scale.exp()).log_softmax(-1).diagonal().sum().backward()
    without = {name for name, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert not without  # DDP would wait for these for ever


def test_layer_ids_count_from_the_embeddings_and_align_at_the_top(tiny):
    network = tiny.network()
    network.text = HFTextTower(
        config={"model_type": "bert", "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
        | {"num_attention_heads": 2},
        tokenizer="none",
    )
    assert network.num_layers == 2
    ids = {
        "image.model.cls_token": 0,
        "image.model.pos_embed": 0,
        "image.model.patch_embed.proj.weight": 0,
        "image.model.blocks.0.norm1.weight": 1,
        "image.model.blocks.1.mlp.fc1.weight": 2,
        "image.model.norm.weight": 3,
        "image_projection.weight": 3,
        "text_projection.weight": 3,
        "logit_scale": 3,
        "text.model.embeddings.word_embeddings.weight": 1,  # one layer less than the image tower: one closer to the top
        "text.model.encoder.layer.0.attention.self.query.weight": 2,
    }
    assert set(ids) <= {name for name, _ in network.named_parameters()}
    assert {name: network.layer_id(name) for name in ids} == ids


def test_a_frozen_tower_records_nothing_and_a_tower_that_trains_does(tiny):
    network = tiny.network()
    set_tuning(network, None, "head")
    with Saved() as saved:
        vector = network.image(tiny.images().pixels_B3HW)
    assert saved.bytes == 0
    assert not vector.requires_grad
    assert network.encode_images(tiny.images()).requires_grad  # the projection still trains
    set_tuning(network, None, "full")
    with Saved() as saved:
        assert network.image(tiny.images().pixels_B3HW).requires_grad
    assert saved.bytes > 0
    with torch.no_grad():
        assert not network.encode_images(tiny.images()).requires_grad
    pixels = tiny.images().pixels_B3HW.requires_grad_()  # gradients to the pixels (explanations) pass a frozen tower
    set_tuning(network, None, "head")
    network.image(pixels).sum().backward()
    assert pixels.grad is not None


@pytest.mark.parametrize(("image", "text"), PAIRS[:4])
@pytest.mark.parametrize("mode", ["full", "adapter"])
@pytest.mark.parametrize("order", ["checkpoint_first", "adapter_first"])
def test_checkpointing_gives_the_same_gradients_from_less_memory(tiny, image, text, mode, order):
    plain = tiny.network(image, text)
    adapter = MultiWayAdapter(dropout=0.0) if mode == "adapter" else None
    networks = [plain, copy.deepcopy(plain)]
    for network in networks:
        steps = [
            lambda network=network: (
                network is plain or (network.image.checkpoint_activations(), network.text.checkpoint_activations())
            ),
            lambda network=network: adapter and adapter.inject(network),
        ]
        for step in steps if order == "checkpoint_first" else steps[::-1]:
            step()
        tiny.randomise(network, "multiway")
        set_tuning(network, adapter, mode)
        set_mode(network, True, adapter)  # frozen blocks in eval mode: where the libraries' own switches stay off
    found = []
    for network in networks:
        with Saved() as saved:
            value = loss(network, tiny)
        value.backward()
        found.append((value, gradients(network), saved.bytes))
    (value, grads, kept), (other_value, other_grads, other_kept) = found
    assert torch.equal(value, other_value)
    assert grads.keys() == other_grads.keys()
    assert all(torch.equal(grads[name], other_grads[name]) for name in grads)
    assert other_kept < 0.6 * kept
    assert [*networks[1].state_dict()] == [*plain.state_dict()]


def test_checkpointing_repeats_dropout(tiny):
    plain = tiny.network("vit", "bert", drop=0.3)
    remembering = copy.deepcopy(plain)
    remembering.image.checkpoint_activations()
    remembering.text.checkpoint_activations()
    results = []
    for network in (plain, remembering):
        set_tuning(network, None, "full")
        network.train()
        torch.manual_seed(3)
        loss(network, tiny).backward()
        results.append(gradients(network))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    torch.manual_seed(4)
    plain.zero_grad()
    loss(plain, tiny).backward()
    assert not all(torch.equal(results[1][name], g) for name, g in gradients(plain).items())  # dropout is really on


@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_encoders_compute_the_same(tiny, checkpointed):
    torch._dynamo.reset()
    network = tiny.network(depth=1, checkpoint_activations=checkpointed)
    adapter = MultiWayAdapter(dropout=0.0)
    adapter.inject(network)
    tiny.randomise(network, "multiway")
    set_tuning(network, adapter, "adapter")
    loss(network, tiny).backward()
    expected = gradients(network)
    compiled = copy.deepcopy(network)
    compiled.zero_grad()
    compiled.compile_encoders(backend="eager")  # aot_eager takes ten seconds and graphs no other code
    loss(compiled, tiny).backward()
    found = gradients(compiled)
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.allclose(expected[name], found[name], atol=1e-5), name
    assert [*compiled.state_dict()] == [*network.state_dict()]


def test_autocast_gives_fp32_unit_vectors_close_to_fp32(tiny):
    network = tiny.network("dinov2", "bert")
    exact = network.encode_images(tiny.images())
    with torch.autocast("cpu", torch.bfloat16):
        rough = network.encode_images(tiny.images())
    assert rough.dtype == torch.float32
    assert (exact * rough).sum(1).min() > 0.99
    assert not torch.equal(exact, rough)


def test_images_without_pixels_are_an_input_error(tiny):
    with pytest.raises(InputError, match="pixels"):
        tiny.network().encode_images(ImageBatch(("a",), torch.arange(1)))


@pytest.mark.parametrize(("image", "text"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_whole_network_may_have_another_dtype(tiny, image, text, dtype):
    """`model.double()` and its like: pixels are still fp32, and the mean over tokens is taken in fp32."""
    network = tiny.network(image, text)
    images, texts = tiny.images(size=network.inputs.image.size), tiny.texts()
    with torch.no_grad():
        expected = network.encode_images(images), network.encode_texts(texts)
        network.to(dtype)
        found = network.encode_images(images), network.encode_texts(texts)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.15 if dtype == torch.bfloat16 else 1e-4, rtol=0)


def test_under_autocast_a_mean_over_tokens_stays_fp32(tiny):
    tower, texts = tiny.text_tower(), tiny.texts()
    with torch.autocast("cpu", torch.bfloat16):
        assert tower(texts.tokens_BT, texts.mask_BT).dtype == torch.float32
