"""A data set in a format of one's own, from a file outside the package: checked, trained, killed, resumed, in the table."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
import torch
from end_to_end import BATCH, crosslight, forked, recalls, results, run_by_one_and_by_two, succeed, weights
from forks import ended

OWN = Path(__file__).parent / "own"
CLASS = "own_data_set.CSVCaptions"


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(OWN))


@pytest.fixture(scope="module")
def table(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's Flickr30k part as a CSV of path, caption, split."""
    root = tmp_path_factory.mktemp("own")
    content = json.loads((world / "flickr30k" / "dataset_flickr30k.json").read_text())
    with (root / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption", "split"])
        for image in content["images"]:
            path = world / "flickr30k" / "flickr30k-images" / image["filename"]
            rows.writerows([path, sentence["raw"], image["split"]] for sentence in image["sentences"])
    return root


def options(root: Path, run: Path, *more: str, kind: str = CLASS) -> list[str]:
    """Three steps of a tiny dual encoder's heads."""
    return [
        "-c", "configs/trainer/demo.yaml", "-c", "configs/model/dual_tiny.yaml",
        "-c", "experiments/papers/mwa/variants/head.yaml", f"--data={kind}", f"--data.init_args.root={root}",
        f"--data.init_args.batch_size={BATCH}", "--data.init_args.num_workers=0", "--data.init_args.train_unit=image",
        "--model.init_args.optimization.eps=1e-4", "--trainer.precision=32-true", "--trainer.max_epochs=1",
        "--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=1", "--wandb.enabled=false", f"--run_dir={run}", *more,
    ]  # fmt: skip


def test_it_takes_forty_lines() -> None:
    assert len((OWN / "own_data_set.py").read_text().splitlines()) <= 40


def test_check_takes_the_class_path(table: Path, tmp_path: Path) -> None:
    found = [crosslight("data", "check", CLASS, str(root)) for root in (table, tmp_path)]
    assert [answer.status for answer in found] == [0, 2], found
    assert "  train: 27 images, 135 captions" in found[0].out
    assert f"{tmp_path / 'captions.csv'} is missing; write it with the columns path, caption, split." in found[1].error


def test_it_trains_as_the_same_photographs_do_in_another_format(table: Path, world: Path, tmp_path: Path) -> None:
    """Bit for bit, also killed after the first step; by two processes to the rounding of sums."""
    run_by_one_and_by_two(lambda name, *more: options(table, tmp_path / name, *more), tmp_path)
    killed = options(
        table, tmp_path / "killed", "--trainer.callbacks=kill_switch.KillSwitch", "--trainer.callbacks.step=1",
        f"--trainer.callbacks.spent={tmp_path / 'power cut'}",
    )  # fmt: skip
    with forked(tmp_path / "log", "run", *killed) as process:
        status, printed = ended(process, tmp_path / "log")
    assert status == -signal.SIGKILL, printed
    succeed("run", *killed)
    succeed("run", *options(world / "flickr30k", tmp_path / "known", kind="datamodules.flickr30k.Flickr30k"))

    one = weights(tmp_path / "one", "last.ckpt")
    for other, data, near in (("known", "flickr30k", 0.0), ("killed", "csv_captions", 0.0), ("two", "csv_captions", 1e-5)):
        theirs = weights(tmp_path / other, "last.ckpt")
        assert one.keys() == theirs.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, theirs[name], rtol=near, atol=near)
        assert recalls(tmp_path / "one", "csv_captions") == recalls(tmp_path / other, data)
    (described,) = results(tmp_path / "one")["data"].values()
    assert described["splits"]["test"] == {"images": 11, "captions": 55}
    assert "csv_captions" in succeed("table", str(tmp_path / "one"), str(tmp_path / "killed")).out
