"""Pearson's r over the checkpoints of runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from configurations import changed

from datamodules.errors import InputError
from experiments.cli import main as cli
from experiments.report.correlation import pearson, report
from experiments.runs.metrics_csv import Validation, validations
from experiments.runs.results import Results, now, write_results


def test_pearson_is_numpys() -> None:
    generator = np.random.default_rng(0)
    for offset in (0.0, 1e6):
        xs, ys = generator.normal(size=10) + offset, generator.normal(size=10)
        assert pearson(xs.tolist(), ys.tolist()) == pytest.approx(np.corrcoef(xs, ys)[0, 1], abs=1e-9)
    assert pearson([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert pearson([1.0], [2.0]) is None
    assert pearson([1.0, 1.0], [2.0, 3.0]) is None
    with pytest.raises(ValueError, match="2 values against 1"):
        pearson([1, 2], [1])


def test_checkpoints_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows in {
        "a": "0,,,1.5\n9,0.3,200,\n19,0.2,210,1.1\n29,0.1,250,\n39,nan,260,\n49,,270,\n",
        "b": "9,0.4,190,\n19,0.3,150,\n",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(f"step,val/isda,val/rsum,train/loss\n{rows}")
    found = validations(tmp_path / "a")
    assert found == [Validation(9, 0.3, 200), Validation(19, 0.2, 210), Validation(29, 0.1, 250)]
    with pytest.raises(SystemExit) as stop:
        cli.main(["correlate", str(tmp_path)])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "val/isda against val/rsum"
    values = [line.split() for line in lines[2:]]
    isda, meta_sum = [0.3, 0.2, 0.1, 0.4, 0.3], [200, 210, 250, 190, 150]
    r = [np.corrcoef(isda[:count], meta_sum[:count])[0, 1] for count in (3, 5)]
    assert values == [
        [str(tmp_path / "a"), "3", f"{r[0]:.3f}"],
        [str(tmp_path / "b"), "2", "1.000"],
        ["all", "5", f"{r[1]:.3f}"],
    ]


def test_all_runs_together_say_what_they_are(tmp_path: Path) -> None:
    for name, seed, lr in (("a", 0, 1e-3), ("b", 1, 1e-3), ("c", 1, 1e-3), ("d", 1, 2e-3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("step,val/isda,val/rsum\n9,0.3,200\n19,0.2,210\n")
        write_results(tmp_path / name, Results("finished", "run", "x", "c", now(), seed=seed))
        config = changed(seed_everything=seed, model__init_args__optimization__lr=lr)
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    assert report([tmp_path / "a", tmp_path / "b"])[-1].startswith("all  ")
    assert report([tmp_path])[-1].startswith("all, 2 configurations, 3 different runs of 4  ")


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no metrics\.csv"):
        report([tmp_path])
    (tmp_path / "metrics.csv").write_text("step,val/rsum,val/loss\n9,200,1\n")
    with pytest.raises(InputError, match="no column val/isda; of validation it has val/loss, val/rsum"):
        validations(tmp_path)
