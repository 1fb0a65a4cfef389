"""What our numbers say about a claim: supported, contradicted or not decided, and how that was found.

The numbers of a test set are compared on the same queries: images are resampled 2,000 times, each row's mean over its seeds is
taken on each resample, and the difference of two rows has the 95 % interval of its resamples. Numbers without queries (relation
distances, BLEU, times, memory) are compared seed by seed with Student's t, which one seed cannot. What is counted (parameters)
is compared as it is.

A claim of several comparisons is supported when each of them is (no correction is due: all must hold), and contradicted when one
is, with p divided by their number. With several seeds all must also agree in sign, since queries say nothing of the spread
over trainings. Whatever is found holds at the scale, on the data and with the seeds it was measured with, and says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datamodules.errors import InputError
from experiments.artefacts import Claim
from experiments.correlation import pearson, validations
from experiments.report.bootstrap import Floats, Spread, correlation_interval, over_queries, over_seeds
from experiments.report.collect import Cell, Run, View

Outcome = Literal["supported", "contradicted", "not decided", "not tested"]
_TAIL = 0.025


@dataclass(frozen=True)
class Comparison:
    """One pair of a claim.

    Args:
        what: "MWA minus KE only, COCO IR@1".
        outcome: Of this pair alone.
        spread: What was compared with the bound, its interval and p; None where nothing could be tested.
        bound: What it was compared with.
        how: The test, or why there is none.
    """

    what: str
    outcome: Outcome
    spread: Spread | None
    bound: float
    how: str


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
    """The verdict of one claim of an artefact."""
    if claim.test == "none":
        return Verdict(claim, "not tested", "", claim.reason or "there is no test of it here")
    if claim.test == "correlation" and not claim.high:
        return _of_checkpoints(view, claim)
    high = [view.cell(*pair) for pair in claim.high]
    low = [view.cell(*pair) for pair in claim.low]
    scope = scope_of(view, [*high, *low])
    if claim.test == "equal" and not low:
        return _published(view, claim, high, scope)
    if not high or len(high) != len(low):
        raise InputError(f"{view.name}: the claim {claim.text[:60]!r} compares {len(high)} numbers with {len(low)}; give pairs")
    if claim.test == "correlation":
        return _correlation(claim, [each.mean for each in high], [each.mean for each in low], scope, "rows")
    pairs = [(one, other) for one, other in zip(high, low, strict=True) if one.planned and other.planned]
    if not pairs:
        return Verdict(claim, "not decided", "", f"what it compares is not run at {view.scale} scale")
    if len(pairs) < len(high):
        scope += f", {len(pairs)} of its {len(high)} comparisons"  # the others have no run at this scale
    missing = list(dict.fromkeys(f"{each.row} ({each.column.label})" for pair in pairs for each in pair if each.mean is None))
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


def scope_of(view: View, cells: Iterable[Cell]) -> str:
    """ "at miniature scale, embedded world, 3 seeds" of what was measured."""
    cells = [each for each in cells if each.measured]
    seeds = [each.n for each in cells if not each.counted and not each.seedless] or [each.n for each in cells]
    if not seeds:
        return f"at {view.scale} scale"
    number = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    data = sorted({measured.data for each in cells for measured in each.measured if measured.data})
    where = ["embedded world"] if view.scale == "miniature" else data
    return ", ".join([f"at {view.scale} scale", *where, f"{number} seed{'' if number == '1' else 's'}"])


# ------------------------------------------------------------------------------------------------------------------ pairs


def _pair(claim: Claim, high: Cell, low: Cell, pairs: int) -> Comparison:
    """greater, within and equal of one pair."""
    what = _name(high, low, "minus")
    if claim.test == "equal":
        return _equal(what, high, low, claim.margin)
    bound = -claim.margin if claim.test == "within" else claim.margin
    spread, how, signs = _spread(high, low, lambda a, b: a - b, bound)
    return Comparison(what, _outcome(spread, signs, bound, pairs), spread, bound, how)


def _ratio(claim: Claim, high: Sequence[Cell], low: Sequence[Cell]) -> Comparison:
    """The mean of the pairs' ratios against the margin; "supported" is at or below it."""
    what = f"{_name(high[0], low[0], 'over')}" + (f" and {len(high) - 1} more" if len(high) > 1 else "")
    if any(measured.value == 0 for each in low for measured in each.measured):
        return Comparison(what, "not decided", None, claim.margin, "a divisor is 0")
    parts = [_spread(one, other, lambda a, b: a / b, claim.margin) for one, other in zip(high, low, strict=True)]
    if len(parts) == 1:
        spread, how, signs = parts[0]
    else:
        # Of several ratios only the mean is claimed: it has a spread where all have one on the same seeds.
        by_seed = [_by_seed(one, other, lambda a, b: a / b) for one, other in zip(high, low, strict=True)]
        seeds = set.intersection(*(set(each) for each in by_seed))
        means = [statistics.fmean(each[seed] for each in by_seed) for seed in sorted(seeds)]
        whole = statistics.fmean(float(one.mean or 0) / float(other.mean or 1) for one, other in zip(high, low, strict=True))
        if all(one.counted and other.counted for one, other in zip(high, low, strict=True)):
            spread, how = _certain(whole, claim.margin), "counted, not measured"
        else:
            spread, how = over_seeds(means, claim.margin), f"Student's t over {len(means)} seeds"
        if spread is None:
            spread, how = Spread(whole, math.nan, math.nan, math.nan, math.nan), _NO_SPREAD
        signs = [mean - claim.margin for mean in means]
    turned = {"supported": "contradicted", "contradicted": "supported"}
    outcome = _outcome(spread, signs, claim.margin, 1)
    if spread is not None and spread.mean == claim.margin and how == "counted, not measured":
        return Comparison(what, "supported", spread, claim.margin, how)
    return Comparison(what, turned.get(outcome, outcome), spread, claim.margin, how)  # type: ignore[arg-type]


_NO_SPREAD = "one run each and no queries to resample: how much it varies is not known"


def _spread(high: Cell, low: Cell, of: Callable[[float, float], float], bound: float) -> tuple[Spread | None, str, list[float]]:
    """What two cells differ by, how that was found, and the seeds' own differences from the bound."""
    high, low = _in_common(high, low)
    mean = of(float(high.mean or 0), float(low.mean or 0))
    by_seed = _by_seed(high, low, of)
    signs = [value - bound for value in by_seed.values()]
    if high.counted and low.counted:
        return _certain(mean, bound), "counted, not measured", []
    resampled = paired_resamples(high, low)
    if resampled is not None:
        images = high.by_image.images if high.by_image else 0
        seeds = f", {len(by_seed)} seeds in common" if len(by_seed) > 1 else ""
        found = of(resampled[0], resampled[1])  # type: ignore[arg-type]
        return over_queries(found, mean, bound), f"paired bootstrap over {images:,} images{seeds}", signs  # type: ignore[arg-type]
    if len(by_seed) > 1:
        return over_seeds(list(by_seed.values()), bound), f"Student's t over {len(by_seed)} seeds", signs
    why = _NO_SPREAD
    if high.by_image is not None and low.by_image is not None:
        why = "the two were not tested on the same data"
    return Spread(mean, math.nan, math.nan, math.nan, math.nan), why, signs


def _in_common(high: Cell, low: Cell) -> tuple[Cell, Cell]:
    """Both cells with the seeds that both have, where there are any: a seed that only one has would count as its row's merit."""
    seeds = {each.seed for each in high.measured} & {each.seed for each in low.measured}
    if not seeds or high.seedless or low.seedless:
        return high, low
    kept = [tuple(each for each in cell.measured if each.seed in seeds) for cell in (high, low)]
    return replace(high, measured=kept[0]), replace(low, measured=kept[1])


def paired_resamples(high: Cell, low: Cell) -> tuple[Floats, Floats] | None:
    """Both cells' resamples where they were tested on the same queries of the same data."""
    one, other = high.by_image, low.by_image
    if one is None or other is None or high.resamples is None or low.resamples is None or one.images != other.images:
        return None
    if {each.fingerprint for each in high.measured} != {each.fingerprint for each in low.measured}:
        return None
    return high.resamples, low.resamples


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
    if spread.above < _TAIL and all(sign > 0 for sign in signs):
        return "supported"
    if spread.below < _TAIL / pairs and all(sign < 0 for sign in signs):
        return "contradicted"
    return "not decided"


def _equal(what: str, high: Cell, low: Cell, margin: float) -> Comparison:
    difference = float(high.mean or 0) - float(low.mean or 0)
    if high.counted and low.counted:
        outcome: Outcome = "supported" if abs(difference) <= margin + 1e-12 else "contradicted"
        return Comparison(what, outcome, _certain(difference, 0.0), margin, "counted, not measured")
    spread, how, _ = _spread(high, low, lambda a, b: a - b, 0.0)
    return Comparison(what, _inside(spread, margin), spread, margin, f"{how}; the whole interval must lie within the margin")


def _inside(spread: Spread | None, margin: float) -> Outcome:
    if spread is None or math.isnan(spread.low):
        return "not decided"
    if -margin <= spread.low and spread.high <= margin:
        return "supported"
    return "contradicted" if spread.low > margin or spread.high < -margin else "not decided"


# ---------------------------------------------------------------------------------------------------------- other tests


def _published(view: View, claim: Claim, cells: Sequence[Cell], scope: str) -> Verdict:
    """Our number is the published one."""
    if view.scale != "full":
        return Verdict(
            claim, "not decided", "", "the published number is one of full scale, and this report is of miniature scale"
        )
    tested = []
    for cell in cells:
        what = f"{cell.row} minus the paper's, {cell.column.label}"
        difference = cell.difference
        if difference is None:
            tested.append(Comparison(what, "not decided", None, claim.margin, "not measured, or not published"))
        elif cell.counted:
            # a printed number stands for all that round to it
            margin = max(claim.margin, 0.5 * 10.0**-cell.column.digits)
            outcome: Outcome = "supported" if abs(difference) <= margin + 1e-12 else "contradicted"
            tested.append(Comparison(what, outcome, _certain(difference, 0.0), margin, "counted, against the printed digits"))
        elif cell.interval is not None:
            low, high = (bound - float(cell.published or 0) for bound in cell.interval)
            spread = Spread(difference, low, high, math.nan, math.nan)
            tested.append(Comparison(what, _inside(spread, claim.margin), spread, claim.margin, "bootstrap over images"))
        else:
            found = over_seeds([each.value - float(cell.published or 0) for each in cell.measured], 0.0)
            tested.append(Comparison(what, _inside(found, claim.margin), found, claim.margin, f"Student's t over {cell.n} seeds"))
    return _concluded(claim, scope, tuple(tested))


def _of_checkpoints(view: View, claim: Claim) -> Verdict:
    """Pearson's r of two logged metrics over the validations of all rows."""
    logged = view.artefact.figure.logged if view.artefact.figure else []
    if len(logged) != 2:
        raise InputError(f"{view.name}: the claim {claim.text[:60]!r} needs pairs, or two `logged` columns of the figure")
    points = checkpoints(view.runs, logged[0], logged[1])
    seeds = len({run.seed for run in view.runs if run.status == "finished"})
    where = ", embedded world" if view.scale == "miniature" else ""
    scope = f"at {view.scale} scale{where}, {seeds} seed{'' if seeds == 1 else 's'}"
    return _correlation(claim, [x for _, x, _ in points], [y for _, _, y in points], scope, "checkpoints")


def checkpoints(runs: Iterable[Run], x: str, y: str) -> list[tuple[Path, float, float]]:
    """Folder and both metrics of every validation of the finished runs that logged them."""
    found = []
    for run in runs:
        if run.status == "finished" and run.folder is not None and (run.folder / "metrics.csv").exists():
            found += [(run.folder, each.x, each.y) for each in validations(run.folder, x, y)]
    return found


def _correlation(claim: Claim, xs: Sequence[float | None], ys: Sequence[float | None], scope: str, what: str) -> Verdict:
    both = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
    r = pearson([x for x, _ in both], [y for _, y in both])
    found = None if r is None else correlation_interval(r, len(both))
    name = f"Pearson's r over {len(both)} {what}"
    if r is None or found is None:
        return Verdict(claim, "not decided", "", f"{len(both)} {what} are too few for a correlation")
    low, high = found
    spread = Spread(r, low, high, math.nan, math.nan)
    sign = 1 if claim.margin >= 0 else -1
    how = f"Fisher's interval, the {what} taken as independent" + (
        ", which those of one run are not" if what == "checkpoints" else ""
    )
    weak = min(abs(low), abs(high)) if low * high > 0 else 0.0
    outcome: Outcome = "not decided"
    if sign * (low if sign > 0 else high) > 0 and abs(claim.margin) <= max(abs(low), abs(high)):
        outcome, why = "supported", "the sign is certain and the claimed size is not too large for the interval"
    elif weak and sign * r < 0:
        outcome, why = "contradicted", "the sign is certainly the other"
    else:
        why = "the sign is right and the size certainly smaller" if weak else "the interval holds 0"
    summary = f"r = {r:.2f} [{low:.2f}, {high:.2f}] against {claim.margin:.2f}: {why}".replace("-", "−")
    return Verdict(claim, outcome, scope, summary, (Comparison(name, outcome, spread, claim.margin, how),))


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
        return f"{high.row} {word} {low.row}, {high.column.label}"
    if high.row == low.row:
        return f"{high.row}, {high.column.label} {word} {low.column.label}"
    return f"{high.row}, {high.column.label} {word} {low.row}, {low.column.label}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
