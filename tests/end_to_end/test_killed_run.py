"""A run that is killed, then preempted by Slurm, in mid-epoch ends, resumed by the same command, as if nothing had happened."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from end_to_end import arguments, crosslight, forked, metrics, recalls, results, succeed, weights
from forks import ended

from experiments.training import preemption


@contextmanager
def a_job_of_slurm() -> Iterator[None]:
    """Runs of this process listen to Slurm's signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_JOB_ID", "SLURM_PROCID"):
            patch.setenv(name, "0")
        yield
    preemption.listen()  # to nobody
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_killed_in_mid_epoch_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Bit for bit, with dropout in the adapters: 6 steps an epoch, a checkpoint every 3 steps, killed when 10 are done and told
    to leave when 12 are, between a validation and the checkpoint after it."""

    def command(folder: str) -> list[str]:
        return arguments(
            "mwa", "--data.init_args.batch_size=4", "--trainer.max_epochs=3", "--checkpoint.every_n_steps=3",
            "--model.init_args.optimization.lr=0.01", f"--run_dir={tmp_path / folder}",
            "--trainer.callbacks=kill_switch.KillSwitch", "--trainer.callbacks.step=10",
            f"--trainer.callbacks.spent={tmp_path / 'power cut'}", "--trainer.callbacks.notice=12",
        )  # fmt: skip

    with forked(tmp_path / "log", "run", *command("cut")) as process:
        status, printed = ended(process, tmp_path / "log")
    assert status == -signal.SIGKILL, printed
    assert (tmp_path / "power cut").exists()
    assert results(tmp_path / "cut")["status"] == "running"
    left = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert left["global_step"] == 9

    with a_job_of_slurm():
        answer = crosslight("run", *command("cut"))
    assert answer.status == preemption.PREEMPTED, answer.error
    assert results(tmp_path / "cut")["status"] == "interrupted"
    assert results(tmp_path / "cut")["error"].startswith("preempted after step 13.")
    left = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert left["global_step"] == 13

    succeed("run", *command("whole"))  # the power cut is spent, and this is no job of Slurm's: it runs through
    succeed("run", *command("cut"))
    cut, whole = results(tmp_path / "cut"), results(tmp_path / "whole")
    assert (cut["status"], cut["attempts"], whole["attempts"]) == ("finished", 3, 1)
    assert cut["fit"] == whole["fit"]
    assert cut["cost"]["steps"] == whole["cost"]["steps"] == 18
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = weights(tmp_path / "cut", name), weights(tmp_path / "whole", name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), (name, key)
    assert recalls(tmp_path / "cut") == recalls(tmp_path / "whole")
    losses = metrics(tmp_path / "cut", "train/loss")
    assert [step for step, _ in losses] == list(range(18))
    assert losses == metrics(tmp_path / "whole", "train/loss")
    assert metrics(tmp_path / "cut", "val/rsum") == metrics(tmp_path / "whole", "val/rsum")
