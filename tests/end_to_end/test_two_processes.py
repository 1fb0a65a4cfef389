"""Two processes with DDP compute what one computes, through the command line that a user types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import BEIT3, arguments, metrics, recalls, results, script, started, succeed, wait, weights


@pytest.mark.parametrize("network", [(), BEIT3], ids=["two_towers", "beit3"])
def test_two_processes_train_and_measure_as_one(network: tuple[str, ...], tmp_path: Path) -> None:
    """27 images, batches of 8 in chunks of 3, 7 images to validate and 11 to test."""

    def command(folder: str, *more: str) -> list[str]:
        return arguments(
            "mwa", *network, "--trainer.max_epochs=1", "--model.init_args.adapter.init_args.dropout=0",
            "--model.init_args.gradient_cache_chunk=3", "--model.init_args.optimisation.lr=0.01",
            "--model.init_args.optimisation.eps=1e-4",  # at 1e-8 AdamW makes whole steps of the rounding of gradients near zero
            f"--run_dir={tmp_path / folder}", *more,
        )  # fmt: skip

    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    with started(script(), "run", *command("two", *two)) as process:
        succeed("run", *command("one"))
        status, printed = wait(process)
    assert status == 0, printed
    assert "Traceback" not in printed, printed
    assert "rror" not in printed, printed
    assert printed.count("results.json") == 1
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["one", "two"]  # rank 1 opened none of its own

    one, both = results(tmp_path / "one"), results(tmp_path / "two")
    assert both["status"] == "finished"
    assert both["attempts"] == 1
    assert both["config_hash"] == one["config_hash"]  # devices do not decide the result
    assert (one["device"]["world_size"], both["device"]["world_size"]) == (1, 2)
    assert both["fit"]["steps"] == one["fit"]["steps"] == 3
    assert both["cost"]["pairs"] == one["cost"]["pairs"] == 24
    assert both["data"] == one["data"]

    losses = [metrics(tmp_path / folder, "train/loss") for folder in ("one", "two")]
    assert [step for step, _ in losses[1]] == [0, 1, 2]
    assert [loss for _, loss in losses[1]] == pytest.approx([loss for _, loss in losses[0]], abs=1e-5)
    ours, theirs = weights(tmp_path / "two", "last.ckpt"), weights(tmp_path / "one", "last.ckpt")
    assert ours.keys() == theirs.keys()
    # AdamW divides rounding by small second moments; the gradients themselves are compared in tests/.../objectives
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-4, atol=5e-5, msg=lambda text, key=key: f"{key}: {text}")

    assert len(both["evaluations"]) == 1
    assert recalls(tmp_path / "two") == pytest.approx(recalls(tmp_path / "one"))
    assert metrics(tmp_path / "two", "val/rsum") == metrics(tmp_path / "one", "val/rsum")
    queries = [dict(np.load(tmp_path / folder / "per_query" / "flickr30k-test.npz")) for folder in ("one", "two")]
    for name, values in queries[0].items():
        assert np.array_equal(queries[1][name], values), name
