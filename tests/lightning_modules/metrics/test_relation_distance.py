"""ISDa against a loop written from Algorithm 1 and Eq. 7-9, pair by pair and object by object, and against the worked example."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import Objects
from lightning_modules.metrics.relation_distance import AlignmentDistance, RelationDistance, relation_distances
from lightning_modules.networks.attention import Attended, Items
from lightning_modules.objectives.relation_alignment import RelationAlignment

EXAMPLE = Path(__file__).parents[2] / "recordings" / "iais" / "isda_example.json"
OPTIONS = [
    ("probabilities", "renormalised"),
    ("probabilities", "softmax"),
    ("probabilities", "literal"),
    ("scores", "softmax"),
]
# (words, regions) of every pair, and its objects as (words, regions) among these; a word and a region may be of two objects
PAIRS: list[tuple[int, int, list[tuple[list[int], list[int]]]]] = [
    (5, 4, [([0, 1], [0, 3]), ([2], [1]), ([1, 4], [1, 2])]),
    (2, 3, [([0], [0, 1, 2]), ([1], [2])]),
    (3, 1, [([0], [0])]),  # one object
    (4, 4, []),
    (1, 2, [([0], [0]), ([], [1]), ([0], [])]),  # one object: the others are without words or without regions
    (3, 4, [([0, 1, 2], [3]), ([2], [0]), ([0], [0, 1, 2, 3]), ([1], [2])]),
]
WORDS, REGIONS, OBJECTS = 5, 4, 4


def batch(spread: float = 1.5, seed: int = 0) -> tuple[Attended, Items, Items, Objects]:
    generator = torch.Generator().manual_seed(seed)
    length = WORDS + REGIONS + 2
    queries, keys = (spread * torch.randn(len(PAIRS), 3, length, 5, generator=generator) for _ in range(2))
    words = Items(
        torch.arange(1, WORDS + 1).repeat(len(PAIRS), 1), torch.stack([torch.arange(WORDS) < words for words, _, _ in PAIRS])
    )
    starts = torch.tensor([words + 2 for words, _, _ in PAIRS])
    regions = Items(
        starts[:, None] + torch.arange(REGIONS), torch.stack([torch.arange(REGIONS) < count for _, count, _ in PAIRS])
    )
    objects = Objects(
        torch.zeros(len(PAIRS), OBJECTS, WORDS + 2, dtype=torch.bool),
        torch.zeros(len(PAIRS), OBJECTS, REGIONS, dtype=torch.bool),
        torch.zeros(len(PAIRS), OBJECTS, dtype=torch.bool),
    )
    for pair, (_, _, things) in enumerate(PAIRS):
        for row, (of_words, of_regions) in enumerate(things):
            objects.words_BNT[pair, row, [word + 1 for word in of_words]] = True
            objects.regions_BNR[pair, row, of_regions] = True
            objects.mask_BN[pair, row] = True
    return Attended(queries, keys), words, regions, objects


# ------------------------------------------------------------------------------------------------------------ naive twin


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    return [math.exp(value - top) / sum(math.exp(other - top) for other in values) for value in values]


def mean_of(matrices: list[list[list[float]]]) -> list[list[float]]:
    return [[sum(m[i][j] for m in matrices) / len(matrices) for j in range(len(row))] for i, row in enumerate(matrices[0])]


def between(matrix: list[list[float]], things: list[list[int]]) -> list[list[float]]:
    return [[sum(matrix[p][q] for p in one for q in other) / len(one) for other in things] for one in things]


def naive_isda(
    queries: Tensor, keys: Tensor, places: dict[str, list[int]], things: list[tuple[list[int], list[int]]],
    compression: str, rows: str,
) -> tuple[float, int] | None:  # fmt: skip
    """Sum over rows and number of objects of one pair; None where it does not count."""
    things = [each for each in things if each[0] and each[1]]
    if len(things) < 2:
        return None
    found = []
    for side, own in (("L", [each[0] for each in things]), ("V", [each[1] for each in things])):
        scores = [
            [[float(queries[h, i] @ keys[h, j]) / math.sqrt(queries.shape[2]) for j in places[side]] for i in places[side]]
            for h in range(len(queries))
        ]
        if compression == "scores":
            found.append(mean_of([[softmax(row) for row in between(head, own)] for head in scores]))
            continue
        among = between(mean_of([[softmax(row) for row in head] for head in scores]), own)
        if rows == "renormalised":
            among = [[value / sum(row) for value in row] for row in among]
        elif rows == "softmax":
            among = [softmax(row) for row in among]
        found.append(among)
    total = 0.0
    for row, other in zip(*found, strict=True):
        total += sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(row, other, strict=True))
    return total, len(things)


def naive(attended: Attended, words: Items, regions: Items, compression: str, rows: str) -> list[tuple[float, int]]:
    found = []
    for b, (word_count, region_count, things) in enumerate(PAIRS):
        places = {"L": words.place_BN[b, :word_count].tolist(), "V": regions.place_BN[b, :region_count].tolist()}
        one = naive_isda(attended.queries_BHQD[b].double(), attended.keys_BHKD[b].double(), places, things, compression, rows)
        if one is not None:
            found.append(one)
    return found


@pytest.mark.parametrize(("compression", "rows"), OPTIONS)
def test_it_is_the_algorithm_pair_by_pair(compression: Any, rows: Any) -> None:
    attended, words, regions, objects = batch()
    metric = RelationDistance(compression, rows)
    metric.update(attended, words, regions, objects)
    expected = naive(attended, words, regions, compression, rows)
    found = metric.compute()
    assert found["isda_pairs"] == len(expected) == 3
    assert found["isda"].item() == pytest.approx(sum(total for total, _ in expected) / 3, rel=1e-5)
    assert found["isda_mean"].item() == pytest.approx(sum(total / count for total, count in expected) / 3, rel=1e-5)
    assert found["isda"] > 0.05 * (rows != "softmax" or compression == "scores")


def test_the_options_are_different_readings() -> None:
    values = set()
    for compression, rows in OPTIONS:
        metric = RelationDistance(compression, rows)  # type: ignore[arg-type]
        metric.update(*batch())
        values.add(round(metric.compute()["isda"].item(), 4))
    assert len(values) == len(OPTIONS)


VARIANTS = {
    "A_prob_renorm": ("probabilities", "renormalised", "isda"),
    "A_mean": ("probabilities", "renormalised", "isda_mean"),
    "B_score_softmax": ("scores", "softmax", "isda"),
    "C_prob_literal": ("probabilities", "literal", "isda"),
    "D_prob_softmax": ("probabilities", "softmax", "isda"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_worked_example(variant: str) -> None:
    example = json.loads(EXAMPLE.read_text())
    compression, rows, reduction = VARIANTS[variant]
    expected = next(value for name, value in example["variants"].items() if name.split(" ")[0].rstrip(":") == variant)
    things = list(example["objects"].values())
    maps, masks = [], []
    for scores, part in (("S_LL_scores", "tokens"), ("S_VV_scores", "regions")):
        matrix = torch.tensor(example[scores], dtype=torch.float64)
        maps.append((matrix if compression == "scores" else matrix.softmax(-1))[None, None])
        mask = torch.zeros(1, len(things), len(matrix), dtype=torch.bool)
        for row, thing in enumerate(things):
            mask[0, row, thing[part]] = True
        masks.append(mask)
    of_rows, count = relation_distances(*maps, *masks, torch.ones(1, len(things), dtype=torch.bool), compression, rows)  # type: ignore[arg-type]
    value = of_rows.sum() / (count[0] if reduction == "isda_mean" else 1)
    assert value.item() == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------------------------------------------------ as a metric


def rows_of(part: slice, parts: tuple[Attended, Items, Items, Objects]) -> tuple[Attended, Items, Items, Objects]:
    attended, words, regions, objects = parts
    return (
        Attended(attended.queries_BHQD[part], attended.keys_BHKD[part]),
        Items(words.place_BN[part], words.mask_BN[part]),
        Items(regions.place_BN[part], regions.mask_BN[part]),
        Objects(objects.words_BNT[part], objects.regions_BNR[part], objects.mask_BN[part]),
    )


def merged(metric: Any, other: Any) -> Any:
    """As torchmetrics reduces states over two processes."""
    for name, reduce in metric._reductions.items():
        setattr(metric, name, reduce(torch.stack([getattr(metric, name), getattr(other, name)])))
    metric._update_count += other._update_count
    return metric


@pytest.mark.parametrize("kind", [RelationDistance, AlignmentDistance])
def test_several_batches_and_two_processes_are_one(kind: Any) -> None:
    def arguments(part: slice) -> tuple[Any, ...]:
        return rows_of(part, batch())[: 4 if kind is RelationDistance else 3]

    whole, first, second = kind(), kind(), kind()
    whole.update(*arguments(slice(None)))
    first.update(*arguments(slice(0, 1)))
    first.update(*arguments(slice(1, 4)))
    second.update(*arguments(slice(4, None)))
    found, expected = merged(first, second).compute(), whole.compute()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6), name
    assert expected[next(iter(expected))] > 0
    whole.reset()
    assert whole.pairs == 0


def test_nothing_to_compare_is_nan_and_no_pair() -> None:
    metric = RelationDistance()
    metric.update(*rows_of(slice(2, 5), batch()))
    metric_of_losses = AlignmentDistance()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert metric_of_losses.compute()["iais_singular"].isnan()
    found = metric.compute()
    assert found["isda"].isnan()
    assert found["isda_mean"].isnan()
    assert found["isda_pairs"] == 0


@pytest.mark.parametrize(("compression", "rows"), OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_and_peaked_attention_are_finite(compression: Any, rows: Any, dtype: torch.dtype) -> None:
    attended, words, regions, objects = batch(spread=30.0 if dtype == torch.float32 else 8.0)
    half = Attended(attended.queries_BHQD.to(dtype), attended.keys_BHKD.to(dtype))
    metric, same = RelationDistance(compression, rows), RelationDistance(compression, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(half, words, regions, objects)
    same.update(Attended(half.queries_BHQD.float(), half.keys_BHKD.float()), words, regions, objects)
    assert math.isfinite(metric.compute()["isda"].item())
    assert metric.compute()["isda"] == same.compute()["isda"]


def test_padded_columns_of_tokens_and_regions_change_nothing() -> None:
    attended, words, regions, objects = batch()
    wide = replace(
        objects,
        words_BNT=torch.nn.functional.pad(objects.words_BNT, (0, 3)),
        regions_BNR=torch.nn.functional.pad(objects.regions_BNR, (0, 2)),
    )
    narrow = replace(objects, words_BNT=objects.words_BNT[..., : WORDS + 1])  # no column for the last [SEP]
    values = []
    for each in (objects, wide, narrow):
        metric = RelationDistance()
        metric.update(attended, words, regions, each)
        values.append(metric.compute()["isda"].item())
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize(
    ("part", "place", "what"),
    [("words_BNT", (0, 0, 0), "words"), ("words_BNT", (0, 0, 6), "words"), ("words_BNT", (1, 0, 3), "words"),
     ("regions_BNR", (1, 1, 3), "regions")],
    ids=["begin", "end", "padding", "no region"],
)  # fmt: skip
def test_objects_that_are_elsewhere_are_told(part: str, place: tuple[int, ...], what: str) -> None:
    attended, words, regions, objects = batch()
    getattr(objects, part)[place] = True
    with pytest.raises(InputError, match=f"no {what}"):
        RelationDistance().update(attended, words, regions, objects)


def test_options_that_do_not_exist_are_told() -> None:
    for options in (("attention",), ("probabilities", "normalized")):
        with pytest.raises(InputError, match="choose probabilities or scores"):
            RelationDistance(*options)
    with pytest.raises(InputError, match="set rows to softmax"):
        RelationDistance("scores")
    with pytest.raises(InputError, match="sum or mean"):
        AlignmentDistance(anchors="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("reading", ["released", "paper"])
def test_distances_are_the_losses_of_both_anchors(reading: Any) -> None:
    attended, words, regions, _ = batch()
    words.mask_BN[3] = False  # a pair without words counts nowhere
    metric, halved = AlignmentDistance(reading), AlignmentDistance(reading, "mean")
    metric.update(attended, words, regions)
    halved.update(attended, words, regions)
    found = metric.compute()
    for kind in ("singular", "distributed"):
        terms = RelationAlignment(kind, reading)(attended, words, regions, ("language", "vision"))  # type: ignore[arg-type]
        expected = sum(terms["language"].tolist()) + sum(terms["vision"].tolist())
        assert found[f"iais_{kind}"].item() == pytest.approx(expected / (len(PAIRS) - 1), rel=1e-6)
        assert halved.compute()[f"iais_{kind}"].item() == pytest.approx(expected / (len(PAIRS) - 1) / 2, rel=1e-6)
    assert found["iais_pairs"] == len(PAIRS) - 1
