"""IAIS against the official code's recorded losses and gradients, and against loops written from the equations."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from uniter_recording import Recorded, recorded

from datamodules.errors import InputError
from lightning_modules.checkpoints.uniter import to_official
from lightning_modules.networks.attention import Attended, Items
from lightning_modules.networks.packing import items_of
from lightning_modules.objectives.annealing import Annealing
from lightning_modules.objectives.relation_alignment import IAIS, RelationAlignment

KINDS, READINGS = ("singular", "distributed"), ("released", "paper")
LETTER = {"language": "L", "vision": "V"}


@pytest.fixture(scope="module")
def official() -> Recorded:
    return recorded()


def items_of_recorded(official: Recorded, rows: slice = slice(None)) -> tuple[Items, Items]:
    relations = items_of(official.packed(), {}, torch.arange(len(official.words))[rows])
    return relations.words, relations.regions


def cut(attended: Attended, rows: slice) -> Attended:
    return attended.rows(torch.arange(len(attended.queries_BHQD))[rows])


@pytest.mark.parametrize("anchor", LETTER)
@pytest.mark.parametrize("kind", KINDS)
def test_released_reading_is_the_official_code(official: Recorded, kind: Any, anchor: Any) -> None:
    loss = RelationAlignment(kind)
    words, regions = items_of_recorded(official)
    with torch.no_grad():
        joint = official.network.encoder(official.packed(), attention=[0, 1, 2])
        name = f"{kind}_{LETTER[anchor]}"
        pairs = loss(joint.attention[2], words, regions, (anchor,))[anchor]
        torch.testing.assert_close(pairs, official.tensors[f"outputs/iais_all/{name}/per_pair"], atol=2e-6, rtol=1e-5)
        for layer in range(3):
            value = loss(joint.attention[layer], words, regions, (anchor,))[anchor].mean()
            torch.testing.assert_close(value, official.tensors[f"outputs/iais_layer/{name}/layer_{layer}"], atol=2e-6, rtol=1e-5)
        positives = slice(None, None, official.meta["pairs_num"])
        some = loss(cut(joint.attention[2], positives), *items_of_recorded(official, positives), (anchor,))[anchor]
        torch.testing.assert_close(some, official.tensors[f"outputs/iais_pos/{name}/per_pair"], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_released_gradients_are_the_official_ones(official: Recorded, kind: Any) -> None:
    network = official.network
    network.zero_grad()
    joint = network.encoder(official.packed(), attention=[2])
    terms = RelationAlignment(kind)(joint.attention[2], *items_of_recorded(official), ("language", "vision"))
    (terms["language"].mean() + terms["vision"].mean()).backward()
    ours = to_official({name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()})
    theirs = official.group(f"grads/iais_all/{kind}_LV/")
    assert len(theirs) >= 4
    for name, gradient in theirs.items():
        # key biases have gradient 0 in exact arithmetic: what is recorded there is rounding
        scale = max(gradient.abs().max().item(), 1e-4)
        assert (ours[name] - gradient).abs().max().item() <= 1e-4 * scale + 1e-7, name


# ------------------------------------------------------------------------------------------------------------ naive twin


def naive(queries: Tensor, keys: Tensor, words: list[int], regions: list[int], anchor: str, kind: str, reading: str) -> float:
    """One pair, from Algorithm 2 and Eq. 8-13, item by item. [H, S, D] queries and keys."""
    heads, _, width = queries.shape
    places = {"L": words, "V": regions}
    own, other = ("L", "V") if anchor == "language" else ("V", "L")

    def score(head: int, i: int, j: int) -> float:
        return float(queries[head, i] @ keys[head, j]) / math.sqrt(width)

    def softmax(values: list[float]) -> list[float]:
        top = max(values)
        total = sum(math.exp(value - top) for value in values)
        return [math.exp(value - top) / total for value in values]

    def mean_of_heads(matrices: list[list[list[float]]]) -> list[list[float]]:
        return [[sum(m[i][j] for m in matrices) / heads for j in range(len(matrices[0][0]))] for i in range(len(matrices[0]))]

    def raw(rows: str, columns: str, head: int) -> list[list[float]]:
        return [[score(head, i, j) for j in places[columns]] for i in places[rows]]

    def attention(rows: str, columns: str) -> list[list[float]]:
        return mean_of_heads([[softmax(row) for row in raw(rows, columns, head)] for head in range(heads)])

    mine = attention(own, own)
    size = len(places[own])
    if kind == "distributed":
        to, back = attention(own, other), attention(other, own)
        mirror = [[sum(to[i][k] * back[k][j] for k in range(len(back))) for j in range(size)] for i in range(size)]
    elif reading == "released":
        across, theirs = attention(own, other), attention(other, other)
        star = [row.index(max(row)) for row in across]
        mirror = [softmax([theirs[star[i]][star[j]] for j in range(size)]) for i in range(size)]
    else:
        across = mean_of_heads([raw(own, other, head) for head in range(heads)])
        star = [row.index(max(row)) for row in across]
        per_head = []
        for head in range(heads):
            theirs = raw(other, other, head)
            per_head.append([softmax([theirs[star[i]][star[j]] for j in range(size)]) for i in range(size)])
        mirror = mean_of_heads(per_head)
    eps = 1e-6 if kind == "distributed" and reading == "released" else 0.0
    total = 0.0
    for i, j in itertools.product(range(size), range(size)):
        p, q = mine[i][j], mirror[i][j]
        total += p * (math.log(p) - math.log(q + eps)) + q * (math.log(q) - math.log(p + eps))
    return total / size if reading == "released" else total


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anchor", LETTER)
def test_it_is_the_equations_pair_by_pair(kind: Any, reading: Any, anchor: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    queries, keys = (torch.randn(4, 3, 11, 5, generator=generator) * 1.5 for _ in range(2))
    content = [[1, 2, 3], [1], [2, 3, 4, 5], [1, 2]]
    boxes = [[5, 6, 7, 8], [4, 6], [8], [4, 5, 10]]
    words, regions = padded(content), padded(boxes)
    got = RelationAlignment(kind, reading)(Attended(queries, keys), words, regions, (anchor,))[anchor]
    expected = [naive(queries[b], keys[b], content[b], boxes[b], anchor, kind, reading) for b in range(4)]
    torch.testing.assert_close(got, torch.tensor(expected), atol=2e-6, rtol=2e-5)
    assert max(expected) > 0.01


def padded(places: list[list[int]]) -> Items:
    longest = max(map(len, places))
    return Items(
        torch.tensor([row + [0] * (longest - len(row)) for row in places]),
        torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in places]),
    )


# ------------------------------------------------------------------------------------------------------------ robustness


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [1, 30])  # 30: every attention is on one item, and gradients may vanish
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_nan_with_peaked_attention_single_items_or_none(kind: Any, reading: Any, dtype: torch.dtype, spread: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = ((torch.randn(4, 2, 9, 4, generator=generator) * spread).to(dtype).requires_grad_() for _ in range(2))
    words = padded([[1, 2, 3], [1], [], [1, 2]])
    regions = padded([[4, 5], [4], [4, 5, 6], []])
    terms = RelationAlignment(kind, reading)(Attended(queries, keys), words, regions, ("language", "vision"))
    total = terms["language"].sum() + terms["vision"].sum()
    total.backward()
    assert torch.isfinite(total)
    for anchor in terms:  # one word and one region: nothing to align, but for the released code's 1e-6 in the logarithms
        assert terms[anchor][1].item() == pytest.approx(0, abs=2.5e-6)
    for pair in (2, 3):
        assert terms["language"][pair] == 0 == terms["vision"][pair]
    for states in (queries, keys):
        assert states.grad is not None
        assert torch.isfinite(states.grad).all()
        assert spread > 1 or states.grad[0].abs().sum() > 0
        assert not states.grad[2:].any()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_scale_does_not_make_gradients_infinite(kind: Any, reading: Any) -> None:
    """fp16 training multiplies the loss by up to 2^24 before the backward pass; attention here underflows at most items."""
    generator = torch.Generator().manual_seed(2)
    queries, keys = ((torch.randn(3, 2, 12, 4, generator=generator) * 12).requires_grad_() for _ in range(2))
    words, regions = padded([[1, 2, 3, 4]] * 3), padded([[5, 6, 7, 8, 9, 10]] * 3)
    terms = RelationAlignment(kind, reading)(Attended(queries, keys), words, regions, ("language", "vision"))
    (2.0**24 * (terms["language"].sum() + terms["vision"].sum())).backward()
    for states in (queries, keys):
        assert states.grad is not None
        assert torch.isfinite(states.grad).all()
        assert states.grad.any()


def test_both_anchors_at_once_are_each_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    attended = Attended(*(torch.randn(2, 2, 8, 4, generator=generator) for _ in range(2)))
    words, regions = padded([[1, 2, 3], [1, 2]]), padded([[4, 5, 6], [5, 6, 7]])
    loss = RelationAlignment("distributed")
    both = loss(attended, words, regions, ("language", "vision"))
    for anchor in LETTER:
        assert torch.equal(both[anchor], loss(attended, words, regions, (anchor,))[anchor])  # type: ignore[arg-type,index]


def test_annealing_is_the_official_schedule(official: Recorded) -> None:
    steps = [0.1 * i for i in range(11)]
    for name, schedule, scale in [
        ("linear_schedule", "linear", 5), ("exp_schedule_scale5", "exp", 5), ("log_schedule_scale5", "log", 5),
        ("exp_schedule_scale10", "exp", 10), ("log_schedule_scale10", "log", 10),
    ]:  # fmt: skip
        values = [Annealing(schedule, scale)(int(1000 * step + 0.5), 1000) for step in steps]  # type: ignore[arg-type]
        assert values == pytest.approx(official.meta["tsa"][name], abs=1e-7), name
    assert Annealing("constant", weight=0.5)(3, 10) == 0.5
    assert Annealing(weight=2.0)(10, 10) == 2.0


def test_a_mistyped_kind_is_told() -> None:
    with pytest.raises(InputError, match="singular or distributed"):
        RelationAlignment("single")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- IAIS itself


def test_which_anchor_sees_which_side() -> None:
    released, paper = IAIS(), IAIS(reading="paper")
    assert released.anchors_of("hard_texts") == ("vision",)
    assert released.anchors_of("hard_images") == ("language",)
    assert paper.anchors_of("hard_texts") == paper.anchors_of("hard_images") == ("language", "vision")
    assert IAIS(anchors="vision").anchors_of("hard_images") == ()
    assert IAIS(anchors="vision", positives="all").anchors_of("hard_images") == ("vision",)
    assert (released.factor(hard_negatives=True), released.factor(hard_negatives=False)) == (8, 1)
    assert (paper.factor(hard_negatives=True), paper.factor(hard_negatives=False)) == (1, 1)
    for hard_negatives in (True, False):
        assert IAIS(reduction="mean").factor(hard_negatives) == 1
        assert IAIS(reading="paper", reduction="sum").factor(hard_negatives) == 8


def test_layers_count_from_either_end_and_are_averaged(official: Recorded) -> None:
    assert IAIS().of_network(3) == [2]
    both = IAIS(kind="distributed", layers=[0, -2])
    assert both.of_network(3) == [0, 1]
    for wrong in ([3], [-4], []):
        with pytest.raises(InputError, match="layers 0 to 2"):
            IAIS(layers=wrong).of_network(3)
    packed = official.packed()
    with torch.no_grad():
        relations = items_of(packed, official.network.encoder(packed, attention=both.of_network(3)).attention)
        found = both(relations)
    assert set(found) == {"language", "vision"}
    for anchor, letter in (("language", "L"), ("vision", "V")):
        theirs = [official.tensors[f"outputs/iais_layer/distributed_{letter}/layer_{layer}"] for layer in (0, 1)]
        torch.testing.assert_close(found[anchor].mean(), torch.stack(theirs).mean(), atol=2e-6, rtol=1e-5)
    assert set(both(relations, ("vision",))) == {"vision"}


def test_iais_has_no_parameters() -> None:
    assert not list(IAIS().parameters())
    assert not list(IAIS().buffers())
