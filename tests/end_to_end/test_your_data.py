"""A folder of images with a table is trained and tested on without a class: `configs/data/table.yaml` from any folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from end_to_end import BATCH, CAPTIONER, TEST, TRAIN, VAL, arguments, captions, crosslight, recalls, results, succeed, weights

DATA = "--data.init_args"


@pytest.fixture
def root(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds one link, to the world's images, and a CSV file of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(world / "flickr30k" / "flickr30k-images")
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption", "split"])
        for image in json.loads((world / "flickr30k" / "dataset_flickr30k.json").read_text())["images"]:
            rows.writerows([f"photos/{image['filename']}", each["raw"], image["split"]] for each in image["sentences"])
    return tmp_path


def replaced(options: list[str], old: str, new: str) -> list[str]:
    assert old in options
    return [new if option == old else option for option in options]


def test_retrieval_is_that_of_the_same_images_in_another_format(root: Path, head_run: Path) -> None:
    like_world = [f"{DATA}.train_unit=image", f"{DATA}.augment=none", f"{DATA}.num_workers=0", "--trainer.max_epochs=1"]
    options = replaced(arguments("head", *like_world), "configs/data/world.yaml", "configs/data/table.yaml")
    succeed("run", *options, "--run_dir=mine")
    theirs = weights(head_run, "last.ckpt")
    for name, value in weights(root / "mine", "last.ckpt").items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)
    assert recalls(root / "mine", "table") == recalls(head_run)
    succeed("index", "photos", "--run=mine", "--index=found", "--workers=0", "--device=cpu")
    found = succeed("search", "a red square", "--index=found", "--device=cpu").out
    assert str(root / "photos") in found
    assert found.startswith(f'"a red square", of {TRAIN + VAL + TEST} images:')


def test_images_of_a_test_that_were_trained_on_are_told(root: Path) -> None:
    """Before the training, and in the results; of a test of a model that does not train, nothing."""
    mine = (
        "--evaluate.mine=datamodules.table.Table", f"--evaluate.mine.init_args.root={root}", "--trainer.max_epochs=1",
        "--evaluate.mine.init_args.columns.split=null", "--evaluate.mine.init_args.draw={val: 0, test: 1}",
        "--evaluate.mine.init_args.num_workers=0",
    )  # fmt: skip
    told = f"{TRAIN} of {TRAIN + VAL + TEST} images were trained on (their files have the same content)"
    for row, says, more in (("head", told, []), ("frozen", None, ["--model.init_args.init_from=head"])):
        out = succeed("run", *arguments(row, *mine, *more, f"--run_dir={row}")).out
        lines = out.splitlines()
        assert [line for line in lines if "trained on" in line] == ([f"crosslight: mine test: {told}"] if says else [])
        if says:
            training = next(number for number, line in enumerate(lines) if line.startswith("training: "))
            assert lines.index(f"crosslight: mine test: {told}") < training
        own, other = results(root / row)["evaluations"]
        assert "images" not in own["notes"].get("remarks", {})
        assert other["notes"].get("remarks", {}).get("images") == says


def test_captioning_from_another_folder_with_drawn_splits(root: Path) -> None:
    options = replaced(list(CAPTIONER), "configs/data/world_captions.yaml", "configs/data/table_captions.yaml")
    options += ["-c", "experiments/papers/i_tuning/variants/i_tuning.yaml", f"{DATA}.root={root}", f"{DATA}.num_workers=0"]
    drawn = [f"{DATA}.columns.split=null", f"{DATA}.draw.val={VAL / 45}", f"{DATA}.draw.test={TEST / 45}", f"{DATA}.draw.seed=3"]
    succeed("run", *options, *drawn, "--trainer.max_steps=1", "--trainer.val_check_interval=2", f"--run_dir={root / 'mine'}")
    (described,) = results(root / "mine")["data"].values()
    counts = {split: content["images"] for split, content in described["splits"].items()}
    assert counts == {"train": TRAIN, "val": VAL, "test": TEST}
    assert all(name.startswith("photos/") for name in captions(root / "mine", "table"))


def test_what_is_wrong_ends_the_run_with_the_line(root: Path) -> None:
    table = root / "captions.csv"
    table.write_text(table.read_text() + "photos/gone.jpg,a dog,train\n")
    line = len(table.read_text().splitlines())
    options = replaced(arguments("head", f"{DATA}.root={root}"), "configs/data/world.yaml", "configs/data/table.yaml")
    answer = crosslight("run", *options, f"{DATA}.batch_size={BATCH}", "--run_dir=mine")
    assert answer.status == 2
    assert f"missing image: line {line}: {root}/photos/gone.jpg does not exist" in answer.error
    check = crosslight("data", "check", "table", str(root), "--columns.captions=text")
    assert check.status == 2
    assert "no column 'text'; its columns are 'path', 'caption', 'split'. Set columns.captions" in check.error
