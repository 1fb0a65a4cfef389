"""Committed records are the runs that the committed summary was made of: its numbers, to the digits that it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.papers.schema import Scale
from experiments.report import scales
from experiments.report.collect import collect
from experiments.runs.records import opened
from experiments.runs.store import RunFolders

# One exhibit of each archive, and how many numbers it has at least: to plan all of them takes longer than to read them.
RECORDS: dict[Scale, tuple[str, int]] = {"miniature": ("iais/table1", 20), "small": ("mwa/table3", 8)}


def test_all_archives_are_held_against_their_summary() -> None:
    summarized = [file.parent for file in scales.RESULTS.glob("*/summary.json")]
    assert {folder.name for folder in summarized if (folder / "records.tar.xz").is_file()} == set(RECORDS)


@pytest.mark.parametrize("scale", RECORDS)
def test_records_have_the_numbers_of_the_summary(scale: Scale) -> None:
    exhibit, least = RECORDS[scale]
    summary = {each["name"]: each for each in json.loads(_text(scales.RESULTS / scale / "summary.json"))["exhibits"]}
    compared = 0
    with opened([scales.RESULTS / scale / "records.tar.xz"]) as roots:
        for view in collect([exhibit], scale, RunFolders(roots)):
            rows = {row["label"]: row["cells"] for row in summary[view.name]["rows"]}
            for variant in view.variants:
                for name, cell in variant.cells.items():
                    for each in cell.measured if cell.column.metric else ():
                        told = rows[variant.label][name]["seeds"][str(each.seed)]
                        assert told == pytest.approx(each.value, rel=1e-5), (view.name, variant.label, name, each.seed)
                        compared += 1
    assert compared >= least


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
