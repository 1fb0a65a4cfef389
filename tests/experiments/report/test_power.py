"""The planner on made-up differences whose components are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.papers.schema import Claim, Column, Exhibit, Variant
from experiments.report.bootstrap import PerImage
from experiments.report.collect import Cell, Measured, VariantView, View
from experiments.report.power import (
    ASSUMED,
    Difference,
    Future,
    Model,
    difference_of,
    futures,
    half_width,
    model_of,
    outcomes,
    pooled,
)
from experiments.report.verdicts import Comparison, judge

IMAGES = 60
CIDER = Column("cider", "CIDEr", metric="cider")


def sweep(
    generator: np.random.Generator, seeds: int, mean: float, training: float, picture: float, luck: float, images: int = IMAGES
) -> np.ndarray:
    """[S, I] differences with these standard deviations."""
    by_seed_S1, by_image_I = generator.normal(0, training, (seeds, 1)), generator.normal(0, picture, images)
    return np.asarray(mean + by_seed_S1 + by_image_I + generator.normal(0, luck, (seeds, images)))


def judged(difference_SI: np.ndarray, test: str = "greater") -> Comparison:
    """What a report finds of row A, which is so much above row B."""
    other_I = np.linspace(3, 5, difference_SI.shape[1])

    def cell(label: str, scores_SI: np.ndarray) -> Cell:
        found = [PerImage(scores_I[:, None], np.ones((len(scores_I), 1)), 1.0) for scores_I in scores_SI]
        return Cell(label, CIDER, None, tuple(Measured(s, each.value(), each, "f", "coco") for s, each in enumerate(found)))

    cells = {"A": cell("A", other_I + difference_SI), "B": cell("B", np.tile(other_I, (len(difference_SI), 1)))}
    exhibit = Exhibit("made up", "table", variants=[Variant(label, {}) for label in cells], columns=[CIDER])
    variants = [VariantView(Variant(label, {}), {}, {"cider": each}) for label, each in cells.items()]
    claim = Claim("a claim", test, [["A", "cider"]], [["B", "cider"]], 1.0 if test == "ratio" else 0.0)  # type: ignore[arg-type]
    return judge(View("mwa/made", exhibit, "miniature", tuple(variants)), claim).comparisons[0]


@pytest.mark.parametrize(
    ("training", "picture", "luck", "seeds"), [(0.1, 1.0, 1.0, 3), (0.0, 0.0, 1.5, 3), (0.3, 1.0, 0.5, 5), (0.1, 1.0, 1.0, 2)]
)
def test_components_and_half_width_are_those_of_the_sweeps(training: float, picture: float, luck: float, seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    reports = [judged(sweep(generator, seeds, 0.4, training, picture, luck)) for _ in range(120)]
    found = [each for report in reports if (each := difference_of(report)) is not None]
    between, whole, alone = training**2 + luck**2 / IMAGES, (picture**2 + luck**2) / IMAGES, luck**2 / IMAGES
    assert np.mean([each.sampling for each in found]) == pytest.approx(whole, rel=0.05)
    assert np.mean([each.luck for each in found]) == pytest.approx(alone, rel=0.05)
    assert np.mean([each.between for each in found]) == pytest.approx(between, rel=0.25)  # chi-square of 120 to 480 degrees
    model = Model(np.array([0.4]), between, whole - alone, alone, math.inf, "assumed", {"f": np.ones(IMAGES)})
    future = futures([model], seeds, anew=True)[0]
    measured = [(each.spread.high - each.spread.low) / 2 for each in reports if each.spread is not None]
    assert half_width(future).mean() == pytest.approx(np.mean(measured), rel=0.06), "what a report would show"
    # of sweeps with a known mean: how often the report decides
    normal_KN = np.random.default_rng(0).normal(0, 1, (1000, seeds + 1))
    values_KN = 0.4 + math.sqrt(whole - alone) * normal_KN[:, :1] + math.sqrt(between) * normal_KN[:, 1:]
    supported_K, _ = outcomes("greater", 0.0, 1, Future(values_KN, whole - alone, alone, True))
    assert supported_K.mean() == pytest.approx(np.mean([each.outcome == "supported" for each in reports]), abs=0.13)


def test_one_seed_foretells_three_where_the_assumption_holds() -> None:
    generator = np.random.default_rng(4)
    inside, close = [], []
    for _ in range(150):
        luck = picture = 1.0
        between = ASSUMED.ratio * (picture**2 + luck**2) / IMAGES
        differences_SI = sweep(generator, 3, 0.0, math.sqrt(between - luck**2 / IMAGES), picture, luck)
        alone, together = difference_of(judged(differences_SI[:1])), judged(differences_SI)
        assert alone is not None
        assert together.spread is not None
        assert alone.between is None
        assert alone.luck is None
        model = model_of(alone, ASSUMED)
        assert model is not None
        assert model.source == "assumed"
        future = futures([model], 3)[0]
        assert (future.values_KN[:, 0] == alone.by_seed_S[0]).all(), "the seed that has run stays as it is"
        low, high = np.quantile(future.values_KN.mean(1), [0.025, 0.975])
        inside.append(low <= together.spread.mean <= high)
        close.append((together.spread.high - together.spread.low) / 2 / np.median(half_width(future)))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.04)
    assert np.median(close) == pytest.approx(1.0, abs=0.2)


def test_seeds_of_other_comparisons_say_how_much_one_seed_may_vary() -> None:
    generator = np.random.default_rng(5)
    several = [difference_of(judged(sweep(generator, 3, 0.0, 0.5, 1.0, 1.0))) for _ in range(80)]
    one = difference_of(judged(sweep(generator, 1, 0.0, 0.5, 1.0, 1.0)))
    assert one is not None
    others = pooled(each for each in [*several, one] if each is not None)
    truth = (0.25 + 1 / IMAGES) / (2 / IMAGES)
    assert others.source == "paper's seeds"
    assert others.ratio == pytest.approx(truth, rel=0.25)
    assert others.luck == pytest.approx(0.5, rel=0.05)
    model = model_of(one, others)
    assert model is not None
    assert model.source == "paper's seeds"
    drawn = futures([model], 2)[0].values_KN[:, 1] - one.by_seed_S[0]
    assert np.var(drawn) == pytest.approx(2 * others.ratio * float(one.sampling or 0), rel=0.25), "of the difference of two seeds"
    assert pooled([one]) is ASSUMED


def test_a_ratio_is_linear_about_its_value() -> None:
    generator = np.random.default_rng(6)
    compared = judged(sweep(generator, 1, 0.4, 0.0, 1.0, 1.0, images=400), "ratio")
    found = difference_of(compared)
    assert found is not None
    assert compared.spread is not None
    assert found.by_seed_S[0] == pytest.approx(compared.spread.mean)
    assert 1.96 * math.sqrt(float(found.sampling or 0)) == pytest.approx(
        (compared.spread.high - compared.spread.low) / 2, rel=0.08
    )
    future = Future(np.full((1000, 3), 0.9), 0.0001, 0.0, True)
    assert outcomes("ratio", 1.0, 1, future)[0].all(), "at or below is what a ratio claims"


def test_without_images_seeds_are_all_there_is() -> None:
    one = Difference(np.array([1.0]), None, None, {}, {}, False)
    assert model_of(one, ASSUMED) is None
    model = model_of(Difference(np.array([1.0, 1.1, 0.9]), None, None, {}, {}, False), ASSUMED)
    assert model is not None
    assert model.source == "its seeds"
    assert not model.has_images
    supported_K, contradicted_K = outcomes("greater", 0.0, 1, futures([model], 3)[0])
    assert supported_K.all()
    assert not contradicted_K.any()
    assert half_width(futures([model], 3)[0])[0] == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    supported_K, contradicted_K = outcomes("amount", 2.0, 1, futures([model], 3)[0])
    assert contradicted_K.all(), "the interval excludes the claimed size"
    assert not supported_K.any()


def test_runs_without_a_seed_are_the_same_with_any_number() -> None:
    fixed = Difference(np.array([0.5]), 0.04, None, {"f": np.ones(9)}, {"coco": 9}, True)
    model = model_of(fixed, ASSUMED)
    assert model is not None
    assert model.source == "no seeds"
    assert (futures([model], 5)[0].values_KN == 0.5).all()
    assert futures([model], 1, images=4)[0].values_KN.std() == pytest.approx(math.sqrt(0.04 + 0.01), rel=0.1)


def test_comparisons_of_one_claim_share_their_luck() -> None:
    influence_I = np.random.default_rng(7).normal(0, 1, 50)
    models = [
        Model(np.array([0.0]), 1.0, 0.5, 0.5, math.inf, "assumed", {name: sign * influence_I})
        for name, sign in (("f", 1), ("f", 1), ("f", -1), ("g", 1))
    ]
    correlation_CC = np.corrcoef([each.values_KN[:, 1] for each in futures(models, 2)])
    assert correlation_CC[0] == pytest.approx([1, 1, -1, 0], abs=0.1)


def test_every_seed_must_agree() -> None:
    values_KN = np.full((1000, 10), 2.0)
    assert outcomes("greater", 0.0, 1, Future(values_KN, 0.01, 0.0, True))[0].all()
    values_KN[:, 3] = -0.1
    assert not outcomes("greater", 0.0, 1, Future(values_KN, 0.01, 0.0, True))[0].any()
    assert not outcomes("within", -0.05, 1, Future(-values_KN, 0.01, 0.0, True))[1].any()
    values_KN[:, 3] = 0.1
    assert outcomes("within", -0.05, 1, Future(-values_KN, 0.01, 0.0, True))[1].all()
