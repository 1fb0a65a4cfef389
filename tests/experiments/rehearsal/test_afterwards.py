"""What the report finds of a finished run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.papers.schema import Column
from experiments.rehearsal import afterwards
from experiments.runs.results import Evaluation, Results, now, write_results

COLUMNS = [
    ("tiny/table", Column("r1", "R@1", metric="i2t_r1")),
    ("tiny/table", Column("m", "M", cost="tunable_parameters")),
    ("tiny/table", Column("s", "s", cost="seconds_per_epoch")),
]


@pytest.mark.parametrize(("trained", "outcome"), [(False, "passed"), (True, "failed")])
def test_where_nothing_trains_there_is_no_cost_of_it(
    trained: bool, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frozen row of a table: its time and memory are left empty; a run that trained has them."""
    monkeypatch.setattr(afterwards, "columns_of", lambda names, scale: COLUMNS)
    if trained:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "best.ckpt").touch()
    evaluation = Evaluation("coco", "test", "test", {"i2t_r1": 5.0})
    write_results(
        tmp_path,
        Results("finished", "run", "x", "c", now(), seed=0, cost={"tunable_parameters": 0}, evaluations=(evaluation,)),
    )
    verdict = afterwards._report(tmp_path, ["tiny/x"], "full")
    assert verdict.outcome == outcome
    assert verdict.said.startswith(
        "2 numbers of 1 exhibits" if outcome == "passed" else "the run has no number for tiny/table: s"
    )


def test_a_program_that_this_machine_lacks_is_not_a_fault_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR without its jar: not known here, with the remedy; a number that lacks without a reason still fails."""
    columns = [("tiny/table", Column(name, name, metric=name)) for name in ("cider", "meteor")]
    monkeypatch.setattr(afterwards, "columns_of", lambda names, scale: columns)
    remedy = "install METEOR: crosslight score --install meteor"
    evaluation = Evaluation("coco", "test", "test", {"cider": 0.5}, notes={"unavailable": {"meteor": remedy}})
    write_results(tmp_path, Results("finished", "run", "x", "c", now(), seed=0, evaluations=(evaluation,)))
    verdict = afterwards._report(tmp_path, ["tiny/x"], "full")
    assert (verdict.outcome, verdict.said) == ("unknown", f"1 numbers of 1 exhibits; without meteor: {remedy}")
    columns.append(("tiny/table", Column("bleu_4", "B@4", metric="bleu_4")))
    verdict = afterwards._report(tmp_path, ["tiny/x"], "full")
    assert verdict.outcome == "failed"
    assert "bleu_4" in verdict.said
    assert "meteor" not in verdict.said.partition("It has")[0]


def test_domains_that_few_images_are_not_of_are_no_fault_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NoCaps: the first images of its validation split may all be of one domain."""
    names = ("cider", "in-domain/cider", "near-domain/cider", "in-domain/spice", "out-domain/spice")
    monkeypatch.setattr(afterwards, "columns_of", lambda *_: [("tiny/table", Column(name, name, metric=name)) for name in names])
    notes = {"unavailable": {"spice": "install SPICE"}}
    evaluation = Evaluation("nocaps", "val[:5]", "test", {"cider": 0.5, "in-domain/cider": 0.5}, notes=notes)
    results = Results("finished", "run", "x", "c", now(), seed=0, evaluations=(evaluation,))
    write_results(tmp_path, results)
    verdict = afterwards._report(tmp_path, ["tiny/x"], "full")
    assert verdict.outcome == "unknown"
    assert verdict.said == (
        "2 numbers of 1 exhibits; without near-domain/cider, in-domain/spice, out-domain/spice: none of the few images is of "
        "near-domain, give more --items; install SPICE"
    )
    write_results(tmp_path, replace(results, evaluations=(replace(evaluation, metrics={"cider": 0.5}),)))
    verdict = afterwards._report(tmp_path, ["tiny/x"], "full")
    assert verdict.outcome == "failed", "no domain has a number: they are not told apart at all"
