"""More of a run that is finished: further epochs from its last step, or new training from its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from end_to_end import STEPS, arguments, crosslight, metrics, results, succeed

from experiments.runs.results import read_results
from experiments.runs.seeds import configuration_of


def test_a_finished_run_goes_on_in_a_folder_of_its_own(head_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = crosslight("run", *arguments("head", "--trainer.max_epochs=2", f"--run_dir={head_run}"))
    assert answer.status == 2
    last = head_run / "checkpoints" / "last.ckpt"
    assert "trainer.max_epochs" in answer.error
    assert f"--ckpt_path={last} goes on where it stopped, for more epochs" in answer.error
    assert f"--model.init_args.init_from={head_run} starts new training from its best weights" in answer.error

    more = tmp_path / "more"
    monkeypatch.chdir(tmp_path)
    answer = succeed(
        "run", "-c", str(head_run / "config.yaml"), "--trainer.max_epochs=2", f"--ckpt_path={last}", "--run_dir=more"
    )
    first, *rest = answer.out.splitlines()
    said = f"training: {STEPS} steps an epoch, 2 epochs, {2 * STEPS} steps in all; {STEPS} of them are done; "
    assert first.startswith(said)
    assert first.endswith(" parameters train")
    assert rest[-1] == "results:  more/results.json"
    found = results(more)
    assert (found["fit"]["steps"], found["resumed_from"]) == (2 * STEPS, str(last))
    assert {step for step, _ in metrics(more, "train/loss")} == set(range(STEPS, 2 * STEPS))  # the optimizer's steps go on
    state = torch.load(more / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert {int(each["step"]) for each in state.values()} == {2 * STEPS}

    of_more = read_results(more)
    one, other = (configuration_of(more, each) for each in (of_more, replace(of_more, resumed_from=None)))
    assert one.digest != other.digest
    assert str(one.options["ckpt_path"]).startswith("checkpoints/last.ckpt of run ")


def test_what_cannot_go_on_is_refused(head_run: Path, tmp_path: Path) -> None:
    last = head_run / "checkpoints" / "last.ckpt"
    config = ("-c", str(head_run / "config.yaml"), f"--ckpt_path={last}")
    answer = crosslight("run", *config, "--model.init_args.optimization.lr=0.5", f"--run_dir={tmp_path / 'run'}")
    assert answer.status == 2
    assert "optimization.lr), so it cannot be resumed under this one" in answer.error
    assert "--model.init_args.init_from" in answer.error
    frozen = ("--model.init_args.tuning=frozen", f"--model.init_args.init_from={head_run}")
    answer = crosslight("run", *config, *frozen, f"--run_dir={tmp_path / 'run'}")
    assert answer.status == 2
    assert f"nothing trains in this model, so nothing goes on from {last}" in answer.error
