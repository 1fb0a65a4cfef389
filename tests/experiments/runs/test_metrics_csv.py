"""metrics.csv while it is being written, and what is read of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import InputError
from experiments.runs.metrics_csv import Validation, history, logged, read_rows, validations

TEXT = """step,train/loss,val/isda,val/rsum
0,2.5,,
1,nan,0.5,100
2,1.5,0.25,inf
3,1.0,0.125,200
4,0.5,0.1"""


def test_half_a_line_and_what_is_not_finite_are_left_out(tmp_path: Path) -> None:
    assert read_rows(tmp_path) == logged(tmp_path, "val/rsum") == validations(tmp_path) == []
    (tmp_path / "metrics.csv").write_text(TEXT)
    assert [row["step"] for row in read_rows(tmp_path)] == ["0", "1", "2", "3"]
    assert logged(tmp_path, "train/loss") == [(0, 2.5), (2, 1.5), (3, 1.0)]
    assert history(tmp_path, "val/rsum") == [100.0, 200.0]
    assert history(tmp_path, "val/cider") == []
    assert validations(tmp_path) == [Validation(1, 0.5, 100.0), Validation(3, 0.125, 200.0)]
    with pytest.raises(InputError, match=r"metrics\.csv has no column val/cider; of validation it has val/isda, val/rsum\."):
        validations(tmp_path, y="val/cider")


def test_history_is_read_while_it_is_written(tmp_path: Path) -> None:
    assert history(tmp_path, "val/rsum") == []
    (tmp_path / "metrics.csv").write_text("step,val/rsum\n0,\n1,3.5\n2,nan\n3,4.5\n4,9")
    assert history(tmp_path, "val/rsum") == [3.5, 4.5]
    assert history(tmp_path, "other") == []
