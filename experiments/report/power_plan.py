"""What would settle each claim of an exhibit: seeds, test images, hours. `power.py` has how that is found.

A claim is settled where its verdict is supported or contradicted, whichever; a plan is the fewest seeds, and the fewest images
with fewer seeds than that, which settle it in at least 80 % of the draws. It begins at three seeds (or at the most that may be,
if that is less): one seed's verdict says nothing of another training, whatever it says. Hours are those of the recipes'
estimates, of what is not finished; with other images everything is run anew. Real test sets are what they are, and only seeds
are planned.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.papers.catalogue import exhibit_names
from experiments.papers.estimates import without_estimate
from experiments.papers.plan import plan_runs
from experiments.papers.schema import Claim, Exhibit, Scale
from experiments.report.collect import View, collect
from experiments.report.power import (
    Between,
    Difference,
    Model,
    difference_of,
    futures,
    half_width,
    model_of,
    outcomes,
    pooled,
)
from experiments.report.verdicts import Comparison, Verdict, judge
from experiments.runs.store import RunFolders

ENOUGH = 0.8  # of the draws
LEAST_SEEDS, MOST_SEEDS = 3, 10
TIMES_IMAGES = (2, 4, 8, 16)
# Images of the test splits that the recipes read; NoCaps is its validation split.
SPLITS = {"coco": 5000, "flickr30k": 1000, "flickr30k_entities": 1000, "nocaps": 4500}


@dataclass(frozen=True)
class Hours:
    """What is not finished.

    Args:
        by_device: Device-hours; "" is a device without a name.
        unknown: Runs whose recipe has no estimate, by name; one with several seeds as often.
        measured: Runs whose cost a rehearsal measured on a GPU.
    """

    by_device: Mapping[str, float]
    unknown: tuple[str, ...] = ()
    measured: int = 0


@dataclass(frozen=True)
class Need:
    """What settles a claim.

    Args:
        seeds: In all.
        images: How many times the images of today's test sets.
        supported: Share of the draws.
        contradicted: Likewise.
        hours: That it costs.
    """

    seeds: int
    images: float
    supported: float
    contradicted: float
    hours: Hours

    @property
    def probability(self) -> float:
        return self.supported + self.contradicted


@dataclass(frozen=True)
class ClaimPlan:
    """Of one claim.

    Args:
        verdict: Today's.
        comparison: Of its comparisons the one that is hardest to decide; None where it has none.
        half_width: Of that one's interval, as it is expected with the seeds of `most`.
        models: How the comparisons vary.
        images: Of the test sets, by name: of those planned for.
        alone: With the images that there are.
        more: With more images and fewer seeds.
        most: What the largest number of seeds would do, where that does not settle it.
        settled: It is decided already, by as many seeds as a plan begins with, or more.
        why: There is nothing to plan; or what must come first.
    """

    verdict: Verdict
    comparison: Comparison | None = None
    half_width: float | None = None
    models: tuple[Model, ...] = ()
    images: Mapping[str, int] | None = None
    alone: Need | None = None
    more: Need | None = None
    most: Need | None = None
    settled: bool = False
    why: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """Where it is from how much the seeds vary."""
        return tuple(dict.fromkeys(each.source for each in self.models))


@dataclass(frozen=True)
class ExhibitPlan:
    """Of one exhibit.

    Args:
        name: PAPER/NAME.
        command: What runs all that can be settled, or what makes the first runs.
        claims: Those with a test.
        total: What the command costs.
    """

    name: str
    command: str
    claims: tuple[ClaimPlan, ...] = ()
    total: Hours | None = None


def plan_exhibits(
    names: Sequence[str], folders: RunFolders, scale: Scale, source: Scale, most: int = MOST_SEEDS
) -> list[ExhibitPlan]:
    """What would settle the claims of exhibits (PAPER/NAME), of those that have one with a test.

    Args:
        names: Of the exhibits.
        folders: With the runs that there are.
        scale: Of the runs that are planned.
        source: Scale of the runs that the differences and their variances are taken from.
        most: Seeds.

    Raises:
        InputError: An exhibit is wrong.
    """
    papers = {name.partition("/")[0] for name in names}
    views = collect([name for name in exhibit_names() if name.partition("/")[0] in papers], source, folders)
    differences: dict[str, dict[tuple[str, str], Difference]] = {paper: {} for paper in papers}
    verdicts: dict[str, list[Verdict]] = {}
    for view in views:
        verdicts[view.name] = [judge(view, claim) for claim in view.exhibit.claims if claim.test != "none"]
        for verdict in verdicts[view.name]:
            for comparison in verdict.comparisons:
                found = None if math.isnan(_low(comparison)) and comparison.of == () else difference_of(comparison)
                if found is not None:
                    differences[view.name.partition("/")[0]][comparison.what, str(found.by_seed_S)] = found
    others = {paper: pooled(found.values()) for paper, found in differences.items()}
    planned = []
    for view in views:
        if view.name in names and verdicts[view.name]:
            paper = _Exhibit(view, folders, scale, source, most, others[view.name.partition("/")[0]])
            planned.append(paper.plan(verdicts[view.name]))
    return planned


def _low(comparison: Comparison) -> float:
    return math.nan if comparison.spread is None else comparison.spread.low


@dataclass(frozen=True)
class _Exhibit:
    """What the claims of one exhibit have in common."""

    view: View
    folders: RunFolders
    scale: Scale
    source: Scale
    most: int
    others: Between

    def plan(self, verdicts: Sequence[Verdict]) -> ExhibitPlan:
        if not self.view.seeds:
            return ExhibitPlan(self.view.name, self._command(self.source, 1))
        claims = tuple(self._claim(verdict) for verdict in verdicts)
        open_ones = [each for each in claims if each.alone is not None and not each.settled]
        seeds = max((each.alone.seeds for each in open_ones if each.alone is not None), default=0)
        paper, _, _ = self.view.name.partition("/")
        of_command = {f"{paper}/{run}" for variant in self.view.exhibit.variants for run in variant.runs.values()}
        total = self._hours(of_command, seeds, 1.0) if seeds else None
        return ExhibitPlan(self.view.name, self._command(self.scale, seeds), claims, total)

    def _command(self, scale: Scale, seeds: int) -> str:
        more = f" --seeds {' '.join(map(str, self._seeds(seeds)))}" if seeds > 1 else ""
        return f"crosslight sweep run {self.view.name} --scale {scale}{more}"

    def _seeds(self, count: int) -> list[int]:
        """Those that have run, and the next ones."""
        known = self.view.seeds if self.scale == self.source else []
        return sorted([*known, *(seed for seed in range(count) if seed not in known)][:count])

    def _hours(self, runs: Iterable[str], seeds: int, images: float) -> Hours:
        """Of what is not finished; with another number of images nothing is."""
        hours: dict[str, float] = {}
        unknown: list[str] = []
        measured = 0
        for run in plan_runs(sorted(runs), self.scale, self._seeds(seeds)):
            if images == 1 and self.folders.find(run, run.names[0]).status == "finished":
                continue
            cost, is_measured = self.folders.cost_of(run)
            measured += is_measured
            if cost is None:
                unknown.append(run.names[0])
            else:
                hours[cost.device] = hours.get(cost.device, 0.0) + cost.hours
        return Hours(hours, tuple(unknown), measured)

    def _claim(self, verdict: Verdict) -> ClaimPlan:
        claim = verdict.claim
        if claim.test == "correlation":
            return ClaimPlan(verdict, why="a correlation over rows or checkpoints: neither seeds nor images are its points")
        runs = runs_of(self.view, claim)
        if verdict.outcome == "not decided" and (unmeasured := self._unmeasured(runs)):
            return ClaimPlan(verdict, why=f"nothing is measured of some of its rows: {unmeasured}")
        if not verdict.comparisons or verdict.summary.startswith("nothing measured"):
            return ClaimPlan(verdict, why=verdict.summary)
        if self.scale != self.source and (missing := self._missing(runs)):
            return ClaimPlan(verdict, why=f"{missing} has no run at {self.scale} scale")
        cells = [cell for each in verdict.comparisons for part in each.of for _, cell in part.terms]
        if self.scale != self.source and any(cell.column.cost is not None for cell in cells):
            return ClaimPlan(verdict, why=f"costs at {self.source} scale say nothing of those at {self.scale} scale")
        if all(cell.counted or cell.quoted for cell in cells):
            return ClaimPlan(verdict, why="counted, not measured: one run says it")
        found = [_modeled(each, self.others) for each in verdict.comparisons]
        if (bad := next((each for each in found if isinstance(each, str)), None)) is not None:
            return ClaimPlan(verdict, why=bad)
        both = [each for each in found if not isinstance(each, str)]
        return self._planned(verdict, [each for each, _ in both], [each for _, each in both], runs)

    def _unmeasured(self, runs: Sequence[str]) -> str | None:
        """What makes the runs of a claim that have no finished seed."""
        planned = plan_runs(runs, self.source, self.folders.seeds)
        there = {name for run in planned if self.folders.find(run, run.names[0]).status == "finished" for name in run.names}
        known = {name for run in planned for name in run.names}
        return self._command(self.source, 1) if any(run in known and run not in there for run in runs) else None

    def _missing(self, runs: Sequence[str]) -> str | None:
        there = {name for run in plan_runs(runs, self.scale, [0]) for name in run.names}
        return next((run for run in runs if run not in there), None)

    def _planned(
        self, verdict: Verdict, differences: Sequence[Difference], models: Sequence[Model], runs: Sequence[str]
    ) -> ClaimPlan:
        today = {name: count for each in differences for name, count in each.images.items()}
        run = max((len(each.by_seed_S) for each in differences if not each.seedless), default=0)
        elsewhere = self.scale != self.source
        images = {name: SPLITS.get(name, count) for name, count in today.items()} if self.scale == "full" and elsewhere else today
        times = min((images[name] / count for name, count in today.items()), default=1.0)
        first = 1 if not run else min(LEAST_SEEDS, self.most)
        first, last = (first if elsewhere else max(first, run)), max(self.most, run) if run else 1

        def need(seeds: int, factor: float) -> Need:
            if (seeds, factor) == (run, 1.0) and not elsewhere:
                supported, contradicted = verdict.outcome == "supported", verdict.outcome == "contradicted"
                return Need(seeds, factor, float(supported), float(contradicted), Hours({}))
            found = [
                outcomes(verdict.claim.test, each.bound, len(models), future)  # type: ignore[arg-type]
                for each, future in zip(verdict.comparisons, futures(models, seeds, times * factor, elsewhere), strict=True)
            ]
            every, one = np.all([each[0] for each in found], 0), np.any([each[1] for each in found], 0)
            return Need(seeds, factor, float(every.mean()), float(one.mean()), self._hours(runs, seeds, factor))

        settles: Callable[[Need], bool] = lambda each: each.probability >= ENOUGH  # noqa: E731
        alone = next((each for seeds in range(first, last + 1) if settles(each := need(seeds, 1.0))), None)
        more = None
        if self.scale == "miniature" and today and (alone is None or alone.seeds > first):
            fewer = range(first, last + 1 if alone is None else alone.seeds)
            more = next((each for seeds in fewer for factor in TIMES_IMAGES if settles(each := need(seeds, factor))), None)
        most = need(last, 1.0) if alone is None else None
        shown = alone or most
        assert shown is not None
        hardest = min(range(len(models)), key=lambda number: _distance(verdict.comparisons[number]))
        future = futures(models, shown.seeds, times, elsewhere)[hardest]
        width = float(np.median(half_width(future))) if future.by_images or shown.seeds > 1 else None
        settled = not elsewhere and (run >= first or not run) and verdict.outcome in ("supported", "contradicted")
        return ClaimPlan(verdict, verdict.comparisons[hardest], width, tuple(models), images, alone, more, most, settled)


def _distance(comparison: Comparison) -> float:
    """From the bound, in half-widths of today's interval."""
    spread = comparison.spread
    if spread is None or math.isnan(spread.low) or spread.high <= spread.low:
        return 0.0
    return abs(spread.mean - comparison.bound) / (spread.high - spread.low)


def _modeled(comparison: Comparison, others: Between) -> tuple[Difference, Model] | str:
    """What a comparison's future is drawn from, or why there is none."""
    difference = difference_of(comparison)
    if comparison.spread is None or difference is None:
        return comparison.how
    model = model_of(difference, others)
    if math.isnan(comparison.spread.low) and (model is not None or len(difference.by_seed_S) > 1):
        return comparison.how  # measured on other data or another machine: no number of seeds makes that alike
    if model is None:
        return "one seed and no images to resample: run a second seed first"
    return difference, model


def runs_of(view: View, claim: Claim) -> list[str]:
    """The runs (PAPER/RUN) that a claim's numbers come from."""
    exhibit, paper = view.exhibit, view.name.partition("/")[0]
    gains = [gain for gain in (claim.gain, claim.than) if gain is not None]
    pairs = [*claim.high, *claim.low, *(pair for gain in gains for pair in gain.cells)]
    found = {
        f"{paper}/{variant.runs[role]}": None
        for label, column in pairs
        for variant in exhibit.variants
        if variant.label == label
        for role in _roles(exhibit, column)
        if role in variant.runs
    }
    return list(found)


def _roles(exhibit: Exhibit, name: str) -> list[str]:
    column = next(each for each in exhibit.columns if each.name == name)
    return [role for part in column.sum_of for role in _roles(exhibit, part)] or [column.run]


# ---------------------------------------------------------------------------------------------------------------- what is shown


COLUMNS = ("claim", "today", "outcome", "seeds vary by", "needs", "interval then", "cost")


def rows(plan: ExhibitPlan) -> list[list[str]]:
    """Of each claim that can be planned: `COLUMNS`."""
    return [
        [
            claim_words(each.verdict.claim), _today(each), each.verdict.outcome, ", ".join(each.sources), needs_words(each),
            "" if each.half_width is None or each.settled else f"±{each.half_width:.2g}",
            hours_words(need.hours) if (need := each.alone or each.more) and not each.settled else "",
        ]
        for each in plan.claims
        if not each.why
    ]  # fmt: skip


def reasons(plan: ExhibitPlan) -> list[str]:
    """Why the others cannot be, each reason once."""
    by_reason: dict[str, int] = {}
    for each in plan.claims:
        if each.why:
            by_reason[each.why] = by_reason.get(each.why, 0) + 1
    return [f"{count} claim{'s' * (count > 1)} not planned: {why}" for why, count in by_reason.items()]


def images_words(plan: ExhibitPlan, scale: Scale, source: Scale) -> str:
    """ "test images: coco 5,000; full scale has no more, so that only seeds are planned"."""
    images = {name: count for each in plan.claims for name, count in (each.images or {}).items()}
    counts = ", ".join(f"{name} {count:,}" for name, count in images.items())
    fixed = f"; {scale} scale has no more, so that only seeds are planned"
    if scale not in ("full", source):
        fixed = f", as at {source} scale: how many {scale} scale has is not known before its first run"
    elif scale == "miniature":
        fixed = ""
    return f"test images: {counts}{fixed}" if images else ""


def claim_words(claim: Claim) -> str:
    """A claim shortened, with what of it is tested."""
    text = textwrap.shorten(claim.text, 64, placeholder=" ...")
    return f"{text} [{textwrap.shorten(claim.reason, 48, placeholder=' ...')}]" if claim.reason else text


def _today(plan: ClaimPlan) -> str:
    comparison = plan.comparison or next(iter(plan.verdict.comparisons), None)
    if comparison is None or comparison.spread is None:
        return ""
    spread = comparison.spread
    band = "" if math.isnan(spread.low) or spread.low == spread.high else f" [{spread.low:.3g}, {spread.high:.3g}]"
    number = len(plan.verdict.comparisons)
    return f"{spread.mean:.3g}{band} against {comparison.bound + 0.0:g}" + (f", the closest of {number}" if number > 1 else "")


def needs_words(plan: ClaimPlan) -> str:
    """ "5 seeds (80% supported, 3% contradicted), or 3 seeds x 1,440 images (81% supported)"."""
    if plan.settled:
        return "nothing: it is settled"
    told = []
    if plan.alone is not None:
        told.append(_need_words(plan.alone, plan))
    elif plan.most is not None:
        unseeded = plan.sources == ("no seeds",)
        never = "not by seeds: none of its runs has one" if unseeded else f"not with {plan.most.seeds} seeds"
        told.append(f"{never} ({plan.most.probability:.0%})")
    if plan.more is not None:
        told.append(_need_words(plan.more, plan))
    return (", or " if plan.alone is not None else ", but ").join(told)


def _need_words(need: Need, plan: ClaimPlan) -> str:
    seeds = f"{need.seeds} seed{'s' * (need.seeds != 1)}"
    if need.images != 1:
        counts = {round(count * need.images) for count in (plan.images or {}).values()}
        seeds += f" x {counts.pop():,} images" if len(counts) == 1 else f" x {need.images:g} times the images"
    shares = {"supported": need.supported, "contradicted": need.contradicted}
    return f"{seeds} ({', '.join(f'{share:.0%} {name}' for name, share in shares.items() if round(share, 2))})"


def hours_words(hours: Hours) -> str:
    """ "12.5 A6000-hours"."""
    parts = [
        f"{amount:,.1f} {device or 'device'}-hours" if amount >= 1 else f"{60 * amount:.0f} {device or 'device'}-minutes"
        for device, amount in hours.by_device.items()
    ]
    parts += [without_estimate(hours.unknown)] if hours.unknown else []
    parts += [f"{hours.measured} runs as rehearsed"] if hours.measured else []
    return ", ".join(parts) or "nothing to run"


def to_json(plans: Sequence[ExhibitPlan], scale: Scale, source: Scale, most: int) -> str:
    """Everything that the table shows, as data."""
    content = {
        "schema": "crosslight.plan/1", "scale": scale, "from_scale": source, "seeds_at_most": most, "probability": ENOUGH,
        "exhibits": [
            {"name": plan.name, "command": plan.command, "total": None if plan.total is None else _hours_json(plan.total),
             "claims": [_claim_json(each) for each in plan.claims]}
            for plan in plans
        ],
    }  # fmt: skip
    return json.dumps(content, indent=1, ensure_ascii=False)


def _claim_json(plan: ClaimPlan) -> Mapping[str, Any]:
    closest = None if plan.comparison is None else plan.verdict.comparisons.index(plan.comparison)
    return {
        "text": plan.verdict.claim.text, "tested": plan.verdict.tested, "test": plan.verdict.claim.test,
        "outcome": plan.verdict.outcome, "settled": plan.settled, "why_not_planned": plan.why or None,
        "images": dict(plan.images or {}), "alone": _need_json(plan.alone), "more_images": _need_json(plan.more),
        "most": _need_json(plan.most), "closest": closest, "half_width": _finite(plan.half_width),
        "comparisons": [
            _comparison_json(each, plan.models[number] if plan.models else None)
            for number, each in enumerate(plan.verdict.comparisons)
        ],
    }  # fmt: skip


def _comparison_json(comparison: Comparison, model: Model | None) -> Mapping[str, Any]:
    """Today's numbers; and variances of one seed's difference with today's images: over seeds (luck included), over the images as
    all seeds share it (without luck), and of luck."""
    numbers = {name: _finite(getattr(comparison.spread, name, None)) for name in ("mean", "low", "high")}
    found: dict[str, Any] = {"what": comparison.what, **numbers, "bound": comparison.bound}
    if model is not None:
        mean = model.freedom / (model.freedom - 2) if 2 < model.freedom < math.inf else 1.0  # of an inverse chi-square
        parts = {"between_seeds": mean * model.between, "images": model.picture, "luck": model.luck, "freedom": model.freedom}
        found |= {"seeds": len(model.by_seed_S), "seeds_vary_by": model.source}
        found |= {"variance": {name: _finite(value) for name, value in parts.items()}}
    return found


def _need_json(need: Need | None) -> Mapping[str, Any] | None:
    if need is None:
        return None
    return {
        "seeds": need.seeds, "times_images": need.images, "supported": need.supported, "contradicted": need.contradicted,
        **_hours_json(need.hours),
    }  # fmt: skip


def _hours_json(hours: Hours) -> Mapping[str, Any]:
    return {
        "hours": dict(hours.by_device),
        "runs_without_estimate": len(hours.unknown),
        "without_estimate": sorted({*hours.unknown}),
        "runs_measured": hours.measured,
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
