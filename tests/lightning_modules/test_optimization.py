"""AdamW groups and schedule, against the official recipe and hand-made exponents."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from datamodules.errors import InputError
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.tuning import set_tuning
from lightning_modules.networks.uniter import UniterRetrieval
from lightning_modules.optimization import Optimization, UniterAdamW, build, parameter_groups, schedule_factor

# Official cosine_scheduler(base=2e-4, final=1e-6, epochs=5, niter_per_ep=7, warmup_epochs=2), recorded: every third of 35 steps.
OFFICIAL = {
    0: 0.0, 3: 4.615384615384615e-05, 6: 9.23076923076923e-05, 9: 0.00013846153846153845, 12: 0.0001846153846153846,
    13: 0.0002, 14: 0.0002, 15: 0.0001988886672094003, 18: 0.0001827107580444415, 21: 0.00015025000000000002,
    24: 0.00010793564431184922, 27: 6.41485680755437e-05, 30: 2.756133875293228e-05, 33: 5.4205058242790135e-06,
    34: 2.111332790599712e-06,
}  # fmt: skip


def cosine_scheduler(base: float, final: float, total: int, warmup: int) -> np.ndarray:
    """The official schedule as a list of all steps: linspace, then cosine."""
    rest = total - warmup
    cosine = [final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / rest)) for i in range(rest)]
    return np.concatenate([np.linspace(0, base, warmup), cosine])


def test_schedule_is_the_official_one() -> None:
    settings = Optimization(lr=2e-4, min_lr=1e-6, warmup_fraction=2 / 5)
    for step, expected in OFFICIAL.items():
        assert 2e-4 * schedule_factor(step, 35, settings) == pytest.approx(expected, rel=1e-12), step


@pytest.mark.parametrize(("total", "fraction"), [(1, 0.1), (7, 0.5), (10, 0.1), (40, 0.25), (100, 0.0)])
def test_schedule_equals_its_naive_twin(total: int, fraction: float) -> None:
    settings = Optimization(lr=3e-3, min_lr=1e-5, warmup_fraction=fraction)
    twin = cosine_scheduler(3e-3, 1e-5, total, int(total * fraction))
    ours = [3e-3 * schedule_factor(step, total, settings) for step in range(total)]
    if int(total * fraction) == 1:
        twin[0] = 0.0  # linspace over one step is [0]
    assert ours == pytest.approx(list(twin), rel=1e-12, abs=1e-15)
    assert 3e-3 * schedule_factor(total + 5, total, settings) == pytest.approx(1e-5)  # steps past the end stay at min_lr


def named(groups: list[dict[str, Any]], network: nn.Module) -> dict[str, dict[str, Any]]:
    """Parameter name -> its group."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


def test_every_trainable_parameter_is_in_one_group_and_vectors_do_not_decay(tiny: Any) -> None:
    network = tiny.network()
    set_tuning(network, None, "full")
    groups = parameter_groups(network, Optimization(weight_decay=0.3), lambda name: False)
    trainable = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trainable)
    found = named(groups, network)
    assert set(found) == set(trainable)
    for name, parameter in network.named_parameters():
        if name in found:
            spared = parameter.ndim <= 1 or name in ("image.model.cls_token", "image.model.pos_embed")
            assert found[name]["weight_decay"] == (0.0 if spared else 0.3), name
            assert found[name]["lr"] == 1e-3
    assert found["logit_scale"]["weight_decay"] == 0.0


def test_a_vector_in_the_shape_of_a_batch_does_not_decay_and_a_layer_of_one_output_does() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.positions = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(1, 3, 4))
            self.score = nn.Linear(4, 1)

        def head_parameters(self) -> Any:
            return iter(())

    network = Own()
    objective = nn.ParameterList([torch.ones(1, 1, 3), torch.ones(1, 3)])
    groups = parameter_groups(network, Optimization(weight_decay=0.3), lambda name: False, objective)
    found = {name: group["weight_decay"] for name, group in named(groups[:2], nn.ModuleList([network, objective])).items()}
    assert found == {"0.token": 0.0, "0.positions": 0.3, "0.score.weight": 0.3, "0.score.bias": 0.0, "1.0": 0.0, "1.1": 0.3}


def test_layer_decay_exponents(tiny: Any) -> None:
    """Two blocks a tower: embeddings at 0.5^3, the first block at 0.5^2, the second at 0.5, the rest at 1."""
    network = tiny.network()
    set_tuning(network, None, "full")
    found = named(parameter_groups(network, Optimization(lr=8.0, layer_decay=0.5), lambda name: False), network)
    by_hand = {
        "image.model.patch_embed.proj.weight": 1.0, "image.model.pos_embed": 1.0, "image.model.blocks.0.attn.qkv.weight": 2.0,
        "image.model.blocks.1.mlp.fc1.bias": 4.0, "image.model.norm.weight": 8.0,
        "text.model.embeddings.word_embeddings.weight": 1.0, "text.model.encoder.layer.0.output.dense.weight": 2.0,
        "text.model.encoder.layer.1.output.dense.weight": 4.0, "image_projection.weight": 8.0, "text_projection.weight": 8.0,
        "logit_scale": 8.0,
    }  # fmt: skip
    assert {name: found[name]["lr"] for name in by_hand} == by_hand


@pytest.mark.parametrize("on_adapters", [False, True])
def test_adapters_are_exempt_from_layer_decay_unless_asked(tiny: Any, on_adapters: bool) -> None:
    network, adapter = tiny.network(), MultiWayAdapter()
    adapter.inject(network)
    set_tuning(network, adapter, "adapter")
    settings = Optimization(lr=8.0, layer_decay=0.5, layer_decay_on_adapters=on_adapters)
    found = named(parameter_groups(network, settings, adapter.owns), network)
    for name, group in found.items():
        if adapter.owns(name):
            block = 0 if ".0.multiway" in name else 1
            assert group["lr"] == ((2.0, 4.0)[block] if on_adapters else 8.0), name
        else:
            assert group["lr"] == 8.0  # heads are at the top


def test_own_learning_rates_of_adapters_and_backbone(tiny: Any) -> None:
    network, adapter = tiny.network(), MultiWayAdapter()
    adapter.inject(network)
    network.requires_grad_(True)
    settings = Optimization(lr=1.0, min_lr=0.1, warmup_fraction=0.0, adapter_lr=4.0, backbone_lr=0.25)
    optimizer, schedule = build(network, settings, 10, adapter.owns)
    heads = {name for name, _ in network.head_parameters()}
    found = named(optimizer.param_groups, network)
    for name, group in found.items():
        assert group["lr"] == (4.0 if adapter.owns(name) else 1.0 if name in heads else 0.25), name
    optimizer.step()
    for _ in range(10):
        schedule.step()
    assert sorted({round(group["lr"], 9) for group in optimizer.param_groups}) == [0.025, 0.1, 0.4]  # all by the same factor


def test_settings_reach_adamw(tiny: Any) -> None:
    network = tiny.network()
    optimizer, _ = build(network, Optimization(betas=(0.8, 0.98), eps=1e-6), 10, lambda name: False)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.8, 0.98)
        assert group["eps"] == 1e-6


def test_nothing_trainable(tiny: Any) -> None:
    network = tiny.network()
    network.requires_grad_(False)
    with pytest.raises(InputError, match="nothing is trainable: choose tuning"):
        parameter_groups(network, Optimization(), lambda name: False)


@pytest.mark.parametrize(
    ("option", "value"), [("warmup_fraction", 1.0), ("warmup_fraction", -0.1), ("layer_decay", 0.0), ("layer_decay", 1.5)]
)
def test_values_out_of_range(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{option} is {value}"):
        Optimization(**{option: value})


@pytest.mark.parametrize(
    ("tuning", "options", "says"),
    [
        ("full", {"adapter_lr": 1e-2}, "adapter_lr is 0.01, but no adapter trains here"),
        ("head", {"adapter_lr": 1e-2}, "adapter_lr is 0.01, but no adapter trains here"),
        ("head", {"backbone_lr": 1e-5}, "backbone_lr is 1e-05, but nothing but adapters and heads trains here"),
        ("adapter", {"backbone_lr": 1e-5}, "backbone_lr is 1e-05, but nothing but adapters and heads trains here"),
        ("full", {"layer_decay_on_adapters": True, "layer_decay": 0.5}, "true, but no adapter trains here: set it to false"),
        ("adapter", {"layer_decay_on_adapters": True}, r"true, but optimization.layer_decay is 1 \(none\): set it to false"),
        ("adapter", {"layer_decay_on_adapters": True, "layer_decay": 0.5, "adapter_lr": 1e-2}, None),
        ("full", {"backbone_lr": 1e-5}, None),
        ("head", {"adapter_lr": 1e-2, "backbone_lr": 1e-5}, None),  # of a recipe for several tunings
    ],
)
def test_an_option_for_what_does_not_train_is_refused(tiny: Any, tuning: Any, options: dict[str, Any], says: str | None) -> None:
    network, adapter = tiny.network(), MultiWayAdapter() if tuning == "adapter" else None
    if adapter is not None:
        adapter.inject(network)
    set_tuning(network, adapter, tuning)
    expected = nullcontext() if says is None else pytest.raises(InputError, match=says)
    with expected:
        build(network, Optimization(**options), 10, lambda name: adapter is not None and adapter.owns(name))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_peak_below_the_floor_is_refused(schedule: Any) -> None:
    with pytest.raises(InputError, match=r"optimization\.lr is 1e-07, below optimization\.min_lr \(1e-06\).*: give a min_lr"):
        Optimization(lr=1e-7, schedule=schedule)
    Optimization(lr=1e-6, schedule=schedule)  # flat
    Optimization(lr=1e-3, backbone_lr=1e-7, schedule=schedule)  # comes down by the same factor


# ----------------------------------------------------------------------------------------------------------------- UNITER

IAIS = Path(__file__).parents[1] / "recordings" / "iais"


def test_linear_schedule_is_uniters() -> None:
    recorded = json.loads((IAIS / "recording.json").read_text())["lr_schedule"]
    settings = Optimization(lr=5e-5, min_lr=1e-8, warmup_fraction=0.1, schedule="linear")
    assert len(recorded) > 5
    for done, rate in recorded.items():  # the official schedule is asked with the number of steps done
        assert 5e-5 * schedule_factor(int(done) - 1, 5000, settings) == pytest.approx(rate, rel=1e-12), done


def test_uniter_adamw_is_the_official_one() -> None:
    tensors = load_file(IAIS / "recording.safetensors")
    parameter = nn.Parameter(tensors["inputs/adamw/p0"].clone())
    optimizer = UniterAdamW([parameter], lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    for gradient, after in zip(tensors["inputs/adamw/grads"], tensors["outputs/adamw/params"], strict=True):
        parameter.grad = gradient.clone()
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), after, rtol=1e-6, atol=1e-7)


def test_uniter_adamw_resumes_from_its_state() -> None:
    def run(parameter: nn.Parameter, optimizer: UniterAdamW, steps: range) -> None:
        for step in steps:
            parameter.grad = torch.full_like(parameter, 0.1 * step - 0.3)
            optimizer.step()

    whole, first = (nn.Parameter(torch.arange(4.0)) for _ in range(2))
    run(whole, UniterAdamW([whole], lr=0.1, weight_decay=0.1), range(6))
    begun = UniterAdamW([first], lr=0.1, weight_decay=0.1)
    run(first, begun, range(3))
    second = nn.Parameter(first.detach().clone())
    resumed = UniterAdamW([second], lr=0.1, weight_decay=0.1)
    resumed.load_state_dict(begun.state_dict())
    run(second, resumed, range(3, 6))
    assert torch.equal(second, whole)


def test_uniters_recipe_decays_two_norms_of_the_regions() -> None:
    network = UniterRetrieval(24, 1, 2, 32, 20, 8, 6, tokenizer=None)
    set_tuning(network, None, "full")
    settings = Optimization(weight_decay=0.01, schedule="linear", algorithm="uniter_adamw")
    optimizer, _ = build(network, settings, 10, lambda name: False)
    assert isinstance(optimizer, UniterAdamW)
    groups = named(optimizer.param_groups, network)
    decayed = {name for name, group in groups.items() if group["weight_decay"]}
    vectors = {name for name in decayed if network.get_parameter(name).ndim == 1}
    assert vectors == {"encoder.region_embed.feature_norm.weight", "encoder.region_embed.box_norm.weight"}
    assert "encoder.text_embed.words.weight" in decayed
    assert "itm.weight" not in groups
