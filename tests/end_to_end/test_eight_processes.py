"""Eight processes of a BEiT-3, a UNITER and a captioning run compute what one computes (`make test-eight`), and so do two however
they are started and whatever options of DDP's they have.

27 images to train, 7 to validate (the eighth process has none), 11 to test, and one: seven processes have no image there, three
have no caption either. Batches are global, so eight processes have one pair, one positive a side or three captions each.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from end_to_end import BEIT3, arguments, captioner, free_port, results, started, succeed, uniter, wait
from ranks import Environment, equal_runs, on_ranks, one_and_many, srun, srun_nodes

pytestmark = pytest.mark.skipif(not os.environ.get("CROSSLIGHT_EIGHT"), reason="make test-eight")
EIGHT = 8
EXACT = "--model.init_args.optimization.eps=1e-4"  # at 1e-8 AdamW makes whole steps of the rounding of gradients near zero
EMA = ("--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.8")


def few(kind: str, *options: str) -> list[str]:
    """One image of a data set to test on besides."""
    given = "--evaluate.few"
    return [f"{given}={kind}", f"{given}.init_args.limits.test=1", f"{given}.init_args.num_workers=0",
            *(f"{given}.init_args.{option}" for option in options)]  # fmt: skip


BEIT3_WAYS = {
    "plain": ("--trainer.max_epochs=1", "--trainer.num_sanity_val_steps=1"),
    # three batches an epoch: the second step of each is of one batch
    "accumulation": ("--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=0.05"),
    "gradient cache": ("--trainer.max_epochs=3", "--data.init_args.batch_size=16", "--model.init_args.gradient_cache_chunk=1"),
    "EMA": ("--trainer.max_epochs=2", *EMA),
}


@pytest.mark.parametrize("way", BEIT3_WAYS)
def test_beit3(way: str, tmp_path: Path, world: Path) -> None:
    def command(run: Path, *more: str) -> list[str]:
        return arguments(
            "mwa", *BEIT3, EXACT, "--model.init_args.optimization.lr=0.01", "--model.init_args.adapter.init_args.dropout=0",
            *BEIT3_WAYS[way], *few("datamodules.flickr30k.Flickr30k", f"root={world / 'flickr30k'}"), f"--run_dir={run}", *more,
        )  # fmt: skip

    _, many = one_and_many(command, EIGHT, tmp_path)
    assert results(many)["fit"]["steps"] == {"plain": 3, "accumulation": 4, "gradient cache": 3, "EMA": 6}[way]


@pytest.mark.parametrize("more", [(), EMA], ids=["plain", "EMA"])
def test_uniter(more: tuple[str, ...], tmp_path: Path, world: Path) -> None:
    """Mined hard negatives, IAIS, two batches a step, the matrix of all pairs."""
    entities = ("datamodules.flickr30k_entities.Flickr30kEntities", f"root={world / 'flickr30k'}",
                "regions.image_db=img_db/flickr30k", "regions.kind=all")  # fmt: skip

    def command(run: Path, *given: str) -> list[str]:
        return uniter(
            "distributed", "--trainer.max_steps=3", EXACT, "--model.init_args.optimization.lr=0.005",
            "--data.init_args.eval_batch_size=3", *few(*entities), *more, f"--run_dir={run}", *given,
        )  # fmt: skip

    one_and_many(command, EIGHT, tmp_path, loss=1e-4)


@pytest.mark.parametrize("more", [(), EMA], ids=["plain", "EMA"])
def test_captioning(more: tuple[str, ...], tmp_path: Path, world: Path) -> None:
    def command(run: Path, *given: str) -> list[str]:
        return captioner(
            "i_tuning", "--data.init_args.batch_size=24", "--trainer.max_steps=4", "--model.init_args.optimization.lr=0.005",
            EXACT, *few("datamodules.flickr30k.Flickr30k", f"root={world / 'flickr30k'}"), *more, f"--run_dir={run}", *given,
        )  # fmt: skip

    one_and_many(command, EIGHT, tmp_path)


# --------------------------------------------------------------------------------------------------- two, by other ways


def small(run: Path, *more: str) -> list[str]:
    return arguments(
        "mwa", EXACT, "--trainer.max_epochs=1", "--model.init_args.adapter.init_args.dropout=0", f"--run_dir={run}", *more
    )


CLASS = "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy"
WAYS = {
    "unused parameters are looked for": ("--trainer.strategy=ddp_find_unused_parameters_true",),
    "a static graph": (CLASS, "--trainer.strategy.dict_kwargs={static_graph: true}"),
    "gradients as views": (CLASS, "--trainer.strategy.dict_kwargs={gradient_as_bucket_view: true}"),
    "auto": ("--trainer.strategy=auto",),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_ddp(way: str, tmp_path: Path) -> None:
    one_and_many(small, 2, tmp_path, strategy=WAYS[way])


@pytest.mark.parametrize(("by", "nodes"), [(srun, 1), (srun_nodes, 2)], ids=["one node", "two nodes"])
def test_srun(by: Environment, nodes: int, tmp_path: Path) -> None:
    one_and_many(small, 2, tmp_path, by=by, nodes=nodes)


def test_torchrun_on_two_machines_of_two_processes(tmp_path: Path) -> None:
    """The program itself, on localhost, as docs/devices.md has it; four processes."""
    one, many, port = tmp_path / "one", tmp_path / "many", free_port()
    options = small(many, "--trainer.devices=2", "--trainer.num_nodes=2", "--trainer.strategy=ddp")
    with contextlib.ExitStack() as stack:
        machines = [
            stack.enter_context(
                started(
                    [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=2",
                     "--master-addr=127.0.0.1", f"--master-port={port}", "-m", "experiments.cli", "run"],
                    *options,
                )
            )
            for node in (0, 1)
        ]  # fmt: skip
        for machine in machines:
            status, printed = wait(machine)
            assert status == 0, printed
            assert "rror" not in printed, printed
    succeed("run", *small(one))
    equal_runs(one, many, 4)


def test_the_first_says_why_another_ended(tmp_path: Path, world: Path) -> None:
    """An image that one of four meets: two lines, of it and of the first, and the reason in results.json."""
    copy = tmp_path / "flickr30k"
    shutil.copytree(world / "flickr30k", copy)
    image = max((copy / "flickr30k-images").iterdir())
    image.write_bytes(image.read_bytes()[:60])
    options = small(tmp_path / "run", f"--data.init_args.root={copy}", "--trainer.devices=4", "--trainer.strategy=ddp")
    ends = on_ranks(options, 4, tmp_path)
    assert all(status != 0 for status, _ in ends)
    said = [[line for line in printed.splitlines() if "error" in line] for _, printed in ends]
    (culprit,) = (rank for rank in (1, 2, 3) if said[rank])
    reason = f"image {image.stem}: {image} cannot be decoded"
    assert said[culprit][0].startswith(f"crosslight: error: {reason}")
    assert [len(lines) for lines in said] == [1 if rank in (0, culprit) else 0 for rank in range(4)]
    found = results(tmp_path / "run")
    assert (found["status"], found["error"][: len(reason) + 11]) == ("failed", f"process {culprit}: {reason}")
    assert not list((tmp_path / "run").glob("traceback*"))


def test_torchrun_of_more_than_the_trainer_has_is_refused_in_one_line(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
               f"--master-port={free_port()}", "-m", "experiments.cli", "run"]  # fmt: skip
    with started(program, *small(tmp_path / "run")) as process:
        status, printed = wait(process)
    assert status != 0
    said = [line for line in printed.splitlines() if line.startswith("crosslight")]
    assert said == [
        "crosslight: error: torchrun started 2 processes, but trainer.devices is 1 and trainer.num_nodes 1: give "
        "--trainer.devices=2 --trainer.num_nodes=1, or torchrun --nnodes=1 --nproc-per-node=1."
    ]
    assert not (tmp_path / "run").exists()
