"""UNITER's pre-training through the command line: two processes as one, killed and resumed, a fine-tuning that starts from it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from end_to_end import (
    PRETRAINING,
    killed_and_resumed,
    metrics,
    results,
    run_by_one_and_by_two,
    succeed,
    uniter,
    weights,
)

import lightning_modules
from datamodules.errors import InputError

NETWORK = "--model.init_args.network.init_args"
TASKS = ("itm", "mlm", "mrfr")


def test_two_processes_pretrain_as_one_and_a_ranking_run_starts_from_them(tmp_path: Path) -> None:
    """Each process has another number of hidden words and regions: their mean is that of all."""

    def command(folder: str, *more: str) -> list[str]:
        return [
            *PRETRAINING, "--model.init_args.optimization.lr=0.005", "--model.init_args.optimization.eps=1e-4",
            f"--run_dir={tmp_path / folder}", *more,
        ]  # fmt: skip

    run_by_one_and_by_two(command, tmp_path)
    one, both = results(tmp_path / "one"), results(tmp_path / "two")
    assert [run["provenance"]["device"]["world_size"] for run in (one, both)] == [1, 2]
    assert (both["status"], both["fit"]["steps"], both["fit"]["monitor"]) == ("finished", 6, "val/loss")
    assert both["cost"]["pairs"] == one["cost"]["pairs"] == 6 * 2 * 8
    drawn = set()
    for column in ("loss", *TASKS):
        ours, theirs = (metrics(tmp_path / folder, f"train/{column}") for folder in ("two", "one"))
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-4), column
        drawn |= {column} if ours else set()
    assert len(drawn) >= 3
    state, expected = weights(tmp_path / "two", "last.ckpt"), weights(tmp_path / "one", "last.ckpt")
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor, rtol=1e-4, atol=5e-5, msg=lambda text, key=key: f"{key}: {text}")
    (test,), (twin) = both["evaluations"], one["evaluations"][0]
    assert test["metrics"] == pytest.approx(twin["metrics"], rel=1e-4)
    assert test["metrics"].keys() == {"loss", "itm_loss", "itm_accuracy", "mlm_loss", "mlm_accuracy", "mrfr_loss"}
    assert all(math.isfinite(value) for value in test["metrics"].values())

    start = f"{tmp_path / 'one'}/checkpoints/best.ckpt#network."
    succeed("run", *uniter("baseline", f"{NETWORK}.weights={start}", "--trainer.max_steps=1", "--trainer.val_check_interval=2",
                           "--model.init_args.optimization.lr=1e-9",
                           "--model.init_args.optimization.min_lr=0", f"--run_dir={tmp_path / 'tuned'}"))  # fmt: skip
    best, tuned = weights(tmp_path / "one", "best.ckpt"), lightning_modules.load(tmp_path / "tuned").network.state_dict()
    for key in ("encoder.layers.1.qkv.weight", "encoder.region_embed.features.weight", "encoder.text_embed.words.weight"):
        torch.testing.assert_close(tuned[key], best[f"network.{key}"], atol=1e-6, rtol=0)
    torch.testing.assert_close(tuned["rank.weight"], best["network.itm.weight"][1:], atol=1e-6, rtol=0)
    loaded = lightning_modules.load(tmp_path / "one")
    with pytest.raises(InputError, match="fine-tune a UNITER that has its checkpoint as `weights`"):
        loaded.encode_texts(["a dog"])


def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Killed in an epoch between two tasks; dropout is on."""

    def command(run: Path) -> list[str]:
        return [*PRETRAINING, "--checkpoint.every_n_steps=2", f"{NETWORK}.dropout=0.1", f"--run_dir={run}"]

    whole, cut = killed_and_resumed(command, tmp_path, 3)
    for column in ("loss", *TASKS):
        assert metrics(cut, f"train/{column}") == metrics(whole, f"train/{column}")
    assert results(cut)["evaluations"][0]["metrics"] == results(whole)["evaluations"][0]["metrics"]
