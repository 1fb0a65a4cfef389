"""The tasks of pre-training against a few lines that compute them pair by pair, without padding or packing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_pretraining import PAIRS, batch, module, network
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import MaskedBatch
from lightning_modules.networks.uniter_pretraining import UniterPretraining
from lightning_modules.objectives.optimal_transport import transport_distance
from lightning_modules.objectives.pretraining import HiddenClasses, HiddenFeatures, HiddenWords, PairsMatched


def norm(x: Tensor, part: Any) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], part.weight, part.bias, 1e-12)


def states(model: UniterPretraining, data: MaskedBatch, row: int, text_only: bool = False) -> tuple[Tensor, Tensor]:
    """Words [T, D] and regions [R, D] behind the last layer: BERT written out, one pair."""
    encoder, texts, regions = model.encoder, data.texts, data.images.regions
    assert regions is not None
    ids = texts.tokens_BT[row, texts.mask_BT[row]]
    embed, see = encoder.text_embed, encoder.region_embed
    x = norm(embed.words.weight[ids] + embed.positions.weight[: len(ids)] + embed.types.weight[0], embed.norm)
    if not text_only:
        features = regions.features_BRD[row, regions.mask_BR[row]].clone()
        if data.hidden_BR is not None:
            hidden = data.hidden_BR[row, regions.mask_BR[row]]
            features[hidden] = 0
            features = features + hidden[:, None] * see.mask_feature.weight[1]
        seen = norm(see.features(features), see.feature_norm)
        placed = norm(see.boxes(regions.boxes_BR7[row, regions.mask_BR[row]]), see.box_norm)
        x = torch.cat([x, norm(seen + placed + embed.types.weight[1], see.norm)])
    for layer in encoder.layers:
        query, key, value = (part.unflatten(-1, (2, -1)).transpose(0, 1) for part in layer.qkv(x).chunk(3, -1))
        weights = (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])).softmax(-1)
        x = norm(x + layer.out((weights @ value).transpose(0, 1).flatten(1)), layer.attention_norm)
        x = norm(x + layer.fc2(F.gelu(layer.fc1(x))), layer.ffn_norm)
    return x[: len(ids)], x[len(ids) :]


def guess(model: Any, x: Tensor) -> Tensor:
    return norm(F.gelu(model.dense(x)), model.norm)


def mlm(model: UniterPretraining, data: MaskedBatch, text_only: bool = False) -> list[Tensor]:
    losses = []
    assert data.labels_BT is not None
    for row in range(PAIRS):
        words, _ = states(model, data, row, text_only)
        for place in (data.labels_BT[row] >= 0).nonzero().flatten().tolist():
            logits = guess(model.words, words[place]) @ model.encoder.text_embed.words.weight.T + model.words.bias
            losses.append(-logits.log_softmax(-1)[data.labels_BT[row, place]])
    return losses


def hidden_states(model: UniterPretraining, data: MaskedBatch) -> list[tuple[int, int, Tensor]]:
    assert data.hidden_BR is not None
    return [
        (row, place, states(model, data, row)[1][place])
        for row in range(PAIRS)
        for place in data.hidden_BR[row].nonzero().flatten().tolist()
    ]


def mrfr(model: UniterPretraining, data: MaskedBatch) -> list[Tensor]:
    assert data.images.regions is not None
    losses = []
    for row, place, x in hidden_states(model, data):
        feature = guess(model.features, x) @ model.encoder.region_embed.features.weight + model.features.bias
        losses.append((feature - data.images.regions.features_BRD[row, place]) ** 2)
    return losses


def mrc(model: UniterPretraining, data: MaskedBatch) -> list[tuple[Tensor, Tensor]]:
    """Logarithms of the guessed probabilities, and the detector's."""
    assert data.images.regions is not None
    assert data.images.regions.classes_BRC is not None
    assert model.classes is not None
    return [
        (model.classes.out(guess(model.classes, x)).log_softmax(-1), data.images.regions.classes_BRC[row, place])
        for row, place, x in hidden_states(model, data)
    ]


def ipot(words: Tensor, regions: Tensor) -> Tensor:
    """The distance of one pair, without padding (model/ot.py of the released code, in numpy's manner)."""
    cost = 1 - F.normalize(words, dim=1) @ F.normalize(regions, dim=1).T
    kernel, plan = torch.exp(-cost.detach() / 0.5), torch.ones_like(cost)
    a = torch.full((len(words),), 1 / len(words))
    for _ in range(50):
        moved = kernel * plan
        b = 1 / (len(regions) * (moved.T @ a))
        a = 1 / (len(words) * (moved @ b))
        plan = a[:, None] * moved * b[None, :]
    return (cost * plan).sum()


def test_hidden_words_are_guessed_beside_all_regions_or_none() -> None:
    model, data = network(), batch("mlm")
    for text_only in (False, True):
        found = HiddenWords(text_only)(model, data)
        torch.testing.assert_close(found.loss_N, torch.stack(mlm(model, data, text_only)))
    assert found.right_N is not None
    assert found.right_N.shape == (4,)
    assert not torch.allclose(found.loss_N, HiddenWords()(model, data).loss_N)


@pytest.mark.parametrize("reading", ["released", "paper"])
def test_features_of_hidden_regions_in_both_readings(reading: Any) -> None:
    model, data = network(), batch("mrfr")
    squares = torch.stack(mrfr(model, data))
    expected = squares.mean() if reading == "released" else squares.sum() / len(squares)
    torch.testing.assert_close(HiddenFeatures(reading)(model, data).loss_N.mean(), expected)


def test_what_is_hidden_is_not_looked_at() -> None:
    model, data = network(), batch("mrfr")
    assert data.images.regions is not None
    assert data.hidden_BR is not None
    first = model.encode_masked(data).regions_BRD
    data.images.regions.features_BRD[data.hidden_BR] += 7
    again = model.encode_masked(data).regions_BRD
    assert torch.equal(first[data.images.regions.mask_BR], again[data.images.regions.mask_BR])
    data.images.regions.features_BRD[0, 0] += 7  # one that is not hidden
    assert not torch.allclose(first[0, 1], model.encode_masked(data).regions_BRD[0, 1])


@pytest.mark.parametrize("reading", ["released", "paper"])
def test_classes_of_hidden_regions(reading: Any) -> None:
    model, data = network(), batch("mrckl")
    pairs = mrc(model, data)
    terms = torch.stack([soft * (soft.log() - logs) for logs, soft in pairs])
    expected = terms.mean() if reading == "released" else terms.sum() / len(terms)
    found = HiddenClasses("kl", reading)(model, data)
    torch.testing.assert_close(found.loss_N.mean(), expected)
    best = [int(soft[1:].argmax()) + 1 for _, soft in pairs]
    hard = HiddenClasses("class")(model, data)
    torch.testing.assert_close(hard.loss_N, torch.stack([-logs[label] for (logs, _), label in zip(pairs, best, strict=True)]))
    right = [int(logs[1:].argmax()) + 1 == label for (logs, _), label in zip(pairs, best, strict=True)]
    assert hard.right_N is not None
    assert hard.right_N.tolist() == right


@pytest.mark.parametrize("alignment", [0.0, 0.1])
def test_matching_with_words_near_their_regions(alignment: float) -> None:
    model, data = network(), batch("itm")
    assert data.matched_B is not None
    losses = []
    for row, matched in enumerate(data.matched_B.tolist()):
        words, regions = states(model, data, row)
        logits = model.itm(torch.tanh(model.encoder.pooler(words[0])))
        sign = 1 if matched else -1
        losses.append(-logits.log_softmax(-1)[int(matched)] + alignment * sign * ipot(words, regions))
    torch.testing.assert_close(PairsMatched(alignment)(model, data).loss_N, torch.stack(losses), atol=1e-5, rtol=1e-4)


def test_a_plan_moves_all_of_each_word_to_all_of_each_region() -> None:
    """Equal items cost nothing; the plan's rows and columns have the shares of words and regions, whatever is in padding."""
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6)[None] < 4
    assert transport_distance(x, mask, x, mask) < 0.05
    other = x.clone()
    other[0, 4:] = 100
    torch.testing.assert_close(transport_distance(other, mask, x, mask), transport_distance(x, mask, x, mask))
    far = transport_distance(x, mask, -x, mask)
    assert far > 0.5


def test_gradients_are_those_of_the_twin() -> None:
    model = network()
    for task, twin in (
        ("mlm", lambda m, d: torch.stack(mlm(m, d)).mean()),
        ("mrfr", lambda m, d: torch.stack(mrfr(m, d)).mean()),
    ):
        data = batch(task)
        twin(model, data).backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        trained = module(network=model)
        trained.training_step(data, 0).backward()
        for name, gradient in expected.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-5, rtol=1e-3, msg=name)
        # heads of the other tasks have zeros, so that no process waits for them
        assert model.itm.weight.grad is not None
        assert not model.itm.weight.grad.any()
        model.zero_grad()


def test_options_that_are_none() -> None:
    with pytest.raises(InputError, match="target is 'soft'; give kl or class"):
        HiddenClasses("soft")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reading is 'mine'; give released or paper"):
        HiddenFeatures("mine")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="alignment is -1"):
        PairsMatched(-1)
