"""Verdicts of made-up numbers whose answer is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import write_run

from datamodules.errors import InputError
from experiments.papers.schema import Claim, Column, Exhibit, Figure, Gain, Variant
from experiments.report.bootstrap import PerImage
from experiments.report.collect import Cell, Measured, VariantView, View
from experiments.report.site import differences
from experiments.report.verdicts import judge
from experiments.runs.store import Run

RECALL = Column("ir1", "IR@1", metric="t2i_r1")
COUNT = Column("params", "Tunable", cost="tunable_parameters")
TIME = Column("minutes", "Minutes", cost="seconds_per_epoch")


def recall(value: float, seeds: int = 1, images: int = 200, fingerprint: str = "f", noise: float = 0.0) -> tuple[Measured, ...]:
    """That share of the images is found, always the same ones first."""
    measured = []
    for seed in range(seeds):
        share = value + noise * (-1) ** seed
        found = (np.arange(images) < share * images).astype(float)[:, None]
        by_image = PerImage(found, np.ones((images, 1)), 100.0)
        measured.append(Measured(seed, by_image.value(), by_image, fingerprint, "flickr30k"))
    return tuple(measured)


def numbers(*values: float) -> tuple[Measured, ...]:
    return tuple(Measured(seed, value) for seed, value in enumerate(values))


def view(
    rows: Mapping[str, Mapping[str, tuple[Measured, ...]]], scale: Any = "miniature", published: float | None = None, **cell: Any
) -> View:
    columns = {each.name: each for each in (RECALL, COUNT, TIME)}
    made = []
    for label, cells in rows.items():
        filled = {
            name: Cell(label, column, published, cells.get(name, ()), planned=cells.get(name) != ("none",))
            for name, column in columns.items()
        }
        filled = {
            name: each if each.planned else Cell(label, each.column, published, (), planned=False)
            for name, each in filled.items()
        }
        made.append(VariantView(Variant(label, {}), {}, filled))
    exhibit = Exhibit("made up", "table", variants=[each.declared for each in made], columns=list(columns.values()))
    return View("mwa/made", exhibit, scale, tuple(made))


def claim(
    test: Any, column: str = "ir1", margin: float = 0.0, high: Sequence[str] = ("A",), low: Sequence[str] = ("B",)
) -> Claim:
    return Claim("a claim", test, [[label, column] for label in high], [[label, column] for label in low], margin)


def outcome(found: View, asked: Claim) -> str:
    return judge(found, asked).outcome


def test_greater_needs_a_difference_that_the_queries_carry() -> None:
    assert outcome(view({"A": {"ir1": recall(0.6)}, "B": {"ir1": recall(0.4)}}), claim("greater")) == "supported"
    assert outcome(view({"A": {"ir1": recall(0.4)}, "B": {"ir1": recall(0.6)}}), claim("greater")) == "contradicted"
    assert outcome(view({"A": {"ir1": recall(0.405)}, "B": {"ir1": recall(0.4)}}), claim("greater")) == "not decided"
    equal = view({"A": {"ir1": recall(0.5)}, "B": {"ir1": recall(0.5)}})
    assert outcome(equal, claim("greater")) == "not decided"


def test_a_verdict_names_its_scale_world_and_seeds() -> None:
    verdict = judge(view({"A": {"ir1": recall(0.6, 2)}, "B": {"ir1": recall(0.4, 1)}}), claim("greater"))
    assert verdict.sentence == "supported at miniature scale, embedded world, 1 seed", "of what both have"
    verdict = judge(view({"A": {"ir1": recall(0.6)}, "B": {"ir1": recall(0.4)}}, scale="full"), claim("greater"))
    assert verdict.sentence == "supported at full scale, flickr30k, 1 seed"
    assert "paired bootstrap over 200 images" in verdict.comparisons[0].how


def test_the_comparison_is_paired() -> None:
    """2 of 200 queries more, of the same ones: never fewer, but 0.5 points of 40 would drown in the spread of each."""
    found = view({"A": {"ir1": recall(0.44)}, "B": {"ir1": recall(0.40)}})
    spread = judge(found, claim("greater")).comparisons[0].spread
    assert spread is not None
    assert spread.low > 0
    single = found.cell("A", "ir1").interval
    assert single is not None
    assert spread.high - spread.low < (single[1] - single[0]) / 2


def test_seeds_are_resampled_too() -> None:
    """Three trainings differ by 10, 20 and 60 points, which the images alone would know to 7."""
    one = tuple(replace(each, seed=seed) for seed, share in enumerate((0.5, 0.6, 0.99)) for each in recall(share))
    found = view({"A": {"ir1": one}, "B": {"ir1": recall(0.4, 3)}})
    (compared,) = judge(found, claim("greater", margin=15.0)).comparisons
    assert compared.spread is not None
    assert compared.how == "paired bootstrap over 200 images and 3 seeds in common"
    assert compared.spread.low < 15 < 50 < compared.spread.high
    assert compared.outcome == "not decided"
    alone = judge(view({"A": {"ir1": recall(0.63)}, "B": {"ir1": recall(0.4)}}), claim("greater", margin=15.0))
    assert alone.outcome == "supported", "of one seed nothing is known but its images"


def test_seeds_that_disagree_leave_it_open() -> None:
    one = (*recall(0.7, 1), Measured(1, *_of(0.35)))
    other = (*recall(0.4, 1), Measured(1, *_of(0.4)))
    assert outcome(view({"A": {"ir1": one}, "B": {"ir1": other}}), claim("greater")) == "not decided"


def _of(value: float) -> tuple[float, PerImage, str, str]:
    (measured,) = recall(value)
    assert measured.by_image is not None
    return measured.value, measured.by_image, "f", "flickr30k"


def test_other_data_is_not_compared_query_by_query() -> None:
    found = view({"A": {"ir1": recall(0.6)}, "B": {"ir1": recall(0.4, fingerprint="g")}})
    verdict = judge(found, claim("greater"))
    assert verdict.outcome == "not decided"
    assert "not tested on the same data" in verdict.comparisons[0].how


def test_other_data_is_not_compared_seed_by_seed_either() -> None:
    """Several seeds could be compared by Student's t: but the difference would be the data's."""
    of_images = view({"A": {"ir1": recall(0.6, 3)}, "B": {"ir1": recall(0.4, 3, fingerprint="g")}})
    others = tuple(replace(each, fingerprint="f", data="coco") for each in numbers(5.0, 5.1, 4.9))
    of_numbers = view({"A": {"ir1": others}, "B": {"ir1": tuple(replace(each, value=1.0, fingerprint="g") for each in others)}})
    of_part = view({"A": {"ir1": recall(0.6, 3)}, "B": {"ir1": recall(0.4, 3, images=100)}})
    for found, why in ((of_images, "same data"), (of_numbers, "same data"), (of_part, "same images")):
        for asked in (claim("greater"), claim("ratio", margin=9.0)):
            verdict = judge(found, asked)
            assert verdict.outcome == "not decided"
            assert f"not tested on the {why}" in verdict.comparisons[0].how
    elsewhere = tuple(replace(each, data="nocaps", fingerprint="n") for each in numbers(1.0, 1.1, 0.9))
    assert outcome(view({"A": {"ir1": others}, "B": {"ir1": elsewhere}}), claim("greater")) == "supported", "other data by name"


def test_rows_without_a_seed_in_common_are_not_compared() -> None:
    for one, other in ((recall(0.6, 2), recall(0.4, 2)), (numbers(5.0, 5.1), numbers(1.0, 1.1))):
        later = tuple(replace(each, seed=each.seed + 2) for each in other)
        verdict = judge(view({"A": {"ir1": one}, "B": {"ir1": later}}), claim("greater"))
        assert verdict.outcome == "not decided"
        assert verdict.comparisons[0].how == "the two have no seed in common"


def test_a_page_subtracts_what_a_verdict_compares() -> None:
    """Seeds that only one of both has would count as its merit."""
    lucky = Measured(2, *_of(0.9))  # of the first row alone
    found = view({"B": {"ir1": (*recall(0.5, 2), lucky)}, "A": {"ir1": recall(0.6, 2)}})
    shown, judged = differences(found)["A"]["ir1"], judge(found, claim("greater")).comparisons[0].spread
    assert judged is not None
    assert (shown.mean, shown.low, shown.high) == pytest.approx((judged.mean, judged.low, judged.high))
    assert shown.mean == pytest.approx(10.0)
    alone = view({"B": {"ir1": (lucky,)}, "A": {"ir1": recall(0.6, 2)}})
    assert differences(alone) == {}


def test_only_seeds_in_common_are_compared() -> None:
    lucky = Measured(2, *_of(0.9))  # of A alone
    found = view({"A": {"ir1": (*recall(0.5, 2), lucky)}, "B": {"ir1": recall(0.5, 2)}})
    verdict = judge(found, claim("greater", margin=5.0))
    (only,) = verdict.comparisons
    assert only.spread is not None
    assert only.spread.mean == 0.0
    assert "2 seeds in common" in only.how
    assert verdict.outcome == "contradicted"


def test_within() -> None:
    found = view({"A": {"ir1": recall(0.5)}, "B": {"ir1": recall(0.505)}})
    assert outcome(found, claim("within", margin=3.0)) == "supported"
    assert outcome(found, claim("within", margin=0.1)) == "not decided"
    assert outcome(view({"A": {"ir1": recall(0.3)}, "B": {"ir1": recall(0.5)}}), claim("within", margin=3.0)) == "contradicted"
    assert outcome(view({"A": {"ir1": recall(0.7)}, "B": {"ir1": recall(0.5)}}), claim("within", margin=0.0)) == "supported"


def test_counts_need_no_spread_and_times_do() -> None:
    counted = view({"A": {"params": numbers(3.0)}, "B": {"params": numbers(100.0)}})
    assert outcome(counted, claim("ratio", "params", 0.03)) == "supported"
    assert outcome(counted, claim("ratio", "params", 0.029)) == "contradicted"
    once = view({"A": {"minutes": numbers(1.0)}, "B": {"minutes": numbers(9.0)}})
    verdict = judge(once, claim("ratio", "minutes", 0.5))
    assert verdict.outcome == "not decided"
    assert "one run each" in verdict.summary
    thrice = view({"A": {"minutes": numbers(1.0, 1.1, 0.9)}, "B": {"minutes": numbers(9.0, 9.2, 8.8)}})
    assert outcome(thrice, claim("ratio", "minutes", 0.5)) == "supported"
    assert outcome(thrice, claim("ratio", "minutes", 0.05)) == "contradicted"
    assert outcome(thrice, claim("greater", "minutes", high=["B"], low=["A"])) == "supported"


def test_times_that_were_not_measured_alike_are_not_judged() -> None:
    one = tuple(replace(each, conditions="H100, 1 process") for each in numbers(1.0, 1.1, 0.9))
    other = tuple(replace(each, conditions="AMD EPYC, 1 process, 2 threads") for each in numbers(9.0, 9.2, 8.8))
    rows = {"A": {"minutes": one}, "B": {"minutes": other}, "C": {"minutes": numbers(9.0, 9.2, 8.8)}}
    for asked in (
        claim("ratio", "minutes", 0.5),
        claim("greater", "minutes", high=["B"], low=["A"]),
        claim("ratio", "minutes", 0.5, high=["A", "A"], low=["C", "B"]),
    ):
        verdict = judge(view(rows), asked)
        assert verdict.outcome == "not decided"
        assert "not measured alike: " in verdict.summary
        assert "AMD EPYC, 1 process, 2 threads" in verdict.summary
    assert outcome(view({"A": rows["A"], "B": {"minutes": tuple(replace(each, conditions=one[0].conditions) for each in other)}}),
                   claim("ratio", "minutes", 0.5)) == "supported"  # fmt: skip
    mixed = (one[0], replace(one[1], conditions="another"))
    assert outcome(view({"A": {"minutes": mixed}, "B": {"minutes": other}}), claim("ratio", "minutes", 0.5)) == "not decided"


def test_the_mean_of_several_ratios() -> None:
    rows = {"A": {"params": numbers(2.0)}, "B": {"params": numbers(4.0)}, "C": {"params": numbers(1.0)}}
    asked = claim("ratio", "params", 0.4, high=["A", "C"], low=["B", "B"])  # (0.5 + 0.25) / 2
    assert outcome(view(rows), asked) == "supported"
    assert outcome(view(rows), claim("ratio", "params", 0.3, high=["A", "C"], low=["B", "B"])) == "contradicted"
    with pytest.raises(InputError, match="give pairs"):
        judge(view(rows), claim("ratio", "params", 0.3, high=["A", "C"], low=["B"]))


def test_all_comparisons_must_hold_and_one_is_enough_to_contradict() -> None:
    rows = {"A": {"ir1": recall(0.6)}, "B": {"ir1": recall(0.4)}, "C": {"ir1": recall(0.8)}}
    assert outcome(view(rows), claim("greater", high=["A", "C"], low=["B", "B"])) == "supported"
    verdict = judge(view(rows), claim("greater", high=["A", "A"], low=["B", "C"]))
    assert verdict.outcome == "contradicted"
    assert "1 of 2 comparisons contradict it" in verdict.summary


def test_what_is_missing_leaves_a_claim_open_but_does_not_save_it() -> None:
    rows: dict[str, dict[str, Any]] = {"A": {"ir1": recall(0.6)}, "B": {"ir1": recall(0.4)}, "C": {}}
    verdict = judge(view(rows), claim("greater", high=["A", "A"], low=["B", "C"]))
    assert verdict.outcome == "not decided"
    assert verdict.summary == "nothing measured of C (IR@1)"
    assert outcome(view(rows), claim("greater", high=["B", "A"], low=["A", "C"])) == "contradicted"
    elsewhere: dict[str, dict[str, Any]] = {**rows, "C": {"ir1": ("none",)}}  # the scale has no such run
    verdict = judge(view(elsewhere), claim("greater", high=["A", "A"], low=["B", "C"]))
    assert verdict.sentence == "supported at miniature scale, embedded world, 1 seed, 1 of its 2 comparisons"
    assert outcome(view(elsewhere), claim("greater", high=["A"], low=["C"])) == "not decided"


def test_correlation_over_rows() -> None:
    x = np.linspace(0, 1, 8)
    points = {"x": x, "y": -x + 0.1 * np.cos(9 * x)}
    rows = {str(number): {"ir1": numbers(points["x"][number]), "minutes": numbers(points["y"][number])} for number in range(8)}
    high, low = [[str(n), "ir1"] for n in range(8)], [[str(n), "minutes"] for n in range(8)]
    assert judge(view(rows), Claim("r", "correlation", high, low, -0.6)).outcome == "supported"
    assert judge(view(rows), Claim("r", "correlation", high, low, 0.6)).outcome == "contradicted"
    few = Claim("r", "correlation", high[:3], low[:3], -0.6)
    assert judge(view(rows), few).outcome == "not decided"


def test_correlation_over_checkpoints_is_of_each_run(tmp_path: Path) -> None:
    def of(*directions: int) -> Any:
        """A run for each: ISDa and Meta-Sum rise together (1) or not (-1); each has more ISDa, less Meta-Sum than the last."""
        runs, noise = [], np.array([0.1, -0.2, 0.1, 0.2, -0.1, 0.0])
        for seed, direction in enumerate(directions):
            isda, folder = np.arange(6.0), tmp_path / f"{len(list(tmp_path.iterdir()))}"
            rsum = direction * isda + noise * (1 + seed)
            logged = {"val/isda": list(isda + 20 * seed), "val/rsum": list(rsum - 40 * seed)}
            runs.append(Run("iais/r", seed, "finished", write_run(folder, {}, seed=seed, logged=logged)))
        figure = Figure("scatter", logged=["val/isda", "val/rsum"])
        row = VariantView(Variant("base", {}), {"run": tuple(runs)}, {})
        return judge(
            View("iais/f", Exhibit("f", "figure", figure=figure), "miniature", (row,)), Claim("r", "correlation", margin=-0.6)
        )

    assert of(-1, -1, -1).outcome == "supported"
    assert of(1, 1, 1).outcome == "contradicted", "pooled, r would be negative"
    mixed = of(1, -1, -1)
    assert mixed.outcome == "not decided"
    assert mixed.summary.endswith("the runs differ in sign")
    assert "r of each run over its 6 validations, which follow one another: base 1.00, −0.99, −0.97; mean " in mixed.summary
    one = of(-1)
    assert (one.outcome, one.comparisons) == ("not decided", ())
    assert "one run says nothing of others" in one.summary


def test_no_test() -> None:
    verdict = judge(view({}), Claim("as the paper says", "none", reason="needs OSCAR"))
    assert (verdict.outcome, verdict.summary, verdict.sentence) == ("not tested", "needs OSCAR", "not tested")
    with pytest.raises(InputError, match="two `logged` columns"):
        judge(View("iais/f", Exhibit("f", "figure", figure=Figure("scatter")), "full", ()), Claim("r", "correlation"))


def gain_claim(test: str, margin: float, of: Sequence[str], over: Sequence[str], than: Sequence[Sequence[str]] = ()) -> Claim:
    other = Gain(list(than[0]), list(than[1]), ["ir1"]) if than else None
    return Claim("a claim", test, margin=margin, gain=Gain(list(of), list(over), ["ir1"]), than=other)  # type: ignore[arg-type]


def test_a_mean_of_gains_is_resampled_by_image_and_by_data() -> None:
    """Two data sets that each gain 5 points of the same 200 images: together they are surer than one, as two independent draws
    are, and not as sure as if one draw served both."""
    rows = {
        "A": {"ir1": recall(0.45)}, "B": {"ir1": recall(0.40)},
        "C": {"ir1": recall(0.45, fingerprint="g")}, "D": {"ir1": recall(0.40, fingerprint="g")},
    }  # fmt: skip
    one = judge(view(rows), gain_claim("mean", 0.0, "A", "B")).comparisons[0]
    two = judge(view(rows), gain_claim("mean", 0.0, "AC", "BD"))
    assert (two.outcome, two.sentence) == ("supported", "supported at miniature scale, embedded world, 1 seed")
    both = two.comparisons[0]
    assert both.how == "bootstrap over the images of each test set"
    assert both.what == "A and 1 more minus B and 1 more, IR@1"
    assert one.spread is not None
    assert both.spread is not None
    assert one.spread.mean == pytest.approx(5.0)
    assert both.spread.mean == pytest.approx(5.0)
    ratio = (both.spread.high - both.spread.low) / (one.spread.high - one.spread.low)
    assert ratio == pytest.approx(0.5**0.5, abs=0.06)
    # the gain of one over that of the other: 1, and so uncertain that a quarter more is possible
    again = judge(view(rows), gain_claim("relative", 1.25, "A", "B", ("C", "D")))
    assert again.outcome == "not decided"
    assert again.comparisons[0].spread is not None
    assert again.comparisons[0].spread.low < 1 < 1.25 < again.comparisons[0].spread.high
    nothing = judge(view(rows), gain_claim("relative", 1.25, "A", "B", ("D", "C")))
    assert nothing.comparisons[0].how == "what it is divided by is not certainly above 0"


@pytest.mark.parametrize(
    ("claimed", "outcome"),
    [(5.0, "supported"), (4.5, "supported"), (3.0, "not decided"), (9.0, "contradicted"), (0.5, "contradicted")],
)
def test_a_size_is_what_its_interval_holds(claimed: float, outcome: str) -> None:
    rows = {"A": {"ir1": recall(0.45)}, "B": {"ir1": recall(0.40)}}
    verdict = judge(view(rows), gain_claim("amount", claimed, "A", "B"))
    assert verdict.outcome == outcome
    assert verdict.summary.startswith("A minus B, IR@1: 5 [2")
    once = judge(view({"A": {"ir1": numbers(45.0)}, "B": {"ir1": numbers(40.0)}}), gain_claim("amount", claimed, "A", "B"))
    assert (once.outcome, "how much it varies is not known" in once.summary) == ("not decided", True)


def test_a_quoted_number_has_no_spread_of_its_own() -> None:
    rows = {"A": {"ir1": recall(0.45)}, "B": {"ir1": recall(0.40)}}
    found = replace(view(rows, scale="full"), quoted=(("OSCAR", {"ir1": 30.0}),))
    (compared,) = judge(found, claim("greater", low=["OSCAR"])).comparisons
    assert compared.how == "bootstrap over 200 images, against a printed number that is taken as exact"
    assert compared.outcome == "supported"
    alone = found.cell("A", "ir1").interval
    assert alone is not None
    assert compared.spread is not None
    assert (compared.spread.low, compared.spread.high) == pytest.approx((alone[0] - 30, alone[1] - 30))
    assert judge(found, gain_claim("amount", 15.0, ["A"], ["OSCAR"])).outcome == "supported"
    assert judge(replace(found, scale="miniature"), claim("greater", low=["OSCAR"])).outcome == "not decided"


def test_a_gain_over_what_was_measured_otherwise_is_not_judged() -> None:
    rows = {"A": {"ir1": recall(0.45)}, "B": {"ir1": recall(0.40, fingerprint="g")}}
    verdict = judge(view(rows), gain_claim("mean", 0.0, "A", "B"))
    assert (verdict.outcome, verdict.summary) == ("not decided", "the rows were not tested on the same data: IR@1")
    times = {
        label: {"minutes": tuple(replace(each, conditions=device) for each in numbers(value, value + 0.1))}
        for label, value, device in (("A", 9.0, "H100, 1 process"), ("B", 1.0, "AMD EPYC, 1 process"))
    }
    asked = Claim("a claim", "mean", gain=Gain(["A"], ["B"], ["minutes"]))
    assert judge(view(times), asked).summary == "not measured alike: H100, 1 process; AMD EPYC, 1 process"
