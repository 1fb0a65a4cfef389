"""How a comparison's difference varies, and how likely so many seeds and test images are to decide it.

The difference of one seed on one image is taken apart as

    difference[seed, image] = mean + training[seed] + picture[image] + luck[seed, image]

so that over n seeds and m images it varies by training / n + picture / m + luck / (n m), in variances of one each. Several test
sets add up, each with its own images. A ratio is taken as linear about its value.

- With k >= 2 seeds the images give picture and luck (two-way analysis of variance), the seeds' differences training + luck / m.
  Two or three seeds say little of a variance: what the paper's comparisons with several seeds have together, as a multiple of
  each one's own variance over its images, counts beside it as 8 more degrees of freedom.
- With one seed only picture + luck is known. The rest is taken from the paper's other comparisons, where some have several
  seeds; else it is ASSUMED that another training changes a difference by twice the variance by which other images would, and
  that half of the latter is luck. The three seeds of the miniature (512 test images, IAIS 200) had 0.6 times in MWA, 10.5 in
  IAIS and 3.9 in I-Tuning: what is assumed is low for the last two. `benchmarks/power.py` measures it, and how good a prediction
  from one seed is.
- Where there are no images to resample (times, memory, relation distances, BLEU) the seeds are all there is: one says nothing.

What would happen with n seeds is drawn 1,000 times: the true difference anew around today's (all values equally likely before),
how much the seeds vary around its estimate with as many degrees of freedom as that has, then the seeds; those that have run
stay as they are, unless the images are others. Each draw is judged as `verdicts.py` does it, all seeds' signs included: the
bootstrap over seeds and images is, given the seeds' shares, a normal distribution, so no draw is resampled. Its interval counts
luck three times (the luck of a resample's seeds, of its images, and of both), which is how the report's own interval is.

Legend: I images, S seeds of today, K draws of the future, N seeds in the future, C comparisons of a claim, W resamples of
seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from experiments.report.bootstrap import Floats, PerImage, seed_weights, student_quantile
from experiments.report.collect import Cell, Measured
from experiments.report.verdicts import TAIL, Comparison, Quotient, Terms

Test = Literal["greater", "within", "ratio", "mean", "amount", "relative"]
Source = Literal["its seeds", "paper's seeds", "assumed", "no seeds"]
Booleans = npt.NDArray[np.bool_]

FUTURES = 1000
_SEED = 20260814
_ENUMERATED, _FEW = 5, 60  # of so many seeds all resamples are used, of more the first so many


@dataclass(frozen=True)
class Between:
    """How much another training changes a difference.

    Args:
        ratio: Its variance, on average over comparisons, over that of one seed's difference over its images.
        luck: The share of the latter that is not the same for all seeds.
        freedom: Degrees of freedom that it counts for.
        source: Where it is from.
    """

    ratio: float
    luck: float
    freedom: float
    source: Source


ASSUMED = Between(2.0, 0.5, 4.0, "assumed")
_POOLED_FREEDOM = 8.0


@dataclass(frozen=True)
class Difference:
    """A comparison's difference (or ratio) as the runs have it.

    Args:
        by_seed_S: Of each seed.
        sampling: Variance of one seed's difference over its images; None where there are none to resample.
        luck: The part of it that is not the same for all seeds; None with one seed.
        influence_I: By test set: how much each image adds to the mean over seeds, on average 0.
        images: By data set's name: how many.
        seedless: It is of runs that depend on no seed.
    """

    by_seed_S: Floats
    sampling: float | None
    luck: float | None
    influence_I: Mapping[str, Floats]
    images: Mapping[str, int]
    seedless: bool

    @property
    def between(self) -> float | None:
        """Variance over seeds."""
        return float(self.by_seed_S.var(ddof=1)) if len(self.by_seed_S) > 1 else None


@dataclass(frozen=True)
class Model:
    """What a comparison's future is drawn from.

    Args:
        by_seed_S: Of the seeds that have run.
        between: Scale of the variance over seeds on today's images.
        picture: Variance over today's images that all seeds share.
        luck: Variance over today's images of one seed alone.
        freedom: Degrees of freedom behind `between`.
        source: Where `between` is from.
        influence_I: As of `Difference`.
    """

    by_seed_S: Floats
    between: float
    picture: float
    luck: float
    freedom: float
    source: Source
    influence_I: Mapping[str, Floats]

    @property
    def has_images(self) -> bool:
        return bool(self.influence_I)


@dataclass(frozen=True)
class Future:
    """A comparison in every draw.

    Args:
        values_KN: The difference of each seed.
        picture: As of `Model`, with that many images.
        luck: Likewise.
        by_images: Whether it is judged by the bootstrap; else by Student's t over the seeds.
    """

    values_KN: Floats
    picture: float
    luck: float
    by_images: bool


# ------------------------------------------------------------------------------------------------------------- what there is


def difference_of(comparison: Comparison) -> Difference | None:
    """A comparison taken apart; None of a correlation, or where something it divides by is 0."""
    cells = [cell for part in comparison.of for _, cell in (*part.terms, *part.divisor)]
    seeded = [cell for cell in cells if not cell.seedless and not cell.quoted]
    seeds = sorted(set.intersection(*({each.seed for each in cell.measured} for cell in seeded))) if seeded else [0]
    if not cells or not seeds:
        return None
    by_seed, pictured = [], all(cell.quoted or cell.by_image is not None for cell in cells)
    prints: dict[str, list[Floats]] = {}
    images: dict[str, int] = {}
    for seed in seeds:
        total, added = 0.0, dict[str, Floats]()
        for part in comparison.of:
            value, of_images = _quotient(part, seed, pictured)
            if value is None:
                return None
            total += value / len(comparison.of)
            for name, influence_I in of_images.items():
                added[name] = added.get(name, 0.0) + influence_I / len(comparison.of)
        by_seed.append(total)
        for name, influence_I in added.items():
            prints.setdefault(name, []).append(influence_I)
    for cell in cells if pictured else ():
        if not cell.quoted and cell.by_image is not None:
            images[cell.measured[0].data or "test"] = cell.by_image.images
    of_sets = [_variances(np.stack(rows)) for rows in prints.values()]
    sampling = math.fsum(whole for whole, _ in of_sets) if pictured and prints else None
    luck = math.fsum(alone for _, alone in of_sets) if sampling is not None and len(seeds) > 1 else None
    means = {name: np.mean(rows, axis=0) for name, rows in prints.items()}
    return Difference(np.array(by_seed), sampling, luck, means, images, not seeded)


def _quotient(part: Quotient, seed: int, pictured: bool) -> tuple[float | None, dict[str, Floats]]:
    """A seed's value, and by test set what each image adds to it."""
    value, influence = _sum(part.terms, seed, pictured)
    if not part.divisor:
        return value, influence
    divisor, below = _sum(part.divisor, seed, pictured)
    if divisor == 0:
        return None, {}
    ratio = value / divisor
    for name, influence_I in below.items():
        influence[name] = influence.get(name, 0.0) - ratio * influence_I
    return ratio, {name: influence_I / divisor for name, influence_I in influence.items()}


def _sum(terms: Terms, seed: int, pictured: bool) -> tuple[float, dict[str, Floats]]:
    value, influence = 0.0, dict[str, Floats]()
    for weight, cell in terms:
        one = _of_seed(cell, seed)
        value += weight * one.value
        if pictured and one.by_image is not None:
            name = str(one.fingerprint)
            influence[name] = influence.get(name, 0.0) + weight * _influence(one.by_image)
    return value, influence


def _of_seed(cell: Cell, seed: int) -> Measured:
    return next(each for each in cell.measured if cell.seedless or cell.quoted or each.seed == seed)


def _influence(metric: PerImage) -> Floats:
    """[I]: a metric's linear part; its mean over images is 0, and the variance of that mean the metric's."""
    ratio_T = metric.total_IT.sum(0) / metric.count_IT.sum(0)
    influence_IT = (metric.total_IT - ratio_T * metric.count_IT) / metric.count_IT.mean(0)
    return np.asarray(metric.factor * influence_IT.sum(1))


def _variances(influence_SI: Floats) -> tuple[float, float]:
    """Of a mean over the images: the whole, of one seed; and the part of it that the seeds do not share (0 of one seed)."""
    seeds, images = influence_SI.shape
    if images < 2:
        return 0.0, 0.0
    whole = float(influence_SI.var(1, ddof=1).mean()) / images
    if seeds == 1:
        return whole, 0.0
    rest_SI = influence_SI - influence_SI.mean(0) - influence_SI.mean(1, keepdims=True)
    alone = float((rest_SI**2).sum()) / ((seeds - 1) * (images - 1)) / images
    return whole, min(alone, whole)


def pooled(differences: Iterable[Difference]) -> Between:
    """What comparisons with several seeds have together; ASSUMED where there are none."""
    known = [each for each in differences if each.between is not None and each.sampling and not each.seedless]
    if not known:
        return ASSUMED
    weights = [len(each.by_seed_S) - 1 for each in known]
    ratio = np.average([float(each.between or 0) / float(each.sampling or 1) for each in known], weights=weights)
    luck = np.average([float(each.luck or 0) / float(each.sampling or 1) for each in known], weights=weights)
    return Between(float(ratio), float(luck), _POOLED_FREEDOM, "paper's seeds")


def model_of(difference: Difference, others: Between) -> Model | None:
    """What its future is drawn from; None where one seed is all there is and it has no images."""
    seeds, own, sampling = len(difference.by_seed_S), difference.between, difference.sampling
    if difference.seedless:
        return Model(difference.by_seed_S, 0.0, sampling or 0.0, 0.0, math.inf, "no seeds", difference.influence_I)
    if sampling is None:
        return None if own is None else Model(difference.by_seed_S, own, 0.0, 0.0, seeds - 1.0, "its seeds", {})
    freedom = others.freedom + seeds - 1
    # an inverse chi-square of so many degrees of freedom has the mean that `ratio` is; its scale is smaller
    scale = others.ratio * (others.freedom - 2) / others.freedom * sampling
    between = (others.freedom * scale + (seeds - 1) * (own or 0.0)) / freedom
    luck = difference.luck if difference.luck is not None else others.luck * sampling
    source: Source = others.source if own is None else "its seeds"
    return Model(difference.by_seed_S, between, sampling - luck, luck, freedom, source, difference.influence_I)


# ---------------------------------------------------------------------------------------------------------- what would happen


def futures(models: Sequence[Model], seeds: int, images: float = 1.0, anew: bool = False) -> list[Future]:
    """Draws of the comparisons of one claim together: what is luck for one is, as their images say it, luck for the others.

    Args:
        models: Of the comparisons.
        seeds: How many there shall be, at least those that have run.
        images: How many times today's images; others than 1 are another test set.
        anew: Whether another test set and all seeds are drawn, though there are as many images.
    """
    generator = np.random.default_rng(_SEED)
    normal_KCN = generator.standard_normal((FUTURES, len(models), seeds + 2)) if models else np.zeros((FUTURES, 0, seeds + 2))
    normal_KCN = np.einsum("dc,kcn->kdn", _root(_correlation(models)), normal_KCN)
    found = []
    for number, model in enumerate(models):
        normal_KN, run = normal_KCN[:, number], len(model.by_seed_S)
        between_K = np.full(FUTURES, model.between)
        if math.isfinite(model.freedom):
            between_K = model.between * model.freedom / generator.chisquare(model.freedom, FUTURES)
        training_K = np.maximum(between_K - model.luck, 0.0)
        deviation_K = np.sqrt(training_K + model.luck / images) if model.source != "no seeds" else np.zeros(FUTURES)
        today = float(model.by_seed_S.mean())
        if anew or images != 1:
            center_K = today + np.sqrt((training_K + model.luck) / run + model.picture) * normal_KN[:, 0]
            center_K += math.sqrt(model.picture / images) * normal_KN[:, 1]
            values_KN = center_K[:, None] + deviation_K[:, None] * normal_KN[:, 2:]
        else:
            center_K = today + deviation_K / math.sqrt(run) * normal_KN[:, 0]
            new_KN = center_K[:, None] + deviation_K[:, None] * normal_KN[:, 2 : 2 + max(seeds - run, 0)]
            values_KN = np.concatenate([np.tile(model.by_seed_S, (FUTURES, 1)), new_KN], 1)
        found.append(Future(values_KN, model.picture / images, model.luck / images, model.has_images))
    return found


def _correlation(models: Sequence[Model]) -> Floats:
    """[C, C] of the comparisons' differences over the images that they share; without images they are taken as independent."""
    found_CC = np.eye(len(models))
    for i, one in enumerate(models):
        for j, other in enumerate(models[:i]):
            shared = [name for name in one.influence_I if name in other.influence_I]
            product = math.fsum(_mean_product(one.influence_I[name], other.influence_I[name]) for name in shared)
            of_each = [math.fsum(_mean_product(x, x) for x in model.influence_I.values()) for model in (one, other)]
            if product and min(of_each) > 0:
                found_CC[i, j] = found_CC[j, i] = product / math.sqrt(of_each[0] * of_each[1])
    return found_CC


def _mean_product(one_I: Floats, other_I: Floats) -> float:
    """Covariance of two means over the same images."""
    return float(one_I @ other_I) / len(one_I) ** 2 if len(one_I) == len(other_I) else 0.0


def _root(correlation_CC: Floats) -> Floats:
    """[C, C] whose product with itself transposed is the correlation."""
    values_C, vectors_CC = np.linalg.eigh(correlation_CC)
    return np.asarray(vectors_CC * np.sqrt(np.maximum(values_C, 0.0)))


def outcomes(test: Test, bound: float, pairs: int, future: Future) -> tuple[Booleans, Booleans]:
    """[K] supported and [K] contradicted, as `verdicts.py` finds it of a comparison.

    Args:
        test: The claim's.
        bound: What is compared with.
        pairs: How many comparisons the claim has.
        future: Of the comparison.
    """
    above, below = _judges(future)
    if test in ("amount", "relative"):
        nothing = 1.0 if test == "relative" else 0.0
        excluded_K = above(bound, TAIL) | below(bound, TAIL)
        certain_K = above(nothing, TAIL) & below(2 * bound - nothing, TAIL) & (future.values_KN > nothing).all(1)
        return certain_K & ~excluded_K, excluded_K
    over_K = above(bound, TAIL) & (future.values_KN > bound).all(1)
    under_K = below(bound, TAIL / pairs) & (future.values_KN < bound).all(1)
    return (under_K, over_K) if test == "ratio" else (over_K, under_K)


def _judges(future: Future) -> tuple[Callable[[float, float], Booleans], Callable[[float, float], Booleans]]:
    """Whether each draw is above, and below, a bound with so small a p."""
    if future.by_images:
        return (
            lambda bound, p: _share_below(future, np.full(FUTURES, bound)) < p,
            lambda bound, p: _share_below(future, np.full(FUTURES, bound)) > 1 - p,
        )
    t = lambda bound: (future.values_KN.mean(1) - bound) / _error(future)  # noqa: E731
    freedom = future.values_KN.shape[1] - 1
    return (
        lambda bound, p: t(bound) > student_quantile(1 - p, freedom),
        lambda bound, p: t(bound) < -student_quantile(1 - p, freedom),
    )


def half_width(future: Future) -> Floats:
    """[K]: half of the 95 % interval that the report would show."""
    if not future.by_images:
        return np.asarray(_error(future) * student_quantile(1 - TAIL, future.values_KN.shape[1] - 1))
    mean_K, reach = future.values_KN.mean(1), np.ptp(future.values_KN, axis=1) + 6 * math.sqrt(future.picture + future.luck)
    ends = []
    for share in (TAIL, 1 - TAIL):
        low_K, high_K = mean_K - reach, mean_K + reach
        for _ in range(20):
            middle_K = (low_K + high_K) / 2
            under_K = _share_below(future, middle_K) < share
            low_K, high_K = np.where(under_K, middle_K, low_K), np.where(under_K, high_K, middle_K)
        ends.append((low_K + high_K) / 2)
    return np.asarray((ends[1] - ends[0]) / 2)


def _error(future: Future) -> Floats:
    seeds = future.values_KN.shape[1]
    return np.asarray(np.maximum(future.values_KN.std(1, ddof=1) / math.sqrt(seeds), 1e-12))


def _share_below(future: Future, bound_K: Floats) -> Floats:
    """[K]: the share of the bootstrap's resamples at or below a bound: normal where the seeds' shares are given."""
    weights_WN, share_W = _resampled_seeds(future.values_KN.shape[1])
    mean_KW = future.values_KN @ weights_WN.T
    deviation_W = np.sqrt(np.maximum(future.picture + future.luck * (weights_WN**2).sum(1), 1e-24))
    return np.asarray(_normal_cdf((bound_K[:, None] - mean_KW) / deviation_W) @ share_W)


@lru_cache(maxsize=32)
def _resampled_seeds(seeds: int) -> tuple[Floats, Floats]:
    """[W, N] the bootstrap's shares of the seeds, and [W] how often each is drawn."""
    drawn = seed_weights(seeds) if seeds <= _ENUMERATED else seed_weights(seeds)[:_FEW]
    weights_WN, count_W = np.unique(drawn, axis=0, return_counts=True)
    return weights_WN, count_W / count_W.sum()


_GRID = np.linspace(-7, 7, 2801)
_CDF = np.array([NormalDist().cdf(float(each)) for each in _GRID])


def _normal_cdf(z: Floats) -> Floats:
    """To six digits."""
    return np.asarray(np.interp(z, _GRID, _CDF))
