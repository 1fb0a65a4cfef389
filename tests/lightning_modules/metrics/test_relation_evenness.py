"""Evenness against a loop over rows in plain Python, and at its two ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.metrics.relation_evenness import RelationEvenness
from lightning_modules.networks.attention import Attended, Items
from tests.lightning_modules.metrics.test_relation_distance import PAIRS, batch, merged, rows_of, softmax


def naive(queries: Tensor, keys: Tensor, places: list[int]) -> float:
    """Of one pair and side, head by head and row by row."""
    found = []
    for i in places:
        heads = [
            softmax([float(queries[h, i] @ keys[h, j]) / math.sqrt(queries.shape[2]) for j in places])
            for h in range(len(queries))
        ]
        row = [sum(head[j] for head in heads) / len(heads) for j in range(len(places))]
        found.append(math.exp(-sum(p * math.log(p) for p in row)) / len(places))
    return sum(found) / len(found)


def arguments(part: slice = slice(None), spread: float = 1.5) -> tuple[Any, ...]:
    return rows_of(part, batch(spread))[:3]


def test_it_is_the_definition_row_by_row() -> None:
    attended, words, regions = arguments()
    metric = RelationEvenness()
    metric.update(attended, words, regions)
    for name, side, items in (("words", 0, words), ("regions", 1, regions)):
        found = [
            naive(attended.queries_BHQD[b].double(), attended.keys_BHKD[b].double(), items.place_BN[b, :count].tolist())
            for b, count in enumerate(pair[side] for pair in PAIRS)
            if count > 1  # of one there is nothing to choose from
        ]
        assert len(found) < len(PAIRS)
        assert metric.compute()[f"evenness_{name}"].item() == pytest.approx(sum(found) / len(found), rel=1e-5)


def test_even_attention_is_1_and_all_of_it_on_one_is_1_of_n() -> None:
    attended, words, regions = arguments(slice(0, 1))
    metric = RelationEvenness()
    metric.update(Attended(torch.zeros_like(attended.queries_BHQD), attended.keys_BHKD), words, regions)
    assert metric.compute() == {"evenness_words": pytest.approx(1.0), "evenness_regions": pytest.approx(1.0)}
    peaked = RelationEvenness()
    same = attended.queries_BHQD[:, :1, :1].expand_as(attended.queries_BHQD)
    peaked.update(Attended(1e4 * same, attended.keys_BHKD[:, :1].expand_as(attended.keys_BHKD)), words, regions)
    assert peaked.compute() == {"evenness_words": pytest.approx(1 / 5), "evenness_regions": pytest.approx(1 / 4)}


def test_several_batches_and_two_processes_are_one() -> None:
    whole, first, second = RelationEvenness(), RelationEvenness(), RelationEvenness()
    whole.update(*arguments())
    first.update(*arguments(slice(0, 1)))
    first.update(*arguments(slice(1, 4)))
    second.update(*arguments(slice(4, None)))
    found, expected = merged(first, second).compute(), whole.compute()
    for name, value in expected.items():
        assert 0 < value < 1
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6), name


def test_what_is_no_item_changes_nothing_and_nothing_is_nan() -> None:
    attended, words, regions = arguments()
    wide = Items(torch.nn.functional.pad(words.place_BN, (0, 2)), torch.nn.functional.pad(words.mask_BN, (0, 2)))
    narrow, padded = RelationEvenness(), RelationEvenness()
    narrow.update(attended, words, regions)
    padded.update(attended, wide, regions)
    assert padded.compute() == pytest.approx({name: value.item() for name, value in narrow.compute().items()})
    empty = RelationEvenness()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert empty.compute()["evenness_words"].isnan()
