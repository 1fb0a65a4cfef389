"""Margin ranking and mining against recorded tensors and loops."""

from __future__ import annotations

import math

import pytest
import torch
from uniter_recording import recorded

from datamodules.errors import InputError
from lightning_modules.checkpoints.uniter import to_official
from lightning_modules.objectives.matching import MarginRanking, Matching, hardest


def test_margin_and_its_gradients_are_the_official_ones() -> None:
    official = recorded()
    network, size = official.network, official.meta["pairs_num"]
    scores = network.score(official.packed())[0].view(-1, size)
    loss = MarginRanking(official.meta["margin"])(scores)
    torch.testing.assert_close(loss, official.tensors["outputs/margin/rank_loss_mean"], atol=1e-6, rtol=0)
    loss.backward()
    ours = to_official({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    theirs = official.group("grads/margin/")
    assert len(theirs) > 5
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-6, name


def test_mining_finds_the_official_negatives() -> None:
    official = recorded()
    scores, expected = official.tensors["inputs/hn_select/scores"], official.tensors["outputs/hn_select/indices"]
    found = hardest(scores.T, official.meta["hard_size"])[0]
    assert found[0] == 0
    assert sorted(found.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("hinge", ["each", "sum"])
def test_it_is_the_equation(hinge: str) -> None:
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    rows = [[1 / (1 + math.exp(-value)) for value in row] for row in scores.tolist()]
    if hinge == "each":
        expected = sum(max(0.0, 0.2 + negative - row[0]) for row in rows for negative in row[1:]) / 12
    else:
        expected = sum(max(0.0, sum(row[1:]) - row[0] + 0.2) for row in rows) / 3
    assert MarginRanking(0.2, hinge)(scores).item() == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


def test_mining_prefers_the_lower_column_on_ties() -> None:
    assert hardest(torch.tensor([[9.0, 1.0, 2.0, 2.0, 2.0, 0.0]]), 2).tolist() == [[0, 2, 3]]
    with pytest.raises(InputError, match="3 hard negatives of 2 candidates"):
        hardest(torch.zeros(1, 3), 3)
    with pytest.raises(InputError, match="each, sum"):
        MarginRanking(hinge="all")  # type: ignore[arg-type]


def test_matching_is_balanced_binary_cross_entropy() -> None:
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    positives = [-math.log(1 / (1 + math.exp(-float(row[0])))) for row in scores.detach()]
    negatives = [-math.log(1 - 1 / (1 + math.exp(-float(score)))) for row in scores.detach() for score in row[1:]]
    loss = Matching()(scores)
    assert loss.item() == pytest.approx((sum(positives) / 3 + sum(negatives) / 12) / 2, rel=1e-5)
    loss.backward()
    assert scores.grad is not None
    assert (scores.grad[:, 0] < 0).all()
    assert (scores.grad[:, 1:] > 0).all()
    assert Matching()(torch.tensor([[200.0, -200.0]])).isfinite()
