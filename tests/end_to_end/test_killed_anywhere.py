"""A run that is killed at any moment ends, resumed by the same command in place or in a moved folder, as if nothing had happened.

An undisturbed run leaves a copy of its folder at every moment at which the folder changes: before and after each hook of an
epoch, around each file that is put in place, between fit and test, inside of a test and between two tests. Each copy is what
SIGKILL would leave; each is resumed. `CROSSLIGHT_EVERY_KILL=1` resumes all of them, under every schedule of validation, with and
without EarlyStopping and EMA; else a few of them must do.
"""

from __future__ import annotations

import csv
import itertools
import os
import shutil
from pathlib import Path

import pytest
import torch
from end_to_end import arguments, captioner, results, succeed, uniter, weights
from snapshots import snapshots

EVERY = bool(os.environ.get("CROSSLIGHT_EVERY_KILL"))
METHODS = {
    "retrieval": (arguments("mwa", "--data.init_args.limits.train=16", "--model.init_args.optimization.lr=0.02"), "val/rsum"),
    "ranking": (uniter("distributed", "--data.init_args.limits.train=8", "--trainer.max_steps=-1"), "val/rsum"),
    "captioning": (captioner("i_tuning", "--data.init_args.limits.train=12", "--trainer.max_steps=-1"), "val/cider"),
}
SCHEDULES = {
    "each epoch": ("--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0"),
    "every two epochs": ("--trainer.max_epochs=4", "--trainer.check_val_every_n_epoch=2", "--trainer.val_check_interval=1.0"),
    "inside of an epoch": (
        "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=2",
        "--checkpoint.every_n_steps=1",
    ),
    "by steps": (
        "--trainer.max_epochs=-1", "--trainer.max_steps=4", "--trainer.check_val_every_n_epoch=null",
        "--trainer.val_check_interval=3",
    ),
}  # fmt: skip


def with_callbacks(names: str, monitor: str) -> list[str]:
    options = []
    if "stopping" in names:
        options += ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", f"--trainer.callbacks.monitor={monitor}",
                    "--trainer.callbacks.mode=max", "--trainer.callbacks.patience=1"]  # fmt: skip
    if "ema" in names:
        options += ["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.8"]
    return options


CASES = list(itertools.product(METHODS, SCHEDULES, ("", "stopping", "ema", "stopping and ema")))
FEW = {("retrieval", "each epoch", "stopping and ema"), ("ranking", "inside of an epoch", "ema"), ("captioning", "by steps", "")}


def second_test(method: str, world: Path) -> list[str]:
    """Another data set to test on."""
    kind, root = {
        "retrieval": ("datamodules.coco.COCO", world / "coco"),
        "ranking": ("datamodules.flickr30k_entities.Flickr30kEntities", world / "flickr30k"),
        "captioning": ("datamodules.flickr30k.Flickr30k", world / "flickr30k"),
    }[method]
    options = {"root": root, "num_workers": 0, "limits.test": 4}
    if method == "ranking":
        options |= {"regions.image_db": "img_db/flickr30k", "regions.kind": "all"}
    return [f"--evaluate.few={kind}", *(f"--evaluate.few.init_args.{name}={value}" for name, value in options.items())]


@pytest.mark.parametrize(("method", "schedule", "names"), CASES if EVERY else sorted(FEW))
def test_every_moment(method: str, schedule: str, names: str, tmp_path: Path, world: Path) -> None:
    options, monitor = METHODS[method]
    here, whole = tmp_path / "run", tmp_path / "whole"
    command = [*options, *SCHEDULES[schedule], *with_callbacks(names, monitor), *second_test(method, world)]
    with snapshots(here, tmp_path / "copies") as taken:
        succeed("run", *command, f"--run_dir={here}")
    here.rename(whole)
    moments = [moment for moment, copy in taken.items() if not is_finished(copy)]
    print(f"{method}, {schedule}, {names or 'no callbacks'}: {len(moments)} moments")
    assert len(moments) >= 25
    for number, moment in enumerate(moments if EVERY else moments[3 :: len(moments) // 5]):
        folder = here if number % 2 else tmp_path / f"moved {number}"
        shutil.copytree(taken[moment], folder)
        succeed("run", *command, f"--run_dir={folder}")
        require_equal(folder, whole, moment)
        shutil.rmtree(folder)


def is_finished(folder: Path) -> bool:
    return (folder / "results.json").exists() and results(folder)["status"] == "finished"


def require_equal(folder: Path, whole: Path, moment: str) -> None:
    ours, theirs = results(folder), results(whole)
    assert ours["status"] == "finished", moment
    for key in ("fit", "evaluations", "data"):
        assert ours[key] == theirs[key], (moment, key)
    assert rows(folder) == rows(whole), moment
    for name in ("best.ckpt", "last.ckpt"):
        mine, other = weights(folder, name), weights(whole, name)
        assert mine.keys() == other.keys()
        for key in mine:
            assert torch.equal(mine[key], other[key]), (moment, name, key)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}, moment


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))
