"""Frozen weights in bfloat16: half the bytes, the same numbers up to their rounding, and gradients as without."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_library_models import dual_encoder
from torch import nn

from datamodules.errors import InputError
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.checkpoints.init_from import short_fingerprint
from lightning_modules.networks.half_weights import halve_frozen
from lightning_modules.retrieval import RetrievalModule


def stored_bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def vectors(network: Any, tiny: Any) -> torch.Tensor:
    size = network.inputs.image.size
    return torch.cat([network.encode_images(tiny.images(size=size)), network.encode_texts(tiny.texts())])


NETWORKS = ("clip", "siglip", "siglip2", "align", "timm_vit+bert")


def network_of(kind: str, tiny: Any) -> Any:
    return tiny.network(*kind.split("+")) if "+" in kind else dual_encoder(kind)


@pytest.mark.parametrize("kind", NETWORKS)
def test_frozen_weights_take_half_the_memory_and_give_the_same_vectors(kind: str, tiny: Any) -> None:
    network = network_of(kind, tiny)
    network.requires_grad_(False)
    before, names = vectors(network, tiny), list(network.state_dict())
    whole = stored_bytes(network)
    halved = halve_frozen(network)
    assert stored_bytes(network) == whole - 2 * halved
    assert halved > 0.6 * sum(
        parameter.numel() for parameter in network.parameters()
    )  # the rest are norms and biases, at width 16
    assert list(network.state_dict()) == names
    after = vectors(network, tiny)
    assert after.dtype == torch.float32
    assert 1 - 1e-3 < (after * before).sum(-1).min() < 1  # the cosine of each vector with itself in fp32
    assert halve_frozen(network) == 0
    assert torch.equal(vectors(copy.deepcopy(network), tiny), after)
    with torch.autocast("cpu", torch.bfloat16):
        assert (vectors(network, tiny) * before).sum(-1).min() > 0.99


def test_of_clips_real_sizes_it_is_half() -> None:
    with torch.device("meta"):
        network = dual_encoder("clip", config={"model_type": "clip"})
    network.requires_grad_(False)
    whole = stored_bytes(network)
    assert whole == 4 * 151_277_313
    halve_frozen(network)
    assert stored_bytes(network) / whole == pytest.approx(0.509, abs=1e-3)


@pytest.mark.parametrize("adapter", [MultiWayAdapter(dropout=0.0), LoRAAdapter(rank=2)], ids=["MWA", "LoRA"])
def test_an_adapter_learns_in_fp32_through_halved_weights(adapter: Any, tiny: Any) -> None:
    """Its gradients are those through the same values in fp32, and the backward pass keeps no fp32 copy of a frozen weight."""
    module = RetrievalModule(dual_encoder("clip"), adapter, "adapter", train_heads="all", frozen_dtype="bfloat16")
    with torch.no_grad():
        for name, parameter in module.network.named_parameters():
            if adapter.owns(name):
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    exact = copy.deepcopy(module)
    for part in exact.network.modules():
        if type(part).__name__.startswith("Half"):
            untyped: Any = part
            untyped.__class__ = type(part).__mro__[2]
            part.weight.data = part.weight.data.float()
    kept: list[torch.Tensor] = []
    grads = []
    for each in (module, exact):
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
            found = vectors(each.network, tiny)
        (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
        grads.append({name: p.grad for name, p in each.network.named_parameters() if p.grad is not None})
        if each is module:
            trained = [p for p in each.network.parameters() if p.requires_grad]
            assert {p.dtype for p in trained} == {torch.float32}
            weights = {tuple(p.shape) for p in each.network.parameters() if p.dtype == torch.bfloat16}
            assert weights
            assert any(tensor.dtype == torch.bfloat16 for tensor in kept)
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-5)
    assert short_fingerprint(module.network) == short_fingerprint(exact.network)  # of values, not of how they are stored


def test_what_trains_stays_as_it_is(tiny: Any) -> None:
    module = RetrievalModule(tiny.network(), None, "head", frozen_dtype="bfloat16")
    assert module.network.image_projection.weight.dtype == torch.float32
    assert module.network.image.model.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    assert {tensor.dtype for tensor in checkpoint["state_dict"].values()} == {torch.float32}
    again = RetrievalModule(tiny.network(), None, "head", frozen_dtype="bfloat16")
    again.on_load_checkpoint(checkpoint)
    half = RetrievalModule(tiny.network(), None, "full", frozen_tower="image", frozen_dtype="bfloat16")
    assert {p.dtype for p in half.network.parameters() if p.requires_grad} == {torch.float32}


def test_where_nothing_is_frozen_it_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match=r"model.frozen_dtype: tuning is full, .* Set it to null, or let less train"):
        RetrievalModule(tiny.network(), None, "full", frozen_dtype="bfloat16")
