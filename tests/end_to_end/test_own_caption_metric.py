"""A caption metric in a file outside of the package, by its class path: chosen by, logged, stored image by image, in tables."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from end_to_end import captioner, crosslight, metrics, results, succeed

OWN = Path(__file__).parent / "own"
SCORING = "--model.init_args.scoring"


def test_it_is_as_good_as_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len((OWN / "own_caption_metric.py").read_text().splitlines()) <= 40
    monkeypatch.syspath_prepend(OWN)
    both = "[cider, own_caption_metric.LengthMatch]"
    options = (
        f"{SCORING}.metrics={both}", f"{SCORING}.val_metrics={both}", "--checkpoint.monitor=val/length_match",
        "--trainer.max_steps=2", "--trainer.val_check_interval=2", f"--run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    succeed("run", *captioner("i_tuning", *options))
    run = tmp_path / "run"
    found = results(run)
    assert (found["fit"]["monitor"], found["fit"]["steps"]) == ("val/length_match", 2)
    logged = metrics(run, "val/length_match")
    assert all(math.isfinite(value) for _, value in logged)
    assert [step for step, _ in logged] == [step for step, _ in metrics(run, "val/cider")]
    (evaluation,) = found["evaluations"]
    assert evaluation["metrics"].keys() == {"cider", "length_match"}
    assert evaluation["notes"]["columns"] == {"cider": "CIDEr", "length_match": "length"}

    beside = json.loads((run / "captions" / "flickr30k-test.beside.json").read_text())
    each = np.load(run / evaluation["per_query_file"])["length_match"]
    assert [row["scores"]["length_match"] for row in beside] == pytest.approx(each, abs=1e-6)
    assert evaluation["metrics"]["length_match"] == pytest.approx(each.mean())
    assert 0 < each.mean() <= 1

    monkeypatch.undo()  # what was measured is shown without the file that measured it
    header, _, row = (line.split("|") for line in succeed("table", str(run)).out.splitlines())
    cells = {heading.strip(): cell.strip() for heading, cell in zip(header, row, strict=True)}
    assert cells["length"] == f"{100 * each.mean():.1f}"
    assert "CIDEr" in cells


def test_one_that_cannot_be_used_is_refused_before_training(tmp_path: Path) -> None:
    answer = crosslight("run", *captioner("i_tuning", f"{SCORING}.metrics=[own_metric.Gone]", f"--run_dir={tmp_path / 'run'}"))
    assert answer.status == 2
    assert "own_metric.Gone" in answer.error
    assert "in a file on PYTHONPATH" in answer.error
    assert "Traceback" not in answer.error
