"""Networks whose parts have classes that no module holds are saved, pickled and copied whole."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_vilt import vilt
from torch import nn

from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.networks.half_weights import halve_frozen
from lightning_modules.networks.mixed import mixed
from lightning_modules.retrieval import RetrievalModule


def saved(network: Any) -> Any:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def half(tiny: Any) -> Any:
    network = tiny.network().requires_grad_(False)
    assert halve_frozen(network)
    return network


NETWORKS: dict[str, Callable[[Any], Any]] = {
    "checkpointed": lambda tiny: tiny.network(checkpoint_activations=True),
    "half": half,
    "fused": lambda tiny: vilt(),
    "fused, then checkpointed": lambda tiny: vilt(checkpoint_activations=True),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("copied", [saved, copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_network_is_the_same_afterwards(tiny: Any, kind: str, copied: Any) -> None:
    network = NETWORKS[kind](tiny)
    other = copied(network)
    assert [type(part) for part in other.modules()] == [type(part) for part in network.modules()]
    ours, theirs = network.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    assert not {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in other.parameters()}
    if hasattr(network, "encode_texts"):
        assert torch.equal(other.encode_texts(tiny.texts()), network.encode_texts(tiny.texts()))


def test_a_module_with_an_adapter_too(tiny: Any) -> None:
    module = RetrievalModule(tiny.network(checkpoint_activations=True), LoRAAdapter(rank=2), frozen_dtype="bfloat16").eval()
    other = saved(module)
    assert torch.equal(other.network.encode_texts(tiny.texts()), module.network.encode_texts(tiny.texts()))


def test_a_class_is_made_once_and_says_so_by_its_name() -> None:
    class Ours:
        pass

    made = mixed("Our", Ours, nn.Linear)
    assert made is mixed("Our", Ours, nn.Linear)
    assert made.__name__ == "OurLinear"
    assert made.__mro__[1:3] == (Ours, nn.Linear)
