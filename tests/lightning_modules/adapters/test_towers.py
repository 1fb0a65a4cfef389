"""Which towers an adapter goes to: those that take part in the task, or what is named and does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_captioner import FAMILIES, captioner, images, texts
from tiny_library_models import dual_encoder
from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.combined import Combined
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.adapters.lora import LoRAAdapter, merge
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.peft_adapter import PEFTAdapter
from lightning_modules.adapters.tuning import set_tuning
from lightning_modules.captioning import CaptioningModule
from lightning_modules.checkpoints.adapter_export import export_adapter, load_adapter
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.networks.captioner import Captioner

ROWS = [0, 0, 1]
PRE_NORM = ("gpt2", "llama", "mistral", "qwen2", "qwen3")  # whose FFN reads the residual stream behind attention


def loss(network: Captioner) -> Tensor:
    batch = images(2)
    return network.loss(network.no_features(batch), texts(ROWS), torch.tensor(ROWS))["loss"]


def adapters(towers: Any = None) -> list[Adapter]:
    return [LoRAAdapter(rank=2, towers=towers), MultiWayAdapter(towers=towers)]


@pytest.mark.parametrize(
    ("family", "adapter"),
    [(family, LoRAAdapter(rank=2)) for family in FAMILIES] + [(family, MultiWayAdapter(dropout=0.0)) for family in PRE_NORM],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_in_a_captioner_it_is_the_language_model(family: str, adapter: Any, tmp_path: Path) -> None:
    network = captioner(family)
    before, keys = loss(network), list(network.state_dict())
    adapter.inject(network)
    assert torch.equal(loss(network), before)  # the identity at the start
    counts = set_tuning(network, adapter, "adapter")
    trains = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(name.startswith("language.") and adapter.owns(name) for name in trains)
    assert counts.trainable == counts.adapter > 0  # and not the whole language model beside it
    assert [name for name in network.state_dict() if not adapter.owns(name)] == keys
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in trains:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    after = loss(network)
    assert (after - before).abs() > 1e-3
    after.backward()
    assert {
        name for name, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.any()
    } == trains
    after = after.detach()
    assert torch.equal(loss(copy.deepcopy(network)), after)
    again = captioner(family)
    load_adapter(again, export_adapter(network, adapter, tmp_path / "export"))
    assert torch.equal(loss(again), after)
    if isinstance(adapter, LoRAAdapter):
        merge(network)
        torch.testing.assert_close(loss(network), after)
        assert list(network.state_dict()) == keys


def test_sizes_of_gpt2s_layers_count_as_of_others() -> None:
    """Its weights lie the other way: c_attn 3 x 16, c_proj 16, c_fc 64, c_proj back, in each of four layers."""
    assert LoRAAdapter(rank=2).size(captioner("gpt2")) == (2, 2 * 4 * ((16 + 48) + (16 + 16) + 2 * (16 + 64)))
    assert LoRAAdapter(rank=1, targets="attention").size(captioner("gpt2")) == (1, 4 * (64 + 32))


@pytest.mark.parametrize("towers", ["image", "both"])
def test_the_vision_tower_of_a_captioner_that_looks_at_none_is_refused(towers: Any) -> None:
    for adapter in adapters(towers):
        network = captioner()
        keys = list(network.state_dict())
        with pytest.raises(
            InputError, match=f"towers is {towers}, but Captioner has no image tower that takes part .* set towers to text"
        ):
            CaptioningModule(network, adapter)
        assert list(network.state_dict()) == keys


def test_once_something_looks_at_images_both_towers_are_there() -> None:
    for towers, sides in (
        ("image", {"vision"}),
        ("text", {"language"}),
        (None, {"vision", "language"}),
        ("both", {"vision", "language"}),
    ):
        for adapter in adapters(towers):
            network = captioner()
            ITuning().inject(network)
            adapter.inject(network)
            assert {name.split(".")[0] for name, _ in network.named_parameters() if adapter.owns(name)} == sides


@pytest.mark.parametrize("adapter", [*adapters(), LoRAAdapter(rank=0)], ids=["LoRA", "MWA", "rank 0"])
def test_beside_it_the_language_model_stays_frozen(adapter: Adapter) -> None:
    module = CaptioningModule(captioner(), adapter, captions_alone=True)
    assert module.counts.trainable == module.counts.adapter
    assert (module.counts.trainable == 0) == adapter.off
    assert module.counts.heads == 0


def test_what_never_sees_an_image_is_refused_unless_that_is_meant() -> None:
    for adapter in adapters():
        with pytest.raises(
            InputError, match=r"nothing shows it an image. Put I-Tuning or ClipCap before it .*Combined.*captions_alone"
        ):
            CaptioningModule(captioner(), adapter)
    CaptioningModule(captioner(), LoRAAdapter(rank=0))  # no adapter: the frozen language model, as with tuning frozen
    bridge = CaptioningModule(captioner(), Combined([ITuning(bottleneck=4), *adapters()]))
    assert bridge.counts.trainable == bridge.counts.adapter


@pytest.mark.parametrize("adapter", [
    LoRAAdapter(rank=2), LoRAAdapter(budget=2000, towers="both"), PEFTAdapter("IA3"), MultiWayAdapter(),
    Combined([PEFTAdapter("DoRA", {"r": 2}, targets="ffn"), MultiWayAdapter(towers="text")]),
], ids=["LoRA", "budget", "IA3", "MWA", "Combined"])  # fmt: skip
@pytest.mark.parametrize("host", ["towers", "library", "captioner"])
def test_both_towers_are_not_one_of_them(tiny: Any, adapter: Adapter, host: str) -> None:
    """An image tower that is a CNN has nothing that it could go into."""
    network: Any = {
        "towers": lambda: tiny.network("cnn"), "library": lambda: dual_encoder("align"), "captioner": lambda: _bridged(tiny)
    }[host]()  # fmt: skip
    keys = list(network.state_dict())
    with pytest.raises(InputError, match=r"the image tower.* has no .*set adapter\.towers to text"):
        adapter.inject(network)
    assert list(network.state_dict()) == keys


def _bridged(tiny: Any) -> Captioner:
    network = Captioner(tiny.image_tower("cnn"), captioner().language)
    ITuning(bottleneck=4).inject(network)
    return network


def test_targets_that_one_tower_alone_has_are_refused_unless_it_is_named(tiny: Any) -> None:
    with pytest.raises(InputError, match=r"the text tower of DualEncoder has no linear .* targets \[qkv\] .*\.towers to image"):
        LoRAAdapter(rank=1, targets=["qkv"]).inject(tiny.network())
    LoRAAdapter(rank=1, targets=["qkv"], towers="image").inject(tiny.network())
    LoRAAdapter(rank=1, targets=["qkv", "query"]).inject(tiny.network())
    beit3 = BEiT3Retrieval(image_size=16, width=16, num_layers=1, num_heads=2, ffn_width=32, vocab_size=40, weights="random")
    with pytest.raises(InputError, match=r"the text tower of BEiT3Retrieval .* set adapter\.towers to image"):
        LoRAAdapter(rank=1, targets=["image.fc1"]).inject(beit3)


def test_a_side_of_somebody_elses_network(tiny: Any) -> None:
    """It has towers of the names `image` and `text`, or is a tower itself; a side that it lacks is not the whole network."""

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pixels, self.text = tiny.image_tower().model, tiny.text_tower().model

    for adapter in adapters("image"):
        with pytest.raises(InputError, match=r"Towers has no image tower that takes part in its task .* set towers to text"):
            adapter.inject(Towers())
        with pytest.raises(InputError, match=r"has no image tower .*; leave towers out"):
            adapter.inject(tiny.image_tower().model)
    for adapter in adapters():
        network = Towers()
        adapter.inject(network)
        assert {name.split(".")[0] for name in network.state_dict() if adapter.owns(name)} == {"text"}


def test_an_own_adapter_where_nobody_looks_is_refused_at_the_start() -> None:
    class Own(Adapter):
        """Beside every attention of the vision tower."""

        def inject(self, network: nn.Module) -> None:
            for layer in network.vision.blocks:
                layer.own = nn.Linear(2, 2)

        def owns(self, parameter_name: str) -> bool:
            return "own" in parameter_name.split(".")

    with pytest.raises(InputError, match=r"Own went into parts of Captioner that take no part .* \(vision\.model\..*\.own\."):
        CaptioningModule(captioner(), Own())


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"alignment_enhancer_scale": 0.0}])
def test_a_scale_of_nothing_is_no_adapter(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="at scale 0 it has no effect"):
        MultiWayAdapter(**options)
