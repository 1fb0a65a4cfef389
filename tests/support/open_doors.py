"""A user's own classes, in files outside of the package (tests/end_to_end/own): trained on two processes, killed, resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from end_to_end import forked, free_port, metrics, recalls, results, torchrun, weights
from forks import ended

OWN = Path(__file__).parents[1] / "end_to_end" / "own"
# 27 images in batches of 8 are three steps an epoch; the kill comes after two steps, of which the checkpoint knows.
TWO_RANKS = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=2", "--checkpoint.every_n_steps=1")


def on_two_ranks(options: Sequence[str], logs: Path) -> list[tuple[int | None, str]]:
    """`crosslight run OPTIONS` in two processes, as torchrun starts them: how each ended, and what it printed."""
    port, files = free_port(), [logs / f"rank{rank}" for rank in (0, 1)]
    with (
        forked(files[0], "run", *options, *TWO_RANKS, **torchrun(0, 2, port)) as first,
        forked(files[1], "run", *options, *TWO_RANKS, **torchrun(1, 2, port)) as second,
    ):
        return [ended(process, log) for process, log in zip((first, second), files, strict=True)]


def killed_and_resumed_is_whole(options: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """Runs OPTIONS to the end, and once more with a SIGKILL after two steps and a resume: both must end alike, to the bit.

    Args:
        options: Of `crosslight run`, without folder and devices. {run} in them is the run's folder.
        folder: For both runs.

    Returns:
        The run folders: whole, resumed.
    """
    runs = folder / "whole", folder / "cut"
    switch = ("--trainer.callbacks+=kill_switch.KillSwitch", "--trainer.callbacks.step=2",
              f"--trainer.callbacks.spent={folder / 'power cut'}")  # fmt: skip
    commands = [[*(option.format(run=run) for option in options), *switch, f"--run_dir={run}"] for run in runs]
    ends = on_two_ranks(commands[1], folder)
    assert any(status != 0 for status, _ in ends), ends
    assert (folder / "power cut").exists(), ends
    left = torch.load(runs[1] / "checkpoints" / "last.ckpt", weights_only=True)
    assert left["global_step"] == 2
    for command in commands:  # the power cut is spent
        for status, printed in on_two_ranks(command, folder):
            assert status == 0, printed
    whole, cut = (results(run) for run in runs)
    assert (whole["attempts"], cut["attempts"], cut["status"]) == (1, 2, "finished")
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (weights(run, name) for run in runs)
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]), (name, key)
    assert metrics(runs[0], "train/loss") == metrics(runs[1], "train/loss")
    for entry in whole["evaluations"]:
        assert recalls(runs[0], entry["data"]) == recalls(runs[1], entry["data"])
    return runs
