"""A sweep file as a user runs it: points in processes of their own, a failing one among them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from agent import wandb_config, wandb_records
from end_to_end import arguments, results

from experiments.cli.main import run_command

LR = "model.init_args.optimization.lr"


def test_a_sweep_runs_its_points_and_keeps_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    command = ["crosslight", "run", *arguments("head", "--trainer.max_epochs=1", "--wandb.enabled=true"), "${args}"]
    content = {"name": "rates", "method": "grid", "parameters": {LR: {"values": [0.02, "high"]}}, "command": command}
    file = tmp_path / "rates.yaml"
    file.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"

    assert run_command("sweep", ["run", str(file), "--out", str(out)]) == 1
    runs = {results(folder)["status"]: folder for folder in out.glob("rates-*")}
    assert set(runs) == {"finished", "failed"}
    assert LR in results(runs["failed"])["error"]
    assert yaml.safe_load((runs["finished"] / "config.yaml").read_text())["model"]["init_args"]["optimization"]["lr"] == 0.02
    assert len(results(runs["finished"])["evaluations"]) == 1

    records = wandb_records(runs["finished"])
    kinds = {record.WhichOneof("record_type") for record in records}
    assert {"run", "history", "exit"} <= kinds  # complete: `wandb sync` has all that an online run would have sent
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert run.run_group == "rates"
    assert wandb_config(records)["model"]["init_args"]["optimization"]["lr"] == 0.02

    capsys.readouterr()
    attempts = [results(folder)["finished"] for folder in runs.values()]
    assert run_command("sweep", ["run", str(file), "--out", str(out)]) == 1
    assert [results(folder)["finished"] for folder in runs.values()] == attempts  # neither ran again
    assert "1 finished, 1 failed" in capsys.readouterr().err
    assert run_command("sweep", ["status", str(out)]) == 1
