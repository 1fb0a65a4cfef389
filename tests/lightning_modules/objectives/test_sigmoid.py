"""SigLIP's loss against a loop over pairs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_library_models import dual_encoder

from datamodules.errors import InputError
from datamodules.records import PairBatch
from lightning_modules.objectives.sigmoid import SigmoidLoss
from lightning_modules.retrieval import RetrievalModule

INDEX = [0, 1, 1, 2, 3, 1, 0]


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(7, 5, generator=generator), dim=1) for _ in range(2))
    return images, texts


def naive(images: torch.Tensor, texts: torch.Tensor, scale: float, bias: float, same_image: str) -> dict[str, float]:
    positive = negative = 0.0
    for i in range(len(images)):
        for j in range(len(images)):
            logit = scale * float(images[i] @ texts[j]) + bias
            same = INDEX[i] == INDEX[j]
            if i == j or (same and same_image == "positive"):
                positive += math.log1p(math.exp(-logit))
            elif not (same and same_image == "ignore"):
                negative += math.log1p(math.exp(logit))
    rows = len(images)
    return {"loss": (positive + negative) / rows, "positive_pairs": positive / rows, "negative_pairs": negative / rows}


@pytest.mark.parametrize("same_image", ["negative", "positive", "ignore"])
def test_terms_equal_the_naive_twin(same_image: Any) -> None:
    images, texts = vectors()
    found = SigmoidLoss(-2.0, same_image)(images, texts, torch.tensor(9.0), torch.tensor(INDEX))
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        naive(images, texts, 9.0, -2.0, same_image), rel=1e-5
    )


def test_it_starts_as_the_paper_says_and_its_bias_learns() -> None:
    images, texts = vectors()
    loss = SigmoidLoss()
    assert float(loss.bias) == -10
    loss(images, texts, torch.tensor(10.0))["loss"].backward()
    assert loss.bias.grad is not None
    assert float(loss.bias.grad) != 0


def test_it_is_fp32_under_autocast_and_asks_for_image_rows() -> None:
    rows = vectors()[0]
    exact = SigmoidLoss()(rows, rows, torch.tensor(14.0))["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SigmoidLoss()(rows, rows, torch.tensor(14.0))["loss"], exact)
    with pytest.raises(ValueError, match="image_index_B"):
        SigmoidLoss(same_image="positive")(rows, rows, torch.tensor(1.0))


@pytest.mark.parametrize(
    ("options", "temperature", "start"),
    [
        ({}, 0.1, 10.0),
        ({}, 0.05, 20.0),
        ({}, None, 1 / 0.07),
        ({"init_temperature": 0.5}, 0.1, 2.0),  # what the network was given
        ({"brought": 3.0}, 0.1, 3.0),  # what a checkpoint brought
    ],
)
def test_the_networks_temperature_starts_where_the_paper_has_it(
    tiny: Any, options: dict[str, float], temperature: float | None, start: float
) -> None:
    brought = options.pop("brought", None)
    network = tiny.network(**options)
    if brought is not None:
        network.logit_scale.data.fill_(math.log(brought))
        network.loaded_heads = frozenset({"logit_scale"})
    module = RetrievalModule(network, tuning="full", objective=SigmoidLoss(init_temperature=temperature))
    assert module.network.logit_scale.exp().item() == pytest.approx(start)
    plain = RetrievalModule(tiny.network(), tuning="full")
    assert plain.network.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_a_temperature_is_positive() -> None:
    with pytest.raises(InputError, match="init_temperature is 0"):
        SigmoidLoss(init_temperature=0.0)


@pytest.mark.parametrize(("tuning", "brought", "starts", "trains"), [
    ("full", False, (10.0, -10.0), True), ("head", False, (10.0, -10.0), True), ("head", True, (1.0, 0.0), True),
    ("frozen", True, (1.0, 0.0), False),
])  # fmt: skip
def test_a_networks_own_bias_is_the_bias(
    tiny: Any, tuning: Any, brought: bool, starts: tuple[float, float], trains: bool
) -> None:
    """The library starts both at 0 (factor 1); the paper's starts are for what nothing brings."""
    network = dual_encoder("siglip")
    if brought:
        network.loaded_heads = frozenset(name for name, _ in network.head_parameters())
    module = RetrievalModule(network, tuning=tuning, objective=SigmoidLoss())
    assert list(module.objective.parameters()) == []
    assert (network.logit_scale.exp().item(), network.logit_bias.item()) == pytest.approx(starts)
    assert network.logit_bias.requires_grad is network.logit_scale.requires_grad is trains
    module.log_terms = lambda terms, size: None  # type: ignore[method-assign] - outside a trainer
    batch = PairBatch(tiny.images(), tiny.texts())
    loss = module.training_step(batch, 0)
    with torch.no_grad():
        images, texts = network.encode_images(batch.images), network.encode_texts(batch.texts)
    expected = naive(images, texts, float(network.logit_scale.exp()), float(network.logit_bias), "negative")
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4)
    if trains:
        loss.backward()
        assert network.logit_bias.grad is not None
        assert network.logit_bias.grad != 0


def test_a_softmax_leaves_the_networks_bias_alone() -> None:
    module = RetrievalModule(dual_encoder("siglip"), tuning="full")
    assert module.network.logit_scale.requires_grad
    assert not module.network.logit_bias.requires_grad
    loss = SigmoidLoss()
    loss.leave_bias()
    with pytest.raises(ValueError, match="the bias is the network's"):
        loss(*vectors(), torch.tensor(1.0))
