"""A claim's line: the paper's number, and what each scale found."""

from __future__ import annotations

import csv
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.papers.catalogue import exhibit_names, read_exhibit
from experiments.papers.schema import SCALES, Claim
from experiments.report import lines, scales
from experiments.report.bootstrap import Spread
from experiments.report.collect import collect
from experiments.report.verdicts import Comparison, Outcome, Verdict
from experiments.runs.store import RunFolders


class Table(HTMLParser):
    """Rows of the tables of claims: the attributes and text of their cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[dict[str, str | None], str]]] = []
        self._inside = self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._inside = dict(attrs).get("class") == "lines"
        elif tag == "tr" and self._inside:
            self.rows.append([])
        elif tag in ("th", "td") and self._inside:
            self.rows[-1].append((dict(attrs), ""))
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._cell:
            attributes, text = self.rows[-1][-1]
            self.rows[-1][-1] = (attributes, text + data)


def test_every_claim_has_one_line_with_the_verdicts_of_all_scales(home: Path, site: Path) -> None:
    rows = Table((site / "index.html").read_text()).rows
    titles = [f"{scale.capitalize()} scale" for scale in SCALES]
    heads = [row for row in rows if row[0][0].get("scope") == "col"]
    assert [[text for _, text in row] for row in heads] == [["Claim", "Paper", *titles]] * 3, "a table a paper"
    claims = [row for row in rows if row[0][0].get("scope") == "row"]
    texts = [claim.text for name in exhibit_names() for claim in read_exhibit(name).claims]
    assert [text.startswith(wanted) for (_, text), wanted in zip((row[0] for row in claims), texts, strict=True)] == [True] * len(
        texts
    )
    verdicts = {line["claim"]: line["verdict"] for line in csv.DictReader((site / "claims.csv").open())}
    for row, wanted in zip(claims, texts, strict=True):
        assert [attributes["data-label"] for attributes, _ in row[1:]] == ["Paper", *(scale.capitalize() for scale in SCALES)]
        said = {str(attributes["data-label"]): (attributes["data-sort"], text) for attributes, text in row[2:]}
        outcome, text = said["Miniature"]
        assert (outcome or "not decided") == verdicts[wanted]
        assert "not run" in said["Full"][1] or verdicts[wanted] == "not tested"
        if outcome in ("supported", "contradicted"):
            assert "embedded world, " in text
    (within,) = (row for row in claims if row[0][1].startswith("loses less than 1 point"))
    assert within[1][1] == "−0.7asked: at most 1 below"


def comparison(what: str, outcome: Outcome, mean: float, half: float, bound: float = 0.0) -> Comparison:
    return Comparison(what, outcome, Spread(mean, mean - half, mean + half, math.nan, math.nan), bound, "made up")


def said(claim: Claim, outcome: Outcome, *compared: Comparison) -> lines.Said:
    return lines._said("full", scales.Finding(Verdict(claim, outcome, "at full scale, coco, 2 seeds", "why", compared)))


@pytest.mark.parametrize(
    ("test", "mean", "half", "number"),
    [
        ("greater", 24.64, 8.7, "+24.6 [+15.9, +33.3]"),
        ("greater", -0.123, 0.0456, "−0.123 [−0.169, −0.077]"),
        ("within", 130.0, 55.0, "+130 [+75, +185]"),
        ("ratio", 0.8349, 0.02, "×0.835 [0.815, 0.855]"),
        ("correlation", 0.5, 0.25, "r 0.50 [0.25, 0.75]"),
        ("amount", 4.49, math.nan, "+4.49, no interval"),
        ("ratio", 0.0312, 0.0, "×0.0312"),
    ],
)
def test_numbers_have_the_digits_that_their_interval_allows(test: str, mean: float, half: float, number: str) -> None:
    found = said(Claim("a", test), "not decided", comparison("x", "not decided", mean, half))  # type: ignore[arg-type]
    assert found.number == number
    assert found.note == "coco, 2 seeds"


def test_of_several_comparisons_the_one_that_decides_is_shown_and_all_are_drawn() -> None:
    claim = Claim("a", "greater")
    strong, weak = comparison("strong", "supported", 8.0, 1.0), comparison("weak", "supported", 2.0, 1.5)
    found = said(claim, "supported", strong, weak)
    assert found.number == "+2.0 [+0.5, +3.5]"
    assert found.note == "2 of 2 comparisons supported, the weakest is weak; coco, 2 seeds"
    against = comparison("against", "contradicted", -3.0, 1.0)
    found = said(claim, "contradicted", strong, against, weak)
    assert found.note.startswith("1 of 3 comparisons contradicted, such as against")
    assert [bar.outcome for bar in found.bars] == ["supported", "contradicted", "supported"]
    assert [bar.mean > 50 for bar in found.bars] == [True, False, True]
    assert all(4 <= end <= 96 for bar in found.bars for end in (bar.low, bar.mean, bar.high) if end is not None)
    assert found.bars[0].high == 96.0, "the widest fills the strip"
    assert "strong: +8.0 [+7.0, +9.0]; against: " in found.words


def test_where_all_that_is_measured_supports_and_a_row_is_missing_both_are_said() -> None:
    found = said(
        Claim("c", "greater"), "not decided", comparison("a", "supported", 2.0, 0.5), comparison("b", "supported", 1.0, 0.5)
    )
    assert found.note.startswith("2 comparisons supported, such as b; why"), "`why` is what is missing; not: 0 of 2"


def test_what_was_not_measured_reads_as_such() -> None:
    claim = Claim("a", "greater", [["x", "y"]], [["z", "y"]])
    assert lines._said("full", scales.Finding(None, scales.NOT_RUN)).note == "not run"
    nothing = Verdict(claim, "not decided", "", "nothing measured of x (y)")
    assert lines._said("full", scales.Finding(nothing)).note == "nothing measured of x (y)"
    alone = said(claim, "not decided", comparison("x", "not decided", 1.0, math.nan))
    assert (alone.bars[0].low, alone.bars[0].high) == (None, None)


def test_the_papers_own_numbers_of_its_claims() -> None:
    """Of the real tables: differences, ratios and sizes as a reader would work them out."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in ("mwa/table1", "i_tuning/table3", "iais/table1", "iais/figure3"):
        (view,) = collect([name], "full", RunFolders([]))
        for claim in view.exhibit.claims:
            found.setdefault((name, claim.test), []).append(f"{lines.printed(view, claim)} {lines.asked(claim)}".strip())
    assert found["iais/table1", "amount"] == ["+4.49", "+4.49", "+3.50", "+3.50"]
    assert found["iais/table1", "relative"] == ["×1.17", "×1.17", "×1.07", "×1.07"]
    assert found["iais/table1", "greater"] == ["+2.92 to +6.95"]
    assert found["mwa/table1", "within"] == ["−0.9 to 0.0 asked: at most 1 below", "−0.9 to 0.0 asked: at most 0 below"]
    assert found["mwa/table1", "ratio"][0] == "×0.58 asked: at most ×0.43"
    assert found["iais/figure3", "correlation"] == ["r −0.60"]
    assert found["i_tuning/table3", "none"] == ["–"]
