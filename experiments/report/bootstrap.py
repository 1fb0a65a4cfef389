"""How sure a number is: intervals over the queries of a test set, paired tests on the same queries, tests over seeds.

Images are resampled, and the captions of an image go with it: five captions of one picture are no five independent queries. All
intervals of test sets of one size share their draws, so that a difference of two rows is paired by subtracting their resamples.
The draws are fixed, so a report of the same runs is the same report.

Legend: I images, T terms of a metric, B resamples, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
_SEED = 20210804
_RANKS = {"i2t_r": "i2t_rank", "t2i_r": "t2i_rank"}
_RECALLS = tuple(f"{side}{k}" for side in _RANKS for k in (1, 5, 10))


@dataclass(frozen=True)
class PerImage:
    """A metric taken apart by image: its value is the sum over terms of sum(weight * total) / sum(weight * count).

    Args:
        total_IT: A recall's found queries of each image, or an image's caption score.
        count_IT: Queries of each image: 1, or its captions.
        factor: On the sum: 100 where the metric is in percent.
    """

    total_IT: Floats
    count_IT: Floats
    factor: float

    @property
    def images(self) -> int:
        return len(self.total_IT)

    def value(self) -> float:
        """The metric itself."""
        return float(self.factor * (self.total_IT.sum(0) / self.count_IT.sum(0)).sum())

    def resamples(self) -> Floats:
        """[B] values of the metric on resampled images, the same draws for all metrics of test sets of this size."""
        return self._resampled

    @cached_property
    def _resampled(self) -> Floats:  # many claims ask for the same ones
        weights_BI = draws(self.images)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.factor * ((weights_BI @ self.total_IT) / (weights_BI @ self.count_IT)).sum(1)


@lru_cache(maxsize=4)
def draws(images: int) -> Floats:
    """[B, I]: how often each image is in each resample of `images` draws."""
    chosen_BI = np.random.default_rng(_SEED).integers(images, size=(RESAMPLES, images))
    counts = np.bincount((chosen_BI + np.arange(RESAMPLES)[:, None] * images).ravel(), minlength=RESAMPLES * images)
    return counts.reshape(RESAMPLES, images).astype(np.float64)


@lru_cache(maxsize=16)
def seed_weights(seeds: int) -> Floats:
    """[B, S]: the share of each seed in each resample of seeds.

    One fewer is drawn than there are (Rao and Wu 1988): the mean of so many draws has the variance of the mean of the seeds; that
    of as many draws has (S - 1) / S of it, half for two seeds.
    """
    drawn = max(seeds - 1, 1)
    chosen_BD = np.random.default_rng([_SEED, seeds]).integers(seeds, size=(RESAMPLES, drawn))
    counts = np.bincount((chosen_BD + np.arange(RESAMPLES)[:, None] * seeds).ravel(), minlength=RESAMPLES * seeds)
    return counts.reshape(RESAMPLES, seeds) / drawn


def per_image(metric: str, arrays: Mapping[str, npt.NDArray[Any]], value: float) -> PerImage | None:
    """A metric of an evaluation by image, from its per-query file; None where it is no mean over images (BLEU, medians, relation
    distances, a domain of NoCaps), which is seen by whether the file gives the stored value.

    Args:
        metric: As in results.json.
        arrays: Of the per-query file: ranks from 1, or a score of each image.
        value: The metric as results.json has it.
    """
    names = {"rsum": _RECALLS, "mean_recall": _RECALLS}.get(metric, (metric,))
    factor = 100.0 / (len(_RECALLS) if metric == "mean_recall" else 1)
    if metric in arrays:
        scores_I = np.asarray(arrays[metric], np.float64)
        found = PerImage(scores_I[:, None], np.ones((len(scores_I), 1)), 1.0)
    elif all(name[:5] in _RANKS and name[5:].isdigit() and _RANKS[name[:5]] in arrays for name in names):
        images = 1 + max(int(arrays[f"{name[:3]}_image_index"].max(initial=0)) for name in names)
        columns = [_by_image(arrays, name[:3], int(name[5:]), images) for name in names]
        found = PerImage(np.stack([total for total, _ in columns], 1), np.stack([count for _, count in columns], 1), factor)
    else:
        return None
    return found if math.isclose(found.value(), value, rel_tol=1e-4, abs_tol=1e-12) else None


def _by_image(arrays: Mapping[str, npt.NDArray[Any]], side: str, k: int, images: int) -> tuple[Floats, Floats]:
    """Queries of each image that were found among the first k, and all of them."""
    image = arrays[f"{side}_image_index"]
    found = (arrays[f"{side}_rank"] <= k).astype(np.float64)
    return np.bincount(image, found, images).astype(np.float64), np.bincount(image, minlength=images).astype(np.float64)


def mean_of(parts: Sequence[PerImage]) -> PerImage | None:
    """The mean over seeds of a metric, by image; None where they were not measured on the same queries."""
    first = parts[0]
    if any(each.count_IT.shape != first.count_IT.shape or (each.count_IT != first.count_IT).any() for each in parts):
        return None
    return PerImage(np.mean([each.total_IT for each in parts], 0), first.count_IT, first.factor)


def interval(resamples: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of resampled values."""
    low, high = np.nanquantile(resamples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share_below(resamples: Floats, bound: float) -> float:
    """One-sided p-value of "the value is above `bound`": the share of resamples at or below it, never 0."""
    valid = resamples[np.isfinite(resamples)]
    return (float((valid <= bound).sum()) + 1) / (len(valid) + 1)


@dataclass(frozen=True)
class Spread:
    """A mean with its interval and p-values of the two one-sided questions.

    Args:
        mean: Of what was asked.
        low: Of the 95 % interval.
        high: Of the 95 % interval.
        above: p of "it is above the bound".
        below: p of "it is below the bound".
    """

    mean: float
    low: float
    high: float
    above: float
    below: float


def over_queries(difference: Floats, mean: float, bound: float) -> Spread:
    """Of resampled values (of a difference or ratio) against a bound."""
    low, high = interval(difference)
    return Spread(mean, low, high, share_below(difference, bound), share_below(-difference, -bound))


def over_seeds(values: Sequence[float], bound: float) -> Spread | None:
    """Student's t over seeds against a bound; None of fewer than two seeds. Where all seeds agree exactly there is no spread to
    test with, and p is 0 or 1."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if error <= 1e-12 * max(1.0, abs(mean)):
        return Spread(mean, mean, mean, float(mean <= bound), float(mean >= bound))
    freedom = len(values) - 1
    reach = error * student_quantile((1 + LEVEL) / 2, freedom)
    below = student_cdf((mean - bound) / error, freedom)
    return Spread(mean, mean - reach, mean + reach, 1 - below, below)


def student_cdf(t: float, freedom: int) -> float:
    """Student's distribution for whole degrees of freedom, in closed form (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine2, term = math.cos(angle) ** 2, 1.0 if freedom % 2 == 0 else math.cos(angle)
    total = 0.0
    for step in range(freedom // 2):
        total += term
        term *= cosine2 * (2 * step + 1 + freedom % 2) / (2 * step + 2 + freedom % 2)
    inside = math.sin(angle) * total if freedom % 2 == 0 else 2 / math.pi * (angle + math.sin(angle) * total)
    return (1 + inside) / 2


def student_quantile(probability: float, freedom: int) -> float:
    """The inverse of `student_cdf`, for probabilities over one half."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < probability else (low, middle)
    return high


def correlation_interval(r: float, points: int) -> tuple[float, float] | None:
    """Fisher's 95 % interval of Pearson's r; None of fewer than four points."""
    if points < 4:
        return None
    if abs(r) >= 1:
        return r, r
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) / math.sqrt(points - 3)
    return math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)
