"""Several adapters as one, in a captioner: a bridge to the image, and LoRA behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_captioner import captioner, images, texts
from torch import Tensor

from datamodules.errors import InputError
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.clipcap import ClipCap
from lightning_modules.adapters.combined import Combined
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.adapters.peft_adapter import PEFTAdapter
from lightning_modules.adapters.tuning import set_tuning
from lightning_modules.captioning import CaptioningModule
from lightning_modules.checkpoints.adapter_export import build_adapter, export_adapter, load_adapter

ROWS = torch.tensor([0, 0, 1])


def bridged(towers: Any = None) -> list[Adapter]:
    return [ClipCap("linear", prefix_length=2), LoRAAdapter(rank=2, towers=towers)]


def logits(network: Any) -> Tensor:
    return network.logits(network.encode_images(images(2)), texts([0, 0, 1]), ROWS)


def trained(adapters: list[Adapter]) -> tuple[Any, Combined]:
    network, both = captioner(visual="pooled"), Combined(adapters)
    torch.manual_seed(3)
    both.inject(network)
    set_tuning(network, both, "adapter")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if both.owns(name):
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return network, both


@pytest.mark.parametrize(("towers", "sides"), [
    ("text", {"prefix", "language"}), ("image", {"prefix", "vision"}), (None, {"prefix", "language", "vision"}),
])  # fmt: skip
def test_lora_behind_a_bridge_goes_into_the_towers_that_are_named(towers: Any, sides: set[str], tmp_path: Path) -> None:
    network, both = trained(bridged(towers))
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in names} == sides
    out = logits(network)
    out.square().sum().backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()} == names
    folder = export_adapter(network, both, tmp_path / "export")
    again = captioner(visual="pooled")
    loaded = load_adapter(again, folder)
    assert isinstance(loaded, Combined)
    assert [type(part) for part in loaded.adapters] == [ClipCap, LoRAAdapter]
    assert torch.equal(logits(again), out)

    left = both.merge(network)
    assert isinstance(left, ClipCap)
    assert not any("lora" in name for name in network.state_dict())
    torch.testing.assert_close(logits(network), out, atol=1e-4, rtol=1e-5)


def test_what_comes_first_is_there_for_what_follows() -> None:
    network = captioner(visual="pooled")
    Combined(bridged()[::-1]).inject(network)  # nothing looks at images yet
    assert not any(name.startswith("vision.") and "lora" in name for name in network.state_dict())
    with pytest.raises(InputError, match="towers is image, but Captioner has no image tower that takes part"):
        CaptioningModule(captioner(visual="pooled"), Combined(bridged("image")[::-1]))


def test_beside_i_tuning_each_has_its_own_parameters() -> None:
    adapters: list[Adapter] = [ITuning(bottleneck=4, init="zero_up"), PEFTAdapter("DoRA", {"r": 2}, towers="text")]
    module = CaptioningModule(captioner(), Combined(adapters))
    assert module.counts.trainable == module.counts.adapter
    sizes = [sum(p.numel() for name, p in module.network.named_parameters() if part.owns(name)) for part in adapters]
    assert sum(sizes) == module.counts.adapter
    assert min(sizes) > 0
    assert module.adapter is not None
    assert module.adapter.identity_at_start
    assert not module.adapter.off


def test_it_is_built_again_from_what_it_says_of_itself() -> None:
    both = Combined([*bridged(), PEFTAdapter("IA3", targets="ffn", towers="image")])
    described = json.loads(json.dumps(both.describe()))
    again = build_adapter(described)
    assert isinstance(again, Combined)
    assert json.loads(json.dumps(again.describe())) == described
    described["init_args"]["adapters"][1]["class_path"] = "somebody.Elses"
    with pytest.raises(InputError, match=r"somebody"):
        build_adapter(described)
    described["init_args"]["adapters"][1] = 3
    with pytest.raises(InputError, match=r"adapter_config\.json: adapter: adapters"):
        build_adapter(described)


def test_one_adapter_is_not_combined_and_what_cannot_be_merged_says_so() -> None:
    with pytest.raises(InputError, match="adapters has 1, and needs two or more"):
        Combined([ClipCap()])
    network, both = trained([ClipCap("linear", prefix_length=2), LoRAAdapter(rank=0)])
    with pytest.raises(InputError, match="ClipCap is no change of the network's weights"):
        both.merge(network)
