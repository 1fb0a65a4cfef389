"""Every claim of the catalogue, judged on made-up runs: there are runs that support it, and others that contradict it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from experiments.papers.catalogue import exhibit_names, published_row, published_table, read_exhibit
from experiments.papers.schema import Claim, Scale
from experiments.report.collect import Cell, Measured, VariantView, View
from experiments.report.verdicts import judge

Value = tuple[str, str]  # variant, column
SEEDS = 3
TESTED = [
    (name, number)
    for name in exhibit_names()
    for number, claim in enumerate(read_exhibit(name).claims)
    if claim.high or claim.gain is not None
]


def view_of(name: str, values: Mapping[Value, float], scale: Scale = "full") -> View:
    """An exhibit of which these values were measured, with three seeds that hardly differ."""
    exhibit = read_exhibit(name)
    variants = []
    for variant in exhibit.variants:
        cells = {}
        for column in exhibit.columns:
            value = values.get((variant.label, column.name))
            noise = np.random.default_rng(zlib.crc32(f"{variant.label}{column.name}".encode())).normal(0, 0.03, SEEDS)
            noise -= noise.mean()
            seeds = (
                () if value is None else tuple(Measured(seed, value + more, data="d") for seed, more in enumerate(noise.tolist()))
            )
            cells[column.name] = Cell(variant.label, column, measured=seeds)
            if cells[column.name].counted and value is not None:
                cells[column.name] = Cell(variant.label, column, measured=(Measured(0, value),))
        variants.append(VariantView(variant, {}, cells))
    quoted = [
        (str(row["model"]), {key: float(value) for key, value in row.items() if type(value) in (int, float)})
        for row in published_table(exhibit)
        if row["quoted"]
    ]
    return View(name, exhibit, scale, tuple(variants), tuple(quoted))


def made_up(name: str, claim: Claim, holds: bool) -> dict[Value, float]:
    """Values that make a claim hold, or fail, by a margin that no seed hides: the solution of its equations nearest to 50."""
    view = view_of(name, {})
    off = 5.0 if holds else -5.0
    equations: list[tuple[dict[Value, float], float]] = []

    def difference(high: Sequence[Value], low: Sequence[Value], wanted: float) -> None:
        terms: dict[Value, float] = {}
        for side, sign in ((high, 1.0), (low, -1.0)):
            for value in side:
                terms[value] = terms.get(value, 0.0) + sign / len(side)
        equations.append((terms, wanted))

    pairs = [((a[0], a[1]), (b[0], b[1])) for a, b in zip(claim.high, claim.low, strict=True)]
    if claim.test in ("greater", "within"):
        for high, low in pairs:
            difference([high], [low], (-claim.margin if claim.test == "within" else claim.margin) + off)
    elif claim.test == "ratio":
        for high, low in pairs:
            divisor = 100.0 if not view.cell(*low).quoted else float(view.cell(*low).mean or 0)
            equations += [({low: 1.0}, divisor), ({high: 1.0}, divisor * claim.margin * (0.9 if holds else 1.1))]
    elif claim.test == "correlation":
        for place, (high, low) in enumerate(pairs):
            x = 50.0 + 4 * place
            equations += [({high: 1.0}, x), ({low: 1.0}, (x if holds else -x) + (-1.0) ** place)]
    else:
        assert claim.gain is not None
        than = 3.0
        if claim.than is not None:
            difference(*sides(claim.than), than)
        wanted = {
            "mean": (than if claim.than else 0.0) + claim.margin + off,
            "amount": claim.margin + (0.0 if holds else 5.0),
            "relative": than * (claim.margin if holds else claim.margin - 0.5),
        }[claim.test]
        difference(*sides(claim.gain), wanted)

    unknown = list(dict.fromkeys(value for terms, _ in equations for value in terms if not view.cell(*value).quoted))
    left, right = np.zeros((len(equations), len(unknown))), np.zeros(len(equations))
    for row, (terms, wanted) in enumerate(equations):
        right[row] = wanted
        for value, weight in terms.items():
            if value in unknown:
                left[row, unknown.index(value)] = weight
                right[row] -= 50.0 * weight
            else:
                right[row] -= weight * float(view.cell(*value).mean or 0)
    found = np.linalg.lstsq(left, right, rcond=None)[0]
    return {value: 50.0 + float(more) for value, more in zip(unknown, found, strict=True)}


def sides(gain: Any) -> tuple[list[Value], list[Value]]:
    return tuple([(row, column) for row in rows for column in gain.columns] for rows in (gain.of, gain.over))  # type: ignore[return-value]


@pytest.mark.parametrize(("name", "number"), TESTED)
def test_a_claim_can_hold_and_can_fail(name: str, number: int) -> None:
    claim = read_exhibit(name).claims[number]
    for holds, outcome in ((True, "supported"), (False, "contradicted")):
        values = made_up(name, claim, holds)
        verdict = judge(view_of(name, values), claim)
        assert verdict.outcome == outcome, verdict.summary
        (first, *_) = verdict.comparisons
        assert first.what
        assert first.spread is not None
        small = judge(view_of(name, values, "miniature"), claim)
        quoted = any(view_of(name, {}).cell(*pair).quoted for pair in pairs_of(claim))
        assert small.outcome == ("not decided" if quoted else outcome)
        if quoted:
            assert "not run here: what the paper prints is of full scale" in small.summary
    nothing = judge(view_of(name, {}), claim)
    assert nothing.outcome == "not decided"


def pairs_of(claim: Claim) -> list[list[str]]:
    return [*claim.high, *claim.low, *(pair for gain in (claim.gain, claim.than) if gain is not None for pair in gain.cells)]


def printed(name: str) -> dict[Value, float]:
    """The paper's own numbers as if we had measured them."""
    exhibit = read_exhibit(name)
    values: dict[Value, float] = {}
    for variant in exhibit.variants:
        row = published_row(exhibit, variant) or {}
        for column in exhibit.columns:
            parts = [row.get(part) for part in column.sum_of or [column.name]]
            if None not in parts:
                values[variant.label, column.name] = sum(float(part) for part in parts if part is not None)
    return values


def verdicts_of_printed(name: str, test: str, **further: float) -> list[tuple[float, str]]:
    values = printed(name) | {tuple(key.split("|")): value for key, value in further.items()}  # type: ignore[misc]
    view = view_of(name, values)
    return [(claim.margin, judge(view, claim).outcome) for claim in view.exhibit.claims if claim.test == test]


def test_sizes_of_the_papers_own_numbers() -> None:
    """A size is what the paper's own table gives where it says how: against both baselines. Against its own baseline alone it is
    not, which the reasons say."""
    said, other = "supported", "contradicted"
    name = "iais/table1"
    assert verdicts_of_printed(name, "amount") == [(4.49, other), (4.49, said), (3.5, other), (3.5, said)]
    assert verdicts_of_printed(name, "relative") == [(1.172, other), (1.172, said), (1.07, said), (1.07, said)]
    # text more than images; base more than large (only against both); singular more than distributed
    assert [found for _, found in verdicts_of_printed(name, "mean")] == [said, other, said]
    both = {"singular, both|meta_sum": 546.30, "distributed, both|meta_sum": 547.02}
    assert verdicts_of_printed("iais/table3", "amount", **both) == [(1.05, said), (1.11, said)]
    assert verdicts_of_printed("mwa/table1", "mean") == [(0.0, said)]
    assert verdicts_of_printed("i_tuning/table1", "amount") == [(3.5, said), (2.0, said), (1.5, other)]
    assert verdicts_of_printed("i_tuning/table2", "amount") == [(4.0, said)]


def test_a_gain_of_other_seeds_is_not_made_up() -> None:
    """Only seeds that all rows have count; a mean over what is not all there is no mean."""
    name = "iais/table3"
    claim = next(each for each in read_exhibit(name).claims if each.test == "amount")
    values = made_up(name, claim, holds=True)
    del values["singular, vision", "meta_sum"]
    verdict = judge(view_of(name, values), claim)
    assert (verdict.outcome, verdict.summary) == ("not decided", "nothing measured of singular, vision (Meta-Sum)")
