"""`crosslight run` in any number of processes, started as torchrun or srun starts them, and what they must have in common.

The processes are forked from one that has everything imported, so that eight of them cost one import and share its memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import forked, free_port, metrics, results, succeed, torchrun, weights
from forks import ended

Environment = Callable[[int, int, int], dict[str, str]]  # of rank, size, port
DDP = ("--trainer.strategy=ddp",)


def srun(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables that srun gives a task of one node."""
    return {
        "SLURM_JOB_ID": "71", "SLURM_JOB_NAME": "test", "SLURM_STEP_ID": "0", "SLURM_PROCID": f"{rank}",
        "SLURM_LOCALID": f"{rank}", "SLURM_NODEID": "0", "SLURM_NTASKS": f"{size}", "SLURM_NTASKS_PER_NODE": f"{size}",
        "SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": f"{port}",
    }  # fmt: skip


def srun_nodes(rank: int, size: int, port: int) -> dict[str, str]:
    """Likewise of as many nodes."""
    nodes = {"SLURM_NNODES": f"{size}", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODEID": f"{rank}", "SLURM_LOCALID": "0"}
    return {**srun(rank, size, port), **nodes}


def on_ranks(
    options: Sequence[str], size: int, logs: Path, *, by: Environment = torchrun, first: Callable[[], None] | None = None
) -> list[tuple[int | None, str]]:
    """`crosslight run OPTIONS` in `size` processes: how each ended, and what it printed.

    Args:
        options: With --run_dir, --trainer.devices and --trainer.strategy.
        size: Processes.
        logs: Folder for what they print.
        by: Who started them: the variables that it sets.
        first: Called in each before the command.
    """
    port, files = free_port(), [logs / f"rank{rank}" for rank in range(size)]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(forked(file, "run", *options, first=first, **by(rank, size, port)))
            for rank, file in enumerate(files)
        ]
        return [ended(process, log) for process, log in zip(processes, files, strict=True)]


def one_and_many(
    command: Callable[..., list[str]],
    size: int,
    folder: Path,
    *,
    by: Environment = torchrun,
    nodes: int = 1,
    strategy: Sequence[str] = DDP,
    loss: float = 2e-5,
) -> tuple[Path, Path]:
    """Runs `command(RUN)` in one process and in `size`: the loss of each step, the weights, and all that is measured of each
    data set must be equal, each query once.

    Args:
        command: Options of a run by its folder, and more options.
        size: Processes.
        folder: For both runs.
        by: Who started them.
        nodes: As many machines.
        strategy: Options.
        loss: Relative tolerance of losses; sums are rounded in another order.

    Returns:
        The run folders: of one process, of many.
    """
    one, many = folder / "one", folder / "many"
    devices = (f"--trainer.devices={size // nodes}", f"--trainer.num_nodes={nodes}")
    ends = on_ranks(command(many, *devices, *strategy), size, folder, by=by)
    for status, printed in ends:
        assert status == 0, printed
        assert "rror" not in printed, printed
    succeed("run", *command(one))
    equal_runs(one, many, size, loss)
    return one, many


def equal_runs(one: Path, many: Path, size: int, loss: float = 2e-5) -> None:
    """See `one_and_many`."""
    ours, theirs = results(many), results(one)
    assert [run["provenance"]["device"]["world_size"] for run in (ours, theirs)] == [size, 1]
    assert ours["status"] == theirs["status"] == "finished"
    assert ours["fit"]["steps"] == theirs["fit"]["steps"] > 0
    assert ours["cost"]["pairs"] == theirs["cost"]["pairs"] > 0
    assert ours["data"] == theirs["data"]
    assert [step for step, _ in metrics(many, "train/loss")] == [step for step, _ in metrics(one, "train/loss")]
    losses = [[value for _, value in metrics(run, "train/loss")] for run in (many, one)]
    assert len(losses[0]) == ours["fit"]["steps"]
    assert losses[0] == pytest.approx(losses[1], rel=loss)
    for name in ("last.ckpt", "best.ckpt"):
        state, expected = weights(many, name), weights(one, name)
        assert state.keys() == expected.keys()
        for key, tensor in expected.items():
            # AdamW divides rounding by small second moments
            torch.testing.assert_close(state[key], tensor, rtol=1e-4, atol=5e-5, msg=lambda text, key=key: f"{key}: {text}")
    measured = [{entry["data"]: entry for entry in run["evaluations"]} for run in (ours, theirs)]
    assert measured[0].keys() == measured[1].keys()
    for data, entry in measured[0].items():
        assert entry["metrics"] == pytest.approx(measured[1][data]["metrics"], rel=1e-4), data
        each = [dict(np.load(run / entry["per_query_file"])) for run in (many, one)]
        assert each[0].keys() == each[1].keys()
        for column, values in each[1].items():
            # a log-probability is rounded as its batch is padded; ranks and scores of captions are what they are
            same = np.array_equal if column != "log_prob" else lambda a, b: np.allclose(a, b, atol=1e-4)
            assert same(each[0][column], values), (data, column)
        assert entry["notes"] == measured[1][data]["notes"], data
