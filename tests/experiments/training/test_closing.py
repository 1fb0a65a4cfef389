"""What a person reads when a run is over."""

from __future__ import annotations

from pathlib import Path

import pytest
from configurations import CONFIG

from experiments.runs.folder import RunFolder
from experiments.runs.results import DataDescription, Evaluation
from experiments.training.closing import closing
from lightning_modules.callbacks.cost_record import Cost
from lightning_modules.checkpoints.run_folder import Fit

CURVE = "step,train/loss,val/cider,val/bleu_4\n9,2.5,,\n19,,0.5,0.1\n39,,0.75,0.2\n59,,0.6,0.3\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A captioner that has been trained and tested on two data sets."""
    monkeypatch.chdir(tmp_path)
    opened = RunFolder.open("my runs/one", name="one", command="run", config=CONFIG)
    (opened.path / "metrics.csv").write_text(CURVE)
    for folder, file in (("checkpoints", "best.ckpt"), ("captions", "coco-test.json")):
        (opened.path / folder).mkdir()
        (opened.path / folder / file).touch()
    cost = Cost(tunable_parameters=1000, total_parameters=50_000)
    opened.update(fit=Fit(60, 3, "val/cider", 0.75, "checkpoints/best.ckpt"), cost=cost)
    notes = {"columns": {"bleu_4": "B@4", "cider": "CIDEr"}}
    for data, values in (("coco", {"bleu_4": 0.25, "cider": 0.7}), ("nocaps", {"cider": 0.4, "in-domain/cider": 0.45})):
        opened.add(Evaluation(data, "test", "test", values, notes=notes), DataDescription("Made"))
    opened.finish("finished")
    opened.update(seconds=150.0)
    return opened


def test_what_was_measured_where_it_lies_and_what_comes_next(run: RunFolder) -> None:
    assert closing(run).splitlines() == [
        "                                       B@4  CIDEr  in CIDEr",
        "best of 3 validations, after step 40  20.0   75.0         –",
        "coco test                             25.0   70.0         –",
        "nocaps test                              –   40.0      45.0",
        "trained:  1,000 of 50,000 parameters, 60 steps, 3 epochs, 2 min with all tests",
        "weights:  my runs/one/checkpoints/best.ckpt",
        "curves:   my runs/one/metrics.csv",
        "captions: my runs/one/captions",
        "next:     crosslight table 'my runs/one'",
        "          crosslight caption 'my runs/one' IMAGE",
        "          crosslight export 'my runs/one' FOLDER",
        "results:  my runs/one/results.json",
    ]


def test_a_training_without_a_test_names_the_command_that_tests_it(run: RunFolder) -> None:
    run.update(evaluations=())
    assert "          crosslight test -c 'my runs/one'/config.yaml --ckpt_path 'my runs/one'/checkpoints/best.ckpt" in closing(
        run
    )


def test_a_run_in_which_nothing_trains_says_that_it_tested(run: RunFolder) -> None:
    run.update(fit=Fit(steps=0, epochs=0, skipped="nothing trains"))
    assert "trained:  nothing; the model was tested as it is" in closing(run)


def test_metrics_that_cannot_be_read_are_told_beside_the_rest(run: RunFolder) -> None:
    (run.path / "metrics.csv").write_text("step,val/cider\n9,much\n")
    told = closing(run)
    assert "metrics.csv has something else than numbers" in told
    assert "coco test" in told
