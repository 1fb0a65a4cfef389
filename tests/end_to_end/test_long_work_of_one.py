"""What one process does alone may take longer than a collective waits for the others: nobody is held in one.

A process group gives up after a fraction of a second here, after half an hour in a run.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from end_to_end import captioner, results, uniter
from ranks import on_ranks

from datamodules.errors import AgreedError, InputError
from experiments.sweep.processes import FORKS
from lightning_modules import collectives

LIMIT, LONGER = 0.4, 0.7  # seconds


def slow(value: str) -> str:
    time.sleep(LONGER)
    return value


def refuse() -> None:
    raise InputError("the disk is full")


def process(rank: int, folder: Path, tell: Any) -> None:
    """Each in turn is longer at work than the limit, and the other waits for it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "rendezvous"), 2), rank=rank, world_size=2)
    collectives.connect()
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=LIMIT), dist.group.WORLD)  # two busy cores take longer to begin
    tell.put((rank, "work", collectives.by_first(partial(slow, "written" if rank == 0 else "never"))))
    if rank == 1:
        time.sleep(LONGER)
    collectives.meet()
    tell.put((rank, "sum", collectives.reduced(torch.ones(1)).item()))
    try:
        collectives.by_first(refuse)
    except AgreedError as error:
        tell.put((rank, "error", str(error)))
    try:  # as it would be
        if rank == 0:
            time.sleep(LONGER)
        dist.all_reduce(torch.ones(1))
    except RuntimeError:
        tell.put((rank, "held", True))


def test_long_work_holds_no_collective(tmp_path: Path) -> None:
    tell = FORKS.Queue()
    both = [FORKS.Process(target=process, args=(rank, tmp_path, tell)) for rank in (0, 1)]
    for each in both:
        each.start()
    told = {(rank, what): value for rank, what, value in (tell.get(timeout=100) for _ in range(8))}
    for each in both:
        each.join(100)
    expected = {"work": "written", "sum": 2, "error": "the disk is full", "held": True}
    assert told == {(rank, what): value for rank in (0, 1) for what, value in expected.items()}


# ------------------------------------------------------------------------------------------------ in a run (make test-eight)

GIVES_UP, WORKS = 2, 5  # seconds: of a collective, of each piece of work
TIMED = ("--trainer.strategy=lightning.pytorch.strategies.DDPStrategy", f"--trainer.strategy.init_args.timeout=0:00:0{GIVES_UP}")


def long_work(done: Path) -> None:
    """In a process of a run: what the first does alone takes long, and so does the last batch of the second one's test."""
    from experiments.training.checkpoints import WholeCheckpoints
    from experiments.training.lightning_cli import CrosslightCLI
    from lightning_modules.base import TunedModule
    from lightning_modules.captioning import CaptioningModule
    from lightning_modules.metrics.captions.evaluation import CaptionScorer
    from lightning_modules.metrics.score_store import ScoreStore

    def lengthen(owner: Any, name: str, rank: str) -> None:
        before = getattr(owner, name)

        def longer(*arguments: Any, **options: Any) -> Any:
            if os.environ["RANK"] == rank:
                with open(done, "a") as file:
                    file.write(f"{owner.__name__}.{name}\n")
                time.sleep(WORKS)
            return before(*arguments, **options)

        setattr(owner, name, longer)

    for owner, name in ((CrosslightCLI, "_describe_data"), (WholeCheckpoints, "save_checkpoint"), (CaptionScorer, "score"),
                        (CaptioningModule, "_write"), (ScoreStore, "prepare"), (ScoreStore, "finish")):  # fmt: skip
        lengthen(owner, name, "0")
    lengthen(TunedModule, "on_test_epoch_end", "1")


@pytest.mark.skipif(not os.environ.get("CROSSLIGHT_EIGHT"), reason="make test-eight")
@pytest.mark.parametrize(
    ("command", "works"),
    [
        (partial(captioner, "i_tuning", "--trainer.max_steps=1", "--trainer.val_check_interval=2"),
         {"CrosslightCLI._describe_data": 1, "WholeCheckpoints.save_checkpoint": 2, "CaptionScorer.score": 2,
          "CaptioningModule._write": 2, "TunedModule.on_test_epoch_end": 1}),
        (partial(uniter, "distributed", "--trainer.max_steps=1", "--trainer.val_check_interval=2"),
         {"CrosslightCLI._describe_data": 1, "WholeCheckpoints.save_checkpoint": 2, "ScoreStore.prepare": 1,
          "ScoreStore.finish": 1, "TunedModule.on_test_epoch_end": 1}),
    ],
    ids=["captioning", "ranking"],
)  # fmt: skip
def test_a_run_outlasts_the_work_of_one(command: Callable[..., list[str]], works: dict[str, int], tmp_path: Path) -> None:
    options = command(f"--run_dir={tmp_path / 'run'}", "--trainer.devices=2", *TIMED)
    for status, printed in on_ranks(options, 2, tmp_path, first=partial(long_work, tmp_path / "done")):
        assert status == 0, printed
    assert Counter((tmp_path / "done").read_text().split()) == works
    assert results(tmp_path / "run")["status"] == "finished"
