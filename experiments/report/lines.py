"""Every claim on one line: what the paper prints, and beside it what each scale found, with the comparison that decided it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.papers.schema import Claim, Gain, Scale
from experiments.report.collect import View
from experiments.report.exports import NONE, number, signed
from experiments.report.scales import Finding, Side
from experiments.report.verdicts import Comparison, Outcome, Verdict


@dataclass(frozen=True)
class Bar:
    """An interval as a strip draws it: places in percent of its width, the bound at 50. `low` and `high` are None where the
    comparison has no interval."""

    mean: float
    low: float | None
    high: float | None
    outcome: Outcome


@dataclass(frozen=True)
class Said:
    """What a scale says of a claim.

    Args:
        scale: The scale.
        outcome: Its verdict; empty where there is none.
        number: "+1.2 [+0.4, +2.0]" of the comparison that decides; empty where nothing was compared.
        note: Which comparison that is of how many, on what data and how many seeds, or why there is no verdict.
        bars: All comparisons that have a number.
        words: The same as text.
    """

    scale: Scale
    outcome: Outcome | None
    number: str
    note: str
    bars: tuple[Bar, ...]
    words: str


@dataclass(frozen=True)
class Line:
    """A claim, the same at every scale.

    Args:
        view: The exhibit that it is of.
        claim: The claim.
        printed: The paper's number of what is compared.
        asked: What it is compared with, where that is not 0.
        said: By every scale, in the order of the sides.
    """

    view: View
    claim: Claim
    printed: str
    asked: str
    said: tuple[Said, ...]


def lines(views: Sequence[View], sides: Sequence[Side]) -> list[Line]:
    """A line a claim."""
    return [
        Line(
            view,
            claim,
            printed(view, claim),
            asked(claim),
            tuple(_said(side.scale, side.findings[view.name][place]) for side in sides),
        )
        for view in views
        for place, claim in enumerate(view.exhibit.claims)
    ]


# ------------------------------------------------------------------------------------------------------------- the paper


def printed(view: View, claim: Claim) -> str:
    """What the paper's own numbers give for the comparisons of a claim: a difference, or the range of several."""
    if claim.test in ("amount", "relative", "correlation"):
        return _in_unit(claim, number(claim.margin, 2), claim.margin)
    if claim.test == "none":
        return NONE
    digits = max((each.digits for each in view.exhibit.columns), default=1)
    if claim.gain is not None:
        gains = [_printed_gain(view, gain) for gain in (claim.gain, claim.than) if gain is not None]
        return NONE if None in gains else signed(gains[0] - sum(gains[1:]), 2)  # type: ignore[operator,arg-type]
    values: list[float] = []
    for high, low in zip(claim.high, claim.low, strict=True):
        one, other = view.cell(*high), view.cell(*low)
        digits = min(digits, max(one.column.digits, other.column.digits))
        if one.published is not None and other.published is not None:
            values.append(one.published / other.published if claim.test == "ratio" else one.published - other.published)
    if not values:
        return NONE
    if claim.test == "ratio":
        return _in_unit(claim, number(statistics.fmean(values), 2), 0.0)
    ends = list(dict.fromkeys(signed(value, max(digits, 1)) for value in (min(values), max(values))))
    return " to ".join(ends)


def _printed_gain(view: View, gain: Gain) -> float | None:
    sides = [[view.cell(row, column).published for row in rows for column in gain.columns] for rows in (gain.of, gain.over)]
    if any(value is None for side in sides for value in side):
        return None
    of, over = (statistics.fmean(float(value or 0) for value in side) for side in sides)
    return of - over


def asked(claim: Claim) -> str:
    """What is asked of the number, where it is not simply that it lie above 0."""
    bound = f"{abs(claim.margin):.3g}"
    if claim.test == "ratio":
        return f"asked: at most ×{bound}"
    if claim.test == "within":
        return f"asked: at most {bound} below"
    return f"asked: above {'−' * (claim.margin < 0)}{bound}" if claim.test in ("greater", "mean") and claim.margin else ""


# ------------------------------------------------------------------------------------------------------------- a scale


def _said(scale: Scale, finding: Finding) -> Said:
    verdict = finding.verdict
    if verdict is None:
        return Said(scale, None, "", finding.absent, (), finding.absent)
    told = [each for each in verdict.comparisons if each.spread is not None and math.isfinite(each.spread.mean)]
    scope = verdict.scope.removeprefix(f"at {scale} scale").lstrip(", ")
    if not told:
        note = verdict.comparisons[0].how if verdict.comparisons else "" if verdict.claim.test == "none" else verdict.summary
        return Said(scale, verdict.outcome, "", note, (), "")
    shown = _deciding(verdict, told)
    count = ""
    if len(verdict.comparisons) > 1:
        alike = sum(each.outcome == verdict.outcome for each in verdict.comparisons)
        which = "the weakest is" if verdict.outcome == "supported" else "such as"
        if alike:
            count = f"{alike} of {len(verdict.comparisons)} comparisons {verdict.outcome}, {which} {shown.what}"
        else:  # what is measured has other outcomes, and something is not measured
            outcomes = " and ".join(sorted({each.outcome for each in verdict.comparisons}))
            count = f"{len(verdict.comparisons)} comparisons {outcomes}, such as {shown.what}; {verdict.summary}"
    words = "; ".join(f"{each.what}: {_number(verdict.claim, each)}" for each in told)
    note = "; ".join(filter(None, (count, scope)))
    return Said(scale, verdict.outcome, _number(verdict.claim, shown), note, _bars(told), words)


def _deciding(verdict: Verdict, told: Sequence[Comparison]) -> Comparison:
    """Of those with the verdict's outcome the one that comes nearest to its bound: a claim holds as far as its weakest part."""
    alike = [each for each in told if each.outcome == verdict.outcome] or list(told)
    return min(alike, key=lambda each: abs(each.spread.mean - each.bound) if each.spread is not None else math.inf)


def _number(claim: Claim, each: Comparison) -> str:
    """ "+1.2 [+0.4, +2.0]": as many digits as the interval's half width has two of."""
    spread = each.spread
    assert spread is not None
    if not math.isfinite(spread.low) or spread.low == spread.high:
        text = _in_unit(claim, f"{spread.mean:.3g}".replace("-", "−"), spread.mean)
        return text if math.isfinite(spread.low) else f"{text}, no interval"
    half = (spread.high - spread.low) / 2
    digits = min(5, max(0, 1 - math.floor(math.log10(half))))
    mean, low, high = (f"{value:.{digits}f}".replace("-", "−") for value in (spread.mean, spread.low, spread.high))
    signs = claim.test not in ("ratio", "relative", "correlation")
    ends = [("+" if signs and value > 0 else "") + text for value, text in ((spread.low, low), (spread.high, high))]
    return f"{_in_unit(claim, mean, spread.mean)} [{ends[0]}, {ends[1]}]"


def _in_unit(claim: Claim, text: str, value: float) -> str:
    if claim.test in ("ratio", "relative"):
        return f"×{text}"
    if claim.test == "correlation":
        return f"r {text}"
    return ("+" if value > 0 else "") + text


def _bars(told: Sequence[Comparison]) -> tuple[Bar, ...]:
    """On one axis with the bounds in its middle, wide enough for all."""
    ends = []
    for each in told:
        assert each.spread is not None
        ends.append([value - each.bound for value in (each.spread.mean, each.spread.low, each.spread.high)])
    reach = max(abs(value) for each in ends for value in each if math.isfinite(value)) or 1.0
    placed = [[round(50 + 46 * value / reach, 1) if math.isfinite(value) else None for value in each] for each in ends]
    return tuple(Bar(mean or 50.0, low, high, each.outcome) for each, (mean, low, high) in zip(told, placed, strict=True))
