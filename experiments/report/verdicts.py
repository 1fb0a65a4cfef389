"""What our numbers say about a claim: supported, contradicted or not decided, and how that was found.

The numbers of a test set are compared on the same queries: images are resampled 2,000 times, and several seeds too, the same ones
for both variants; the difference of two variants has the 95 % interval of its resamples. Numbers without queries (relation
distances, BLEU, times, memory) are compared seed by seed with Student's t, which one seed cannot; times and memory only where
both were measured on the same device with as many processes and threads. What is counted (parameters) is compared as it is.

A claim of several comparisons is supported when each of them is (no correction is due: all must hold), and contradicted when one
is, with p divided by their number. With several seeds all must also agree in sign. Whatever is found holds at the scale, on the
data and with the seeds it was measured with, and says so.

A mean of several differences (means.py) is above 0 or above another such mean, or has a claimed size: supported where the
interval holds it and lies between nothing and twice it (an interval that is wider holds any size), contradicted where the
interval excludes it. A printed number of a system that is not run here is compared at full scale only, and taken as exact.

Rows that were tested on different data, or have no seed in common, are not compared.

What this does not cover: one seed says nothing of another training. Simulated for two variants without a difference (normal
errors, those of the images the same for all seeds; 20,000 trials), where training adds to a difference's variance as much as the
choice of images does, or four times as much, "greater" is supported in 8 % or 19 % of cases with one seed, 4 % or 7 % with two, 3
% or 4 % with three, 2.7 % or 2.9 % with five, instead of 2.5 % (docs/papers.md).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.errors import InputError
from experiments.papers.schema import Claim, Gain
from experiments.report.bootstrap import Floats, Spread, correlation_interval, over_queries, over_seeds, share_below
from experiments.report.collect import Cell, View, unlike
from experiments.report.correlation import pearson
from experiments.report.means import MeanGain, common_seeds, fingerprints, mean_gain, resamples, with_seeds
from experiments.runs.metrics_csv import validations
from experiments.runs.store import Run

Outcome = Literal["supported", "contradicted", "not decided", "not tested"]
TAIL = 0.025


Terms = tuple[tuple[float, Cell], ...]  # the sum of weight times cell


@dataclass(frozen=True)
class Quotient:
    """What is compared, in cells that have the same seeds: a sum, or one divided by another. `power.py` takes it apart.

    Args:
        terms: Of the sum.
        divisor: Of the other one; empty where nothing is divided.
    """

    terms: Terms
    divisor: Terms = ()


@dataclass(frozen=True)
class Comparison:
    """One pair of a claim.

    Args:
        what: "MWA minus KE only, COCO IR@1".
        outcome: Of this pair alone.
        spread: What was compared with the bound, its interval and p; None where nothing could be tested.
        bound: What it was compared with.
        how: The test, or why there is none.
        of: What was compared is the mean of these; empty of a correlation.
    """

    what: str
    outcome: Outcome
    spread: Spread | None
    bound: float
    how: str
    of: tuple[Quotient, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Of one claim.

    Args:
        claim: The claim.
        outcome: In a word.
        scope: What it is limited to: scale, data, seeds.
        summary: Why, in a sentence.
        comparisons: The numbers.
    """

    claim: Claim
    outcome: Outcome
    scope: str
    summary: str
    comparisons: tuple[Comparison, ...] = ()

    @property
    def tested(self) -> str | None:
        """What of the claim the test is of, where it is not the whole claim."""
        return None if self.claim.test == "none" else self.claim.reason

    @property
    def sentence(self) -> str:
        """The outcome, never without its scope."""
        return f"{self.outcome} {self.scope}".strip() if self.outcome in ("supported", "contradicted") else self.outcome


def judge(view: View, claim: Claim) -> Verdict:
    """The verdict of one claim of an exhibit."""
    if claim.test == "none":
        return Verdict(claim, "not tested", "", claim.reason or "there is no test of it here")
    if claim.test == "correlation" and not claim.high:
        return _of_checkpoints(view, claim)
    gains = [pair for gain in (claim.gain, claim.than) if gain is not None for pair in gain.cells]
    quoted = {pair[0]: None for pair in (*claim.high, *claim.low, *gains) if view.cell(*pair).quoted}
    if quoted and view.scale != "full":
        why = f"{_list(list(quoted))} {'is' if len(quoted) == 1 else 'are'} not run here: what the paper prints is of full scale"
        return Verdict(claim, "not decided", "", why)
    if claim.gain is not None:
        return _of_gains(view, claim, claim.gain)
    high = [view.cell(*pair) for pair in claim.high]
    low = [view.cell(*pair) for pair in claim.low]
    if not high or len(high) != len(low):
        raise InputError(f"{view.name}: the claim {claim.text[:60]!r} compares {len(high)} numbers with {len(low)}; give pairs")
    if claim.test == "correlation":
        return _of_variants(claim, [each.mean for each in high], [each.mean for each in low], scope_of(view, [*high, *low]))
    pairs = [in_common(one, other) for one, other in zip(high, low, strict=True) if one.planned and other.planned]
    if not pairs:
        return Verdict(claim, "not decided", "", f"what it compares is not run at {view.scale} scale")
    scope = scope_of(view, [each for pair in pairs for each in pair])
    if len(pairs) < len(high):
        scope += f", {len(pairs)} of its {len(high)} comparisons"  # the others have no run at this scale
    missing = list(dict.fromkeys(f"{each.variant} ({each.column.label})" for pair in pairs for each in pair if each.mean is None))
    there = [(one, other) for one, other in pairs if one.mean is not None and other.mean is not None]
    if claim.test == "ratio" and not missing:
        return _concluded(claim, scope, (_ratio(claim, [one for one, _ in pairs], [other for _, other in pairs]),))
    tested = tuple(_pair(claim, one, other, len(pairs)) for one, other in there if claim.test != "ratio")
    verdict = _concluded(claim, scope, tested) if tested else None
    if not missing and verdict is not None:
        return verdict
    if verdict is not None and verdict.outcome == "contradicted":
        return verdict  # one is enough, whatever the others will be
    return Verdict(claim, "not decided", "", f"nothing measured of {_list(missing)}", tested)


def _of_gains(view: View, claim: Claim, gain: Gain) -> Verdict:
    """Of the mean of several differences: above that of others, or of a claimed size."""
    gains = [gain, *([claim.than] if claim.than else [])]
    cells = [view.cell(*pair) for each in gains for pair in each.cells]
    if not all(each.planned for each in cells):
        return Verdict(claim, "not decided", "", f"what it compares is not all run at {view.scale} scale")
    if missing := list(dict.fromkeys(f"{each.variant} ({each.column.label})" for each in cells if each.mean is None)):
        return Verdict(claim, "not decided", "", f"nothing measured of {_list(missing)}")
    if not (seeds := common_seeds(cells)):
        return Verdict(claim, "not decided", "", "its rows have no seed in common")
    if why := _unlike(*cells):
        return Verdict(claim, "not decided", "", why)
    for each in gains:
        for column in each.columns:
            of, over = (fingerprints([view.cell(row, column) for row in rows]) for rows in (each.of, each.over))
            if of and over and {*of} != {*over}:
                why = f"the rows were not tested on the same data: {view.cell(each.of[0], column).column.label}"
                return Verdict(claim, "not decided", "", why)
    measured = [mean_gain(view, each, seeds, fingerprints(cells)) for each in gains]
    between = " over " if claim.test == "relative" else " minus "
    what = between.join(f"({_gain_name(view, each)})" if len(gains) > 1 else _gain_name(view, each) for each in gains)
    compared = _of_means(claim, measured[0], measured[1] if claim.than else None)
    terms = [_terms(view, each, seeds) for each in gains]
    quotient = Quotient(terms[0], terms[1] if claim.test == "relative" else ())
    if claim.test == "mean" and claim.than is not None:
        quotient = Quotient((*terms[0], *((-weight, cell) for weight, cell in terms[1])))
    compared = replace(compared, what=what, of=(quotient,))
    return _concluded(claim, scope_of(view, [with_seeds(each, seeds) for each in cells]), (compared,))


def _terms(view: View, gain: Gain, seeds: Sequence[int]) -> Terms:
    """A gain as the sum that `mean_gain` measures."""
    sides = ((1.0, gain.of), (-1.0, gain.over))
    return tuple(
        (sign / (len(rows) * len(gain.columns)), with_seeds(view.cell(row, column), seeds))
        for sign, rows in sides
        for row in rows
        for column in gain.columns
    )


def _gain_name(view: View, gain: Gain) -> str:
    """ "MWA minus full, IR@1": the first of each, and how many more."""
    called = {each.declared.label: each.label for each in view.variants}
    rows = [
        called.get(names[0], names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for names in (gain.of, gain.over)
    ]
    labels = [each.label for each in view.exhibit.columns if each.name in gain.columns]
    return f"{rows[0]} minus {rows[1]}, {' and '.join(labels) if len(labels) < 3 else f'mean of {len(labels)} columns'}"


def _of_means(claim: Claim, gain: MeanGain, than: MeanGain | None) -> Comparison:
    """mean, amount and relative. A size is supported where its interval holds the claimed one and lies between nothing and twice
    it, and contradicted where the interval excludes the claimed one, on either side."""
    seeds, divided = list(gain.by_seed), claim.test == "relative"
    bound, nothing = claim.margin, 1.0 if divided else 0.0
    other = dict.fromkeys(seeds, 0.0) if than is None else than.by_seed
    if divided:
        certain = than is not None and (than.resamples is None or share_below(than.resamples, 0.0) < TAIL)
        if not certain or min(other.values()) <= 0:
            return Comparison("", "not decided", None, bound, "what it is divided by is not certainly above 0")
    drawn = gain.resamples
    if drawn is not None and than is not None:
        with np.errstate(divide="ignore"):
            drawn = None if than.resamples is None else drawn / than.resamples if divided else drawn - than.resamples
    found = [gain.by_seed[seed] / other[seed] if divided else gain.by_seed[seed] - other[seed] for seed in seeds]
    base = 0.0 if than is None else than.mean
    whole = gain.mean / base if divided else gain.mean - base
    spread: Spread | None = Spread(whole, math.nan, math.nan, math.nan, math.nan)
    how = _NO_SPREAD
    if drawn is not None:
        spread = over_queries(drawn, whole, bound)
        how = "bootstrap over the images of each test set" + f" and {len(seeds)} seeds in common" * (len(seeds) > 1)
    elif len(seeds) > 1:
        spread, how = over_seeds(found, bound), f"Student's t over {len(seeds)} seeds"
    if claim.test == "mean":
        return Comparison("", _outcome(spread, [each - bound for each in found], bound, 1), spread, bound, how)
    outcome: Outcome = "not decided"
    if spread is not None and not math.isnan(spread.low):
        if not spread.low <= bound <= spread.high:
            outcome = "contradicted"
        elif nothing < spread.low and spread.high < 2 * bound - nothing and all(each > nothing for each in found):
            outcome = "supported"
    return Comparison("", outcome, spread, bound, how)


def scope_of(view: View, cells: Iterable[Cell]) -> str:
    """ "at miniature scale, embedded world, 3 seeds" of what was measured."""
    cells = [each for each in cells if each.measured]
    seeds = [each.n for each in cells if not each.counted and not each.seedless] or [each.n for each in cells]
    if not seeds:
        return f"at {view.scale} scale"
    number = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    data = sorted({measured.data for each in cells for measured in each.measured if measured.data})
    where = ["embedded world"] if view.scale == "miniature" else data
    mixed = [measured for each in cells if unlike(each.measured) for measured in each.measured]
    return ", ".join([f"at {view.scale} scale", *where, f"{number} seed{'' if number == '1' else 's'}", *unlike(mixed)])


# ------------------------------------------------------------------------------------------------------------------ pairs


def _pair(claim: Claim, high: Cell, low: Cell, pairs: int) -> Comparison:
    """greater and within of one pair."""
    what = _name(high, low, "minus")
    bound = -claim.margin if claim.test == "within" else claim.margin
    spread, how, signs = _spread(high, low, lambda a, b: a - b, bound)
    of = (Quotient(((1.0, high), (-1.0, low))),)
    return Comparison(what, _outcome(spread, signs, bound, pairs), spread, bound, how, of)


def _ratio(claim: Claim, high: Sequence[Cell], low: Sequence[Cell]) -> Comparison:
    """The mean of the pairs' ratios against the margin; "supported" is at or below it."""
    what = f"{_name(high[0], low[0], 'over')}" + (f" and {len(high) - 1} more" if len(high) > 1 else "")
    if any(measured.value == 0 for each in low for measured in each.measured):
        return Comparison(what, "not decided", None, claim.margin, "a divisor is 0")
    if len(high) == 1:
        spread, how, signs = _spread(high[0], low[0], lambda a, b: a / b, claim.margin)
    else:
        # Of several ratios only the mean is claimed: it has a spread where all have one on the same seeds.
        by_seed = [_by_seed(one, other, lambda a, b: a / b) for one, other in zip(high, low, strict=True)]
        seeds = set.intersection(*(set(each) for each in by_seed))
        means = [statistics.fmean(each[seed] for each in by_seed) for seed in sorted(seeds)]
        whole = statistics.fmean(float(one.mean or 0) / float(other.mean or 1) for one, other in zip(high, low, strict=True))
        unlike = next((found for pair in zip(high, low, strict=True) if (found := _unlike(*pair) or apart(*pair))), None)
        spread, how = None, unlike or _NO_SPREAD
        if all(each.counted for each in (*high, *low)):
            spread, how = _certain(whole, claim.margin), "counted, not measured"
        elif not unlike and len(means) > 1:
            spread, how = over_seeds(means, claim.margin), f"Student's t over {len(means)} seeds"
        spread = spread or Spread(whole, math.nan, math.nan, math.nan, math.nan)
        signs = [mean - claim.margin for mean in means]
    of = tuple(Quotient(((1.0, one),), ((1.0, other),)) for one, other in zip(high, low, strict=True))
    turned = {"supported": "contradicted", "contradicted": "supported"}
    outcome = _outcome(spread, signs, claim.margin, 1)
    if spread is not None and spread.mean == claim.margin and how == "counted, not measured":
        return Comparison(what, "supported", spread, claim.margin, how, of)
    return Comparison(what, turned.get(outcome, outcome), spread, claim.margin, how, of)  # type: ignore[arg-type]


_NO_SPREAD = "one run each and no queries to resample: how much it varies is not known"


def _spread(high: Cell, low: Cell, of: Callable[[float, float], float], bound: float) -> tuple[Spread | None, str, list[float]]:
    """What two cells differ by, how that was found, and the seeds' own differences from the bound."""
    mean = of(float(high.mean or 0), float(low.mean or 0))
    by_seed = _by_seed(high, low, of)
    signs = [value - bound for value in by_seed.values()]
    if high.counted and low.counted:
        return _certain(mean, bound), "counted, not measured", []
    if unlike := _unlike(high, low) or apart(high, low):
        return Spread(mean, math.nan, math.nan, math.nan, math.nan), unlike, signs
    resampled = paired_resamples(high, low)
    if resampled is not None:
        images = next(each.by_image.images for each in (high, low) if each.by_image)
        seeds = f" and {len(by_seed)} seeds in common" if len(by_seed) > 1 else ""
        found = of(resampled[0], resampled[1])  # type: ignore[arg-type]
        how = f"{'' if high.quoted or low.quoted else 'paired '}bootstrap over {images:,} images{seeds}"
        how += ", against a printed number that is taken as exact" * (high.quoted or low.quoted)
        return over_queries(found, mean, bound), how, signs  # type: ignore[arg-type]
    if len(by_seed) > 1:
        return over_seeds(list(by_seed.values()), bound), f"Student's t over {len(by_seed)} seeds", signs
    return Spread(mean, math.nan, math.nan, math.nan, math.nan), _NO_SPREAD, signs


def _unlike(*cells: Cell) -> str | None:
    """What keeps times or memory from being compared: conditions that differ, of two variants or of one variant's seeds."""
    conditions = list(dict.fromkeys(each.conditions for cell in cells for each in cell.measured if each.conditions is not None))
    return f"not measured alike: {'; '.join(conditions)}" if len(conditions) > 1 else None


def apart(high: Cell, low: Cell) -> str | None:
    """What keeps two numbers from being compared at all: no seed that both have, or other data under the same name."""
    if high.quoted or low.quoted or (high.counted and low.counted):
        return None
    if not _by_seed(high, low, lambda a, b: a - b):
        return "the two have no seed in common"
    shared = {each.data for each in high.measured} & {each.data for each in low.measured}
    for name in shared:
        ours, theirs = ({each.fingerprint for each in cell.measured if each.data == name} - {None} for cell in (high, low))
        if ours and theirs and ours != theirs:
            return "the two were not tested on the same data"
    sizes = {cell.by_image.images for cell in (high, low) if cell.by_image is not None}
    return "the two were not tested on the same images" if shared and len(sizes) > 1 else None


def in_common(high: Cell, low: Cell) -> tuple[Cell, Cell]:
    """Both cells with the seeds that both have, where there are any: a seed that only one has would count as its merit."""
    seeds = {each.seed for each in high.measured} & {each.seed for each in low.measured}
    if not seeds or high.seedless or low.seedless:
        return high, low
    kept = [tuple(each for each in cell.measured if each.seed in seeds) for cell in (high, low)]
    return replace(high, measured=kept[0]), replace(low, measured=kept[1])


def paired_resamples(high: Cell, low: Cell) -> tuple[Floats, Floats] | None:
    """Both cells' resamples where they were tested on the same queries of the same data: of images, and of several seeds. A
    printed number of a system that is not run here is taken as exact."""
    if high.quoted != low.quoted:
        ours = low if high.quoted else high
        return None if ours.by_image is None else (resamples(high), resamples(low))
    one, other = high.by_image, low.by_image
    if one is None or other is None or one.images != other.images:
        return None
    if {each.fingerprint for each in high.measured} != {each.fingerprint for each in low.measured}:
        return None
    return resamples(high), resamples(low)


def _by_seed(high: Cell, low: Cell, of: Callable[[float, float], float]) -> dict[int, float]:
    """The difference or ratio of each seed that both have. A run that knows no seed stands beside every one."""
    ours, theirs = ({each.seed: each.value for each in cell.measured} for cell in (high, low))
    if high.seedless and theirs:
        ours = dict.fromkeys(theirs, high.measured[0].value)
    elif low.seedless and ours:
        theirs = dict.fromkeys(ours, low.measured[0].value)
    return {seed: of(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())}


def _certain(mean: float, bound: float) -> Spread:
    return Spread(mean, mean, mean, float(mean <= bound), float(mean >= bound))


def _outcome(spread: Spread | None, signs: Sequence[float], bound: float, pairs: int) -> Outcome:
    """Above the bound is supported, below it contradicted."""
    if spread is None or math.isnan(spread.above):
        return "not decided"
    if spread.above < TAIL and all(sign > 0 for sign in signs):
        return "supported"
    if spread.below < TAIL / pairs and all(sign < 0 for sign in signs):
        return "contradicted"
    return "not decided"


# ---------------------------------------------------------------------------------------------------------- other tests


def _of_checkpoints(view: View, claim: Claim) -> Verdict:
    """Pearson's r of two logged metrics over the validations of each run, and Student's t over the runs.

    Each run has its own r: over the validations of several runs together, what differs between runs (their size) would count.
    """
    logged = view.exhibit.figure.logged if view.exhibit.figure else []
    if len(logged) != 2:
        raise InputError(f"{view.name}: the claim {claim.text[:60]!r} needs pairs, or two `logged` columns of the figure")
    found: dict[Path, float] = {}
    by_variant: list[str] = []
    validated: set[int] = set()
    for variant in view.variants:
        of_variant: list[str] = []
        for run in (run for runs in variant.runs.values() for run in runs):
            points = checkpoints([run], *logged)
            r = pearson([x for _, x, _ in points], [y for _, _, y in points])
            if run.folder is not None and r is not None and len(points) >= 4:
                found[run.folder] = r
                of_variant.append(f"{r:.2f}".replace("-", "−"))
                validated.add(len(points))
        by_variant += [f"{variant.label} {', '.join(of_variant)}"] if of_variant else []
    seeds = len({run.seed for run in view.runs if run.folder in found})
    where = ", embedded world" if view.scale == "miniature" else ""
    scope = f"at {view.scale} scale{where}, {seeds} seed{'' if seeds == 1 else 's'}"
    if not found:
        return Verdict(claim, "not decided", "", "no run has four validations of both")
    each = f"{min(validated)}" if len(validated) == 1 else f"{min(validated)} to {max(validated)}"
    told = f"r of each run over its {each} validations, which follow one another: {'; '.join(by_variant)}"
    rs = list(found.values())
    mean = over_seeds([math.atanh(max(-1 + 1e-9, min(1 - 1e-9, r))) for r in rs], 0.0)
    if mean is None:
        return Verdict(claim, "not decided", "", f"{told}; one run says nothing of others")
    spread = Spread(math.tanh(mean.mean), math.tanh(mean.low), math.tanh(mean.high), math.nan, math.nan)
    what, how = f"Pearson's r, mean of {len(rs)} runs", f"Student's t over {len(rs)} runs, of Fisher's transform of each run's r"
    outcome, why = _sign_and_size(spread, claim.margin)
    if min(rs) < 0 < max(rs):
        outcome, why = "not decided", "the runs differ in sign"
    compared = Comparison(what, outcome, spread, claim.margin, how)
    return Verdict(claim, outcome, scope, f"{told}; mean {_r(spread, claim)}: {why}", (compared,))


def checkpoints(runs: Iterable[Run], x: str, y: str) -> list[tuple[Path, float, float]]:
    """Folder and both metrics of every validation of the finished runs that logged them."""
    found = []
    for run in runs:
        if run.status == "finished" and run.folder is not None:
            found += [(run.folder, each.x, each.y) for each in validations(run.folder, x, y)]
    return found


def _of_variants(claim: Claim, xs: Sequence[float | None], ys: Sequence[float | None], scope: str) -> Verdict:
    """Pearson's r of two columns over variants."""
    both = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
    r = pearson([x for x, _ in both], [y for _, y in both])
    found = None if r is None else correlation_interval(r, len(both))
    if r is None or found is None:
        return Verdict(claim, "not decided", "", f"{len(both)} rows are too few for a correlation")
    spread = Spread(r, *found, math.nan, math.nan)
    outcome, why = _sign_and_size(spread, claim.margin)
    how = "Fisher's interval, the rows taken as independent"
    compared = Comparison(f"Pearson's r over {len(both)} rows", outcome, spread, claim.margin, how)
    return Verdict(claim, outcome, scope, f"r = {_r(spread, claim)}: {why}; the rows are taken as independent", (compared,))


def _sign_and_size(spread: Spread, claimed: float) -> tuple[Outcome, str]:
    """Of a correlation with its interval, against the claimed one."""
    sign = 1 if claimed >= 0 else -1
    low, high = sorted((sign * spread.low, sign * spread.high))  # the claimed sign is now +
    if low > 0 and abs(claimed) <= high:
        return "supported", "the sign is certain and the claimed size is not too large for the interval"
    if high < 0:
        return "contradicted", "the sign is certainly the other"
    return "not decided", "the sign is right and the size certainly smaller" if low > 0 else "the interval holds 0"


def _r(spread: Spread, claim: Claim) -> str:
    return f"{spread.mean:.2f} [{spread.low:.2f}, {spread.high:.2f}] against {claim.margin:.2f}".replace("-", "−")


# ------------------------------------------------------------------------------------------------------------- together


def _concluded(claim: Claim, scope: str, tested: tuple[Comparison, ...]) -> Verdict:
    outcomes = [each.outcome for each in tested]
    outcome: Outcome = "not decided"
    if "contradicted" in outcomes:
        outcome = "contradicted"
    elif all(each == "supported" for each in outcomes):
        outcome = "supported"
    if len(tested) == 1:
        summary = _told(tested[0])
    elif outcome == "supported":
        summary = f"all {len(tested)} comparisons support it"
    else:
        word = "contradict it" if outcome == "contradicted" else "are open"
        first = next(each for each in tested if each.outcome == outcome)
        summary = f"{outcomes.count(outcome)} of {len(tested)} comparisons {word}, such as {_told(first)}"
    return Verdict(claim, outcome, scope, summary, tested)


def _told(each: Comparison) -> str:
    """ "MWA minus KE only, COCO IR@1: 1.2 [0.4, 2] against 0"."""
    spread = each.spread
    if spread is None:
        return f"{each.what}: {each.how}"
    band = "" if math.isnan(spread.low) or spread.low == spread.high else f" [{_digits(spread.low)}, {_digits(spread.high)}]"
    why = f" ({each.how})" if math.isnan(spread.low) else ""
    return f"{each.what}: {_digits(spread.mean)}{band} against {_digits(each.bound)}{why}"


def _digits(value: float) -> str:
    return f"{value + 0.0:.3g}".replace("-", "−")  # no minus before a zero


def _name(high: Cell, low: Cell, word: str) -> str:
    if high.column == low.column:
        return f"{high.variant} {word} {low.variant}, {high.column.label}"
    if high.variant == low.variant:
        return f"{high.variant}, {high.column.label} {word} {low.column.label}"
    return f"{high.variant}, {high.column.label} {word} {low.variant}, {low.column.label}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
