"""What the report finds of a finished run."""

from __future__ import annotations

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
