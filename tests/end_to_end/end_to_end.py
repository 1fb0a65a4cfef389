"""The command line as a user types it, on a tiny world, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
# 27 training images in batches of 8: three steps an epoch, three images left over. 7 images to validate, 11 to test: all odd.
TRAIN, VAL, TEST, BATCH = 27, 7, 11, 8
STEPS = TRAIN // BATCH
COMMON = (
    "-c=configs/trainer/demo.yaml", "-c=configs/model/dual_tiny.yaml", "-c=configs/data/world.yaml",
    f"--data.init_args.batch_size={BATCH}", "--data.init_args.eval_batch_size=4", "--trainer.precision=32-true",
    "--trainer.log_every_n_steps=1",
)  # fmt: skip
# A BEiT-3 below the demo's size, for `arguments(row, *BEIT3)`: the later file's network replaces the two towers.
BEIT3 = (
    "-c", "configs/model/beit3_tiny.yaml", "--model.init_args.network.init_args.image_size=32",
    "--model.init_args.network.init_args.width=24", "--model.init_args.network.init_args.num_layers=2",
    "--model.init_args.network.init_args.ffn_width=48",
)  # fmt: skip
RECALLS = {f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)} | {"rsum"}


def arguments(row: str, *more: str) -> list[str]:
    """Options of a row of MWA's tables on the tiny world."""
    pairs = [part for each in COMMON for part in (["-c", each[3:]] if each.startswith("-c=") else [each])]
    return [*pairs, "-c", f"experiments/mwa/rows/{row}.yaml", *more]


@dataclass(frozen=True)
class Answer:
    """How a command ended: its exit status and what it printed."""

    status: int
    out: str
    error: str


def crosslight(command: str, *options: str) -> Answer:
    """`crosslight COMMAND OPTIONS` in this process."""
    from experiments.cli import main

    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main([command, *options])
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    return Answer(status, out.getvalue(), error.getvalue())


def succeed(command: str, *options: str) -> Answer:
    answer = crosslight(command, *options)
    assert answer.status == 0, answer.error
    return answer


@contextlib.contextmanager
def started(program: Sequence[str], *options: str) -> Iterator[subprocess.Popen[str]]:
    """The same in a process of its own, in its own session, so that nothing of it outlives the test."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "CROSSLIGHT_RANK0_RUN_FOLDER"):
        environment.pop(name, None)
    with subprocess.Popen(
        [*program, *options],
        env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)


def python_m() -> list[str]:
    return [sys.executable, "-m", "experiments.cli"]


def script() -> list[str]:
    """The installed entry `crosslight`, or the module where only the source tree is there."""
    installed = Path(sys.executable).with_name("crosslight")
    return [str(installed)] if installed.exists() else python_m()


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def recalls(run: Path, data: str = "flickr30k") -> dict[str, float]:
    found = [evaluation for evaluation in results(run)["evaluations"] if evaluation["data"] == data]
    assert len(found) == 1
    return found[0]["metrics"]


def weights(run: Path, name: str) -> dict[str, Tensor]:
    return torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]


def metrics(run: Path, column: str) -> list[tuple[int, float]]:
    """(step, value) of every row of metrics.csv that has the column."""
    with open(run / "metrics.csv", newline="") as file:
        return [(int(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]


def wait(process: subprocess.Popen[str], seconds: float = 280) -> tuple[int, str]:
    """Exit status and everything it printed; generous, because a loaded machine needs a minute to import torch."""
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out + error
