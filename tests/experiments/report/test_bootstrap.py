"""Intervals and p-values: against slow twins, tables of Student's t, and cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fake_runs import captions, ranks, recalls

from experiments.report.bootstrap import (
    RESAMPLES,
    PerImage,
    correlation_interval,
    draws,
    interval,
    mean_of,
    over_queries,
    over_seeds,
    per_image,
    seed_weights,
    student_cdf,
    student_quantile,
)


def test_a_recall_by_image_is_the_recall_and_resamples_like_the_slow_twin() -> None:
    arrays = ranks(np.random.default_rng(0), 0.4, images=17)
    for name, value in recalls(arrays).items():
        found = per_image(name, arrays, value)
        if name == "i2t_medr":
            assert found is None, "a median is no mean over images"
            continue
        assert found is not None
        assert found.value() == pytest.approx(value)
        weights_BI = draws(17)
        resamples = found.resamples()
        for b in (0, 5, 1999):
            chosen = np.repeat(np.arange(17), weights_BI[b].astype(int))
            assert len(chosen) == 17
            drawn = {key: [] for key in arrays}
            for image in chosen:  # an image with all its captions, as often as it was drawn
                for side in ("i2t", "t2i"):
                    drawn[f"{side}_rank"] += arrays[f"{side}_rank"][arrays[f"{side}_image_index"] == image].tolist()
            naive = recalls({key: np.array(values) for key, values in drawn.items()})
            assert resamples[b] == pytest.approx(naive[name])


def test_caption_scores_have_intervals_and_metrics_that_are_no_means_have_none() -> None:
    arrays = captions(np.random.default_rng(1), 0.5)
    found = per_image("cider", arrays, float(arrays["cider"].mean()))
    assert found is not None
    low, high = interval(found.resamples())
    error = arrays["cider"].std() / math.sqrt(len(arrays["cider"]))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert per_image("cider", arrays, 0.123) is None, "the file does not give the stored value: BLEU, or another file"
    assert per_image("in-domain/cider", arrays, 0.5) is None


def test_captions_of_an_image_are_drawn_together() -> None:
    """Five identical answers an image are one answer: the interval must not shrink by sqrt(5)."""
    owner = np.arange(100).repeat(5)
    found_of_image = np.random.default_rng(2).random(100) < 0.5
    arrays = {"t2i_rank": np.where(found_of_image[owner], 1, 9), "t2i_image_index": owner}
    value = 100 * found_of_image.mean()
    together = per_image("t2i_r1", arrays, float(value))
    assert together is not None
    low, high = interval(together.resamples())
    assert high - low == pytest.approx(2 * 196 * math.sqrt(found_of_image.var() / 100), rel=0.15)


def test_draws_are_the_same_every_time_and_each_of_full_size() -> None:
    first = draws(7).copy()
    draws.cache_clear()
    assert (draws(7) == first).all()
    assert (first.sum(1) == 7).all()
    assert first.shape == (RESAMPLES, 7)


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_resampled_seeds_vary_as_their_mean_does(seeds: int) -> None:
    weights_BS = seed_weights(seeds)
    assert weights_BS.shape == (RESAMPLES, seeds)
    assert weights_BS.sum(1) == pytest.approx(np.ones(RESAMPLES))
    values = np.random.default_rng(3).normal(size=seeds)
    assert (weights_BS @ values).std() == pytest.approx(values.std(ddof=1) / math.sqrt(seeds), rel=0.1)
    assert (seed_weights(1) == 1).all()


def test_seeds_are_no_certain_numbers() -> None:
    """Two rows that do not differ, training with four times the images' variance: how often three seeds "support" a difference.
    docs/papers.md has these rates, of 20,000 trials."""
    generator = np.random.default_rng(4)
    images_B, of_images_T, trials = generator.normal(size=RESAMPLES), generator.normal(size=3000), 3000
    of_seeds_TS = of_images_T[:, None] + 2 * generator.normal(size=(trials, 3))
    agree_T = (of_seeds_TS > 0).all(1)
    below_T = ((of_seeds_TS @ seed_weights(3).T + images_B) <= 0).mean(1)
    images_alone_T = of_seeds_TS.mean(1) > 1.96
    assert (agree_T & images_alone_T).mean() > 0.07
    assert 0.025 < (agree_T & (below_T < 0.025)).mean() < 0.055


def test_the_mean_over_seeds_is_of_the_same_queries_only() -> None:
    one, other = (PerImage(np.full((4, 1), value), np.ones((4, 1)), 100.0) for value in (0.2, 0.6))
    mean = mean_of([one, other])
    assert mean is not None
    assert mean.value() == pytest.approx(40)
    assert mean_of([one, PerImage(np.ones((5, 1)), np.ones((5, 1)), 100.0)]) is None
    assert mean_of([one, PerImage(np.ones((4, 1)), np.full((4, 1), 2.0), 100.0)]) is None


def test_student() -> None:
    for freedom, printed in ((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)):
        assert student_quantile(0.975, freedom) == pytest.approx(printed, abs=6e-4)
        assert student_cdf(printed, freedom) + student_cdf(-printed, freedom) == pytest.approx(1)
    assert student_cdf(0.0, 5) == 0.5
    # the distribution by brute force
    steps = np.linspace(-60, 1.3, 200_001)
    density = (1 + steps**2 / 3) ** -2 * 2 / (math.pi * math.sqrt(3))
    assert student_cdf(1.3, 3) == pytest.approx(float(np.trapezoid(density, steps)), abs=1e-4)


def test_over_seeds() -> None:
    assert over_seeds([1.0], 0.0) is None
    spread = over_seeds([1.0, 1.2, 0.8], 0.0)
    assert spread is not None
    assert (spread.low, spread.high) == pytest.approx((1 - 4.3027 * 0.11547, 1 + 4.3027 * 0.11547), abs=1e-3)
    assert spread.above < 0.01 < 0.99 < spread.below
    same = over_seeds([2.0, 2.0], 3.0)
    assert same is not None
    assert (same.above, same.below) == (1.0, 0.0)


def test_over_queries_counts_resamples_beyond_the_bound() -> None:
    resamples = np.linspace(-1, 9, 2000)
    spread = over_queries(resamples, 4.0, 0.0)
    assert spread.above == pytest.approx(0.1, abs=2e-3)
    assert spread.below == pytest.approx(0.9, abs=2e-3)
    assert over_queries(np.full(2000, 5.0), 5.0, 0.0).above == 1 / 2001


def test_fishers_interval() -> None:
    low, high = correlation_interval(-0.6, 20) or (0, 0)
    assert (low, high) == pytest.approx((-0.824, -0.214), abs=2e-3)
    assert correlation_interval(0.9, 3) is None
    assert correlation_interval(1.0, 9) == (1.0, 1.0)
