"""A launch's command line is made of its fields, and a sweep file's words are read into them once."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import srun

from datamodules.errors import InputError
from experiments.sweep.launches import PROGRAM, Launch, read_command, split_options
from experiments.sweep.processes import environment_of
from experiments.training.starts import find_start

WORDS = [
    "run", "-c", "a.yaml", "--config=b.yaml", "--name=x", "--seed_everything", "3", "--scale=full", "--trainer.devices=2",
    "--model.init_args.lr=0.1", "--trainer.callbacks+=A", "--trainer.callbacks+=B", "--data", "configs/data/coco.yaml",
    "--trainer.num_nodes=4", "--trainer.accelerator=gpu", "--trainer.strategy=ddp",
]  # fmt: skip


def launch(**fields: object) -> Launch:
    return Launch("k", "t", "k", Path("/runs/x"), **{"command": None, **fields})  # type: ignore[arg-type]


def test_words_become_fields_and_fields_words() -> None:
    fields = read_command(["/usr/bin/env", "crosslight", *WORDS], "f.yaml")
    one = launch(**fields)
    assert (one.command, one.configs, one.name, one.seed, one.scale) == ("run", ("a.yaml", "b.yaml"), "x", 3, "full")
    assert (one.devices, one.nodes, one.accelerator, one.strategy, one.processes) == ("2", 4, "gpu", "ddp", 2)
    options = ("--model.init_args.lr=0.1", "--trainer.callbacks+=A", "--trainer.callbacks+=B", "--data", "configs/data/coco.yaml")
    assert one.options == options
    assert one.argv == (
        *PROGRAM, "run", "-c", "a.yaml", "-c", "b.yaml", "--name=x", *options, "--seed_everything=3", "--scale=full",
        "--trainer.accelerator=gpu", "--trainer.devices=2", "--trainer.num_nodes=4", "--trainer.strategy=ddp",
        "--run_dir=/runs/x",
    )  # fmt: skip
    assert one.files == ("a.yaml", "b.yaml", "configs/data/coco.yaml")
    assert one.data == ("coco",)
    again = read_command(one.argv[:-1], "f.yaml")
    assert launch(**again) == one
    for program in (["python3", "-m", "experiments.cli"], [sys.executable, "/x/experiments/cli/main.py"], ["/bin/crosslight"]):
        assert read_command([*program, *WORDS], "f.yaml") == fields


def test_another_programs_words_stay_as_they_are() -> None:
    other = launch(**read_command(["python", "train.py", "--x=1", "--data=configs/data/world.yaml", "-c", "y.yaml"], "f.yaml"))
    assert other.argv == ("python", "train.py", "--x=1", "--data=configs/data/world.yaml", "-c", "y.yaml", "--run_dir=/runs/x")
    assert (other.command, other.files, other.data) == (None, ("configs/data/world.yaml", "y.yaml"), ("world",))
    assert not other.is_forked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["crosslight", "run", "--run_dir=x"], "f.yaml: leave --run_dir out of the command"),
        (["python", "train.py", "--run_dir", "x"], "leave --run_dir out"),
        (["crosslight", "table"], "f.yaml: `crosslight table` makes no run"),
        (["crosslight", "run", "--seed_everything=many"], "argument --seed_everything: invalid int value: 'many'"),
        (["crosslight"], "f.yaml: `crosslight ` makes no run; a sweep is of run, fit"),
    ],
)
def test_what_makes_no_run_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_command(words, "f.yaml")


def test_what_may_start_in_a_fork() -> None:
    one = launch(command="run")
    assert one.is_forked
    for change in ({"gpus": 1}, {"devices": "2"}, {"devices": "auto"}, {"strategy": "ddp"}, {"command": None}):
        assert not replace(one, **change).is_forked  # type: ignore[arg-type]
    assert replace(one, devices="auto").processes == 1


def test_options_of_a_plan_become_fields() -> None:
    fields = split_options({"name": "x", "a.b": "1", "seed_everything": "7", "trainer.devices": "2", "scale": "miniature"})
    assert fields == {"name": "x", "seed": 7, "devices": "2", "scale": "miniature", "options": ("--a.b=1",)}


def test_a_run_that_a_batch_script_starts_here_is_no_task_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in srun(0, 4, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_ID")
    with pytest.raises(InputError, match="batch script of a job of 4 tasks"):
        find_start()
    environment = environment_of(launch(command="run"), 2)
    start = find_start(environment)
    assert start.by == "hand"
    start.require(devices=4, nodes=1)
    assert environment["SLURM_JOB_ID"], "it is told of the job's end"


def test_another_program_is_told_how_wandb_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("experiments.training.loggers.wandb_logged_in", lambda: False)
    other = launch(program=("x",), environment={"A": "1"})
    assert other.whole_environment == {"A": "1", "WANDB_MODE": "offline"}
    assert replace(other, command="run").whole_environment == {"A": "1"}  # crosslight sees to that itself
    monkeypatch.setattr("experiments.training.loggers.wandb_logged_in", lambda: True)
    assert other.whole_environment == {"A": "1"}
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert other.whole_environment == {"A": "1"}
