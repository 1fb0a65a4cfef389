"""SigLIP's loss against a loop over pairs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_modules.objectives.sigmoid import SigmoidLoss

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
