"""Two processes with DDP compute what one computes, through the command line that a user types."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from agent import agents_command, wandb_config, wandb_records
from end_to_end import (
    BEIT3,
    CLIP,
    NEEDS_OPEN_CLIP,
    OPEN_CLIP,
    arguments,
    metrics,
    recalls,
    results,
    run_by_one_and_by_two,
    scores,
    script,
    started,
    succeed,
    uniter,
    vilt,
    wait,
    weights,
)
from open_doors import on_two_ranks

from experiments.runs.identity import config_hash


def identity(run: Path) -> str:
    """What decides its result, without the callback by which a test watches it."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"].pop("callbacks")
    return config_hash({"command": "run", **config})


def options(tmp_path: Path, folder: str, *more: str) -> list[str]:
    """27 images, batches of 8 in chunks of 3, 7 images to validate and 11 to test."""
    return arguments(
        "mwa", "--trainer.max_epochs=1", "--model.init_args.adapter.init_args.dropout=0",
        "--model.init_args.gradient_cache_chunk=3",
        "--model.init_args.optimization.eps=1e-3",  # at 1e-8 AdamW makes whole steps of the rounding of gradients near zero
        f"--run_dir={tmp_path / 'runs' / folder}", *more,
    )  # fmt: skip


def require_as_one(runs: Path) -> None:
    """Two processes trained and measured as one did."""
    assert sorted(folder.name for folder in runs.iterdir()) == ["one", "two"]  # rank 1 opened none of its own
    one, both = results(runs / "one"), results(runs / "two")
    assert both["status"] == "finished"
    assert both["attempts"] == 1
    assert identity(runs / "two") == identity(runs / "one")  # devices do not decide the result
    assert (one["provenance"]["device"]["world_size"], both["provenance"]["device"]["world_size"]) == (1, 2)
    assert both["fit"]["steps"] == one["fit"]["steps"] == 3
    assert both["cost"]["pairs"] == one["cost"]["pairs"] == 24
    assert both["data"] == one["data"]

    losses = [metrics(runs / folder, "train/loss") for folder in ("one", "two")]
    assert [step for step, _ in losses[1]] == [0, 1, 2]
    assert [loss for _, loss in losses[1]] == pytest.approx([loss for _, loss in losses[0]], rel=2e-5)
    ours, theirs = weights(runs / "two", "last.ckpt"), weights(runs / "one", "last.ckpt")
    assert ours.keys() == theirs.keys()
    # AdamW divides rounding by small second moments; the gradients themselves are compared in tests/.../objectives
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-4, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")

    assert len(both["evaluations"]) == 1
    assert recalls(runs / "two") == pytest.approx(recalls(runs / "one"))
    assert metrics(runs / "two", "val/rsum") == metrics(runs / "one", "val/rsum")
    queries = [dict(np.load(runs / folder / "per_query" / "flickr30k-test.npz")) for folder in ("one", "two")]
    for name, values in queries[0].items():
        assert np.array_equal(queries[1][name], values), name


def test_two_processes_of_a_sweep_train_and_measure_as_one(tmp_path: Path) -> None:
    """W&B's agent starts the two: they are a point of a sweep, whose values reach both ranks and the one W&B run."""
    point = {"model.init_args.optimization.lr": 0.01, "seed_everything": 3}
    ranks = tmp_path / "ranks"
    two = (
        "--trainer.devices=2", "--trainer.strategy=ddp", "--wandb.enabled=true",
        "--trainer.callbacks=agent.NoteConfig", f"--trainer.callbacks.folder={ranks}", "${args}",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("WANDB_MODE", "offline")
        program = ["${env}", *script(), "run", *options(tmp_path, "two", *two)]
        with started(agents_command(program, point, "run4sweep", patch)) as process:
            patch.undo()
            succeed("run", *options(tmp_path, "one", *(f"--{name}={value}" for name, value in point.items())))
            status, printed = wait(process)
    assert status == 0, printed
    assert "Traceback" not in printed, printed
    assert "rror" not in printed, printed
    assert printed.count("results.json") == 1
    noted = {file.name: json.loads(file.read_text()) for file in ranks.iterdir()}
    assert noted == {f"rank-{rank}.json": {"lr": 0.01, "seed": "3"} for rank in (0, 1)}
    records = wandb_records(tmp_path / "runs" / "two")  # of one W&B run, complete, with the id that the agent chose
    assert {"run", "history", "exit"} <= {record.WhichOneof("record_type") for record in records}
    assert {record.run.run_id for record in records if record.WhichOneof("record_type") == "run"} == {"run4sweep"}
    assert {record.run.sweep_id for record in records if record.WhichOneof("record_type") == "run"} == {"abcdefgh"}
    assert wandb_config(records)["model"]["init_args"]["optimization"]["lr"] == 0.01
    require_as_one(tmp_path / "runs")


@pytest.mark.parametrize(
    "network", [BEIT3, CLIP, pytest.param(OPEN_CLIP, marks=NEEDS_OPEN_CLIP)], ids=["beit3", "clip", "open_clip"]
)
def test_two_processes_train_and_measure_as_one(network: tuple[str, ...], tmp_path: Path) -> None:
    point = ("--model.init_args.optimization.lr=0.01", "--seed_everything=3")
    run_by_one_and_by_two(lambda folder, *more: options(tmp_path, folder, *point, *network, *more), tmp_path)
    require_as_one(tmp_path / "runs")


@pytest.mark.parametrize("scorer", [uniter, vilt], ids=["uniter", "vilt"])
def test_two_processes_mine_align_and_score_all_pairs_as_one(scorer: Callable[..., list[str]], tmp_path: Path) -> None:
    """Regions or patches, as torchrun starts it: two micro-batches of 8 positives a side a step; 7 images to validate, 11 to
    test."""
    name = "flickr30k_entities"

    def command(folder: str, *more: str) -> list[str]:
        return scorer(
            "distributed", "--trainer.max_steps=3", "--model.init_args.optimization.lr=0.005",
            "--model.init_args.optimization.eps=1e-4", "--data.init_args.eval_batch_size=3",
            f"--run_dir={tmp_path / folder}", *more,
        )  # fmt: skip

    run_by_one_and_by_two(command, tmp_path)

    one, both = results(tmp_path / "one"), results(tmp_path / "two")
    ranks = [run["provenance"]["device"]["world_size"] for run in (one, both)]
    assert (ranks, both["status"]) == ([1, 2], "finished")
    assert identity(tmp_path / "two") == identity(tmp_path / "one")
    assert both["cost"]["pairs"] == one["cost"]["pairs"] == 3 * 2 * 2 * 8
    for column in ("loss", "rank_hard_texts", "rank_hard_images", "iais_vision_hard_texts", "iais_language_hard_images",
                   "iais_weight"):  # fmt: skip
        ours, theirs = (metrics(tmp_path / folder, f"train/{column}") for folder in ("two", "one"))
        assert [step for step, _ in ours] == [0, 1, 2]
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-4), column
    state, expected = weights(tmp_path / "two", "last.ckpt"), weights(tmp_path / "one", "last.ckpt")
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor, rtol=1e-4, atol=5e-5, msg=lambda text, key=key: f"{key}: {text}")
    assert len(both["evaluations"]) == 1
    assert recalls(tmp_path / "two", name) == pytest.approx(recalls(tmp_path / "one", name), rel=1e-4)
    torch.testing.assert_close(scores(tmp_path / "two"), scores(tmp_path / "one"), rtol=1e-3, atol=1e-3)
    validations = [metrics(tmp_path / folder, "val/isda") for folder in ("two", "one")]
    assert validations[0] == [(2, pytest.approx(validations[1][0][1], rel=1e-4))]
    queries = [dict(np.load(tmp_path / folder / "per_query" / f"{name}-test.npz")) for folder in ("one", "two")]
    for column, values in queries[0].items():
        assert np.array_equal(queries[1][column], values), column


ENDING = """
import torch, torch.distributed as dist
from lightning_modules.objectives.contrastive import ContrastiveLoss

class Ending(ContrastiveLoss):
    calls = 0

    def forward(self, images_BD, texts_BD, scale, image_index_B=None):
        terms, self.calls = super().forward(images_BD, texts_BD, scale, image_index_B), self.calls + 1
        if self.calls == 3 and dist.get_rank() == 1:
            terms["loss"] = terms["loss"] * torch.nan
        return terms
"""


def test_a_loss_that_is_none_ends_both_processes_at_its_step(
    tmp_path: Path, surroundings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = arguments("head", f"--run_dir={tmp_path / 'run'}", "--model.init_args.objective=ending.Ending")
    (status, printed), (other, silent) = on_two_ranks(options, tmp_path)
    assert (status, other) == (2, 2), printed + silent
    where = r"process 1, batch 2 of epoch 0 \(loss nan, image_to_text \d.*\), images \S+, "
    assert re.search(f"crosslight: error: the loss is not finite at step 2 .*: {where}", printed), printed
    assert "crosslight" not in silent  # one says it
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2  # the sound one, of before
