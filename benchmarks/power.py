"""Does one seed foretell several? `crosslight sweep plan` from each seed of a sweep alone, against what all its seeds measured.

    python benchmarks/power.py --runs runs/papers --out benchmarks/results/power.json

Of every comparison that all seeds have (with images to resample), and of each of its seeds alone, the planner predicts the
difference over all seeds, the half-width of its interval and the outcome, as if it knew no other run. Counted are: how many
measured differences are in the predicted 95 % interval, how many half-widths are within a factor of 1.5 of the predicted one,
and how probable the planner had called the outcome that came. Comparisons of one paper share runs: they are fewer independent
trials than their number. Each is counted once, whatever number of claims has it. `between` is what power.ASSUMED.ratio assumes:
how many times another training's variance is that of other images.

And: how many of all comparisons would be decided (supported or contradicted) with more seeds or more test images, by the same
planner from all seeds that there are. Those that it cannot plan (correlations, counts) count as they are today.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from datamodules.errors import InputError
from experiments.papers.catalogue import exhibit_names
from experiments.papers.schema import SCALES, Scale
from experiments.report.collect import Cell, View, collect
from experiments.report.means import with_seeds
from experiments.report.power import ASSUMED, Between, Model, difference_of, futures, half_width, model_of, outcomes, pooled
from experiments.report.verdicts import Comparison, Verdict, judge
from experiments.runs.store import RunFolders

FACTOR = 1.5
MORE = ((3, 1), (3, 4), (3, 16), (3, 256), (5, 1), (5, 16), (10, 1), (10, 16))
"""Seeds, and how many times today's test images."""


@dataclass(frozen=True)
class Prediction:
    """Of one comparison from one of its seeds.

    Args:
        paper: Whose claim.
        what: The comparison.
        seed: Position of the seed among those that it has.
        seeds: Their number.
        measured: The difference over all seeds.
        low: Of its predicted 95 % interval.
        high: Likewise.
        half_width: That was measured.
        predicted_half_width: Median of the draws.
        outcome: That came.
        probability: That the planner gave it.
    """

    paper: str
    what: str
    seed: int
    seeds: int
    measured: float
    low: float
    high: float
    half_width: float
    predicted_half_width: float
    outcome: str
    probability: float

    @property
    def inside(self) -> bool:
        return self.low <= self.measured <= self.high

    @property
    def close(self) -> bool:
        """Whether the half-width is within FACTOR."""
        return 1 / FACTOR <= self.half_width / self.predicted_half_width <= FACTOR if self.predicted_half_width else False


def predictions(views: Sequence[View]) -> tuple[list[Prediction], dict[str, float]]:
    """Of all comparisons of several seeds; and `between` of each paper, measured with all seeds.

    Args:
        views: Exhibits with all their seeds.
    """
    found: dict[tuple[str, str, str], list[Prediction]] = {}
    known: dict[str, list[Any]] = {}
    for view in views:
        paper = view.name.partition("/")[0]
        for claim in view.exhibit.claims:
            if claim.test in ("none", "correlation"):
                continue
            for comparison in judge(view, claim).comparisons:
                difference = difference_of(comparison)
                if difference is None or not difference.sampling or difference.seedless or comparison.spread is None:
                    continue
                key = (paper, comparison.what, str(difference.by_seed_S))
                if key in found:
                    continue
                if len(difference.by_seed_S) > 1 and not math.isnan(comparison.spread.low):
                    known.setdefault(paper, []).append(difference)
                    seeds = _seeds(comparison)
                    of_claim = [_predicted(paper, claim.test, comparison, seed, seeds) for seed in seeds]
                    found[key] = [each for each in of_claim if each is not None]
    return [each for group in found.values() for each in group], {paper: pooled(each).ratio for paper, each in known.items()}


def _seeds(comparison: Comparison) -> list[int]:
    cells = [cell for part in comparison.of for _, cell in (*part.terms, *part.divisor) if not cell.seedless and not cell.quoted]
    return sorted(set.intersection(*({each.seed for each in cell.measured} for cell in cells)))


def _predicted(paper: str, test: Any, comparison: Comparison, seed: int, seeds: Sequence[int]) -> Prediction | None:
    """From one seed alone, with what is assumed of the others."""
    alone = replace(comparison, of=tuple(
        replace(part, terms=_of_seed(part.terms, seed), divisor=_of_seed(part.divisor, seed)) for part in comparison.of
    ))  # fmt: skip
    difference = difference_of(alone)
    model = None if difference is None else model_of(difference, ASSUMED)
    if model is None or comparison.spread is None:
        return None
    future = futures([model], len(seeds))[0]
    low, high = np.quantile(future.values_KN.mean(1), [0.025, 0.975])
    supported, contradicted = (float(each.mean()) for each in outcomes(test, comparison.bound, 1, future))
    probability = {"supported": supported, "contradicted": contradicted}.get(comparison.outcome, 1 - supported - contradicted)
    spread = comparison.spread
    return Prediction(
        paper, comparison.what, list(seeds).index(seed), len(seeds), spread.mean, float(low), float(high),
        (spread.high - spread.low) / 2, float(np.median(half_width(future))), comparison.outcome, probability,
    )  # fmt: skip


def _of_seed(terms: Sequence[tuple[float, Cell]], seed: int) -> tuple[tuple[float, Cell], ...]:
    return tuple((weight, cell if cell.quoted else with_seeds(cell, [seed])) for weight, cell in terms)


def summary(found: Sequence[Prediction]) -> dict[str, Any]:
    """Shares over predictions."""
    return {
        "comparisons": len({(each.paper, each.what) for each in found}), "predictions": len(found),
        "differences_inside": round(statistics.fmean(each.inside for each in found), 3),
        "half_widths_within_factor": round(statistics.fmean(each.close for each in found), 3),
        "half_width_over_predicted": round(
            statistics.median(each.half_width / each.predicted_half_width for each in found if each.predicted_half_width), 3
        ),
        "probability_of_what_came": round(statistics.fmean(each.probability for each in found), 3),
    }  # fmt: skip


def decided(views: Sequence[View]) -> list[dict[str, Any]]:
    """The expected number of decided comparisons for each of MORE, by paper; the first entry is today's.

    Args:
        views: Exhibits with all their seeds.
    """
    judged = [(view.name.partition("/")[0], judge(view, claim)) for view in views for claim in view.exhibit.claims]
    judged = [(paper, verdict) for paper, verdict in judged if verdict.comparisons]
    papers = list(dict.fromkeys(paper for paper, _ in judged))
    differences = [(paper, difference_of(each)) for paper, verdict in judged for each in verdict.comparisons]
    others = {name: pooled(each for paper, each in differences if paper == name and each is not None) for name in papers}
    known = ("supported", "contradicted")
    today = {name: sum(each.outcome in known for paper, verdict in judged for each in verdict.comparisons if paper == name)
             for name in papers}  # fmt: skip
    counts = {name: sum(len(verdict.comparisons) for paper, verdict in judged if paper == name) for name in papers}
    found: list[dict[str, Any]] = [{"comparisons": counts, "decided": today}]
    settled = dict.fromkeys(papers, 0)
    planned: list[tuple[str, Verdict, list[tuple[Comparison, Model]]]] = []
    for paper, verdict in judged:
        models = [(each, _model(each, verdict, others[paper])) for each in verdict.comparisons]
        planned.append((paper, verdict, [(each, model) for each, model in models if model is not None]))
        settled[paper] += sum(each.outcome in known for each, model in models if model is None)
    for seeds, images in MORE:
        expected: dict[str, float] = dict(settled)
        for paper, verdict, open_ones in planned:
            least = max([seeds, *(len(model.by_seed_S) for _, model in open_ones)])
            drawn = futures([model for _, model in open_ones], least, images)
            for (each, _), future in zip(open_ones, drawn, strict=True):
                yes, no = outcomes(verdict.claim.test, each.bound, len(verdict.comparisons), future)  # type: ignore[arg-type]
                expected[paper] += float((yes | no).mean())
        found.append({"seeds": seeds, "images": images, "decided": {name: round(each, 1) for name, each in expected.items()}})
    return found


def _model(comparison: Comparison, verdict: Verdict, others: Between) -> Model | None:
    """What the future of a comparison is drawn from; None where it counts as it is today."""
    difference = difference_of(comparison)
    if difference is None or difference.seedless or verdict.claim.test == "correlation":
        return None
    return None if comparison.spread is None or math.isnan(comparison.spread.low) else model_of(difference, others)


def measure(runs: Sequence[Path], scale: Scale) -> dict[str, Any]:
    """Everything that is written.

    Raises:
        InputError: No comparison has several seeds.
    """
    views = collect(exhibit_names(), scale, RunFolders(runs))
    found, between = predictions(views)
    if not found:
        raise InputError(f"{' '.join(map(str, runs))}: no comparison with images has several finished seeds at {scale} scale.")
    by_seed = {"first seed alone": [each for each in found if each.seed == 0], "each seed alone": found}
    return {
        "scale": scale, "factor": FACTOR, "assumed_between": ASSUMED.ratio,
        "measured_between": {paper: round(ratio, 2) for paper, ratio in between.items()},
        "from": {
            name: {"all": summary(group), **{
                paper: summary([each for each in group if each.paper == paper]) for paper in between
            }} for name, group in by_seed.items()
        },
        "decided": decided(views),
        "first_seed": [_entry(each) for each in by_seed["first seed alone"]],
    }  # fmt: skip


def _entry(each: Prediction) -> Mapping[str, Any]:
    numbers = {
        name: float(f"{getattr(each, name):.4g}")
        for name in ("measured", "low", "high", "half_width", "predicted_half_width", "probability")
    }
    return {"paper": each.paper, "what": each.what, "seeds": each.seeds, "outcome": each.outcome, **numbers}


def main() -> None:
    options_of = harness.command_line(__doc__, "write all predictions, and the shares, as JSON")
    options_of.add_argument("--runs", nargs="+", type=Path, default=[Path("runs/papers")], metavar="DIR")
    options_of.add_argument("--scale", choices=SCALES, default="miniature")
    options = options_of.parse_args()
    try:
        result = measure(options.runs, options.scale)
    except InputError as error:
        print(f"power: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for name, groups in result["from"].items():
        for group, shares in groups.items():
            print(f"{name}, {group}: {', '.join(f'{key} {value}' for key, value in shares.items())}")
    print(f"between: assumed {result['assumed_between']}, measured {result['measured_between']}")
    every = sum(result["decided"][0]["comparisons"].values())
    for each in result["decided"]:
        what = f"{each['seeds']} seeds, {each['images']} x the images" if "seeds" in each else "today"
        numbers = ", ".join(f"{name} {number}" for name, number in each["decided"].items())
        print(f"decided, {what}: {numbers}; all {sum(each['decided'].values()):.0f} of {every}")
    origin = harness.heading("power", "cpu", {}, environment=()) if options.out is not None else {}
    harness.write(origin | result, options.out)


if __name__ == "__main__":
    main()
