"""One tiny world and a handful of runs on it, shared by all end-to-end tests."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported

import pytest
import torch
from end_to_end import arguments, captioner, succeed, uniter, vilt


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from datamodules.miniworld.write import Splits, write_world

    splits = Splits(coco=0.25, flickr_train=0.6, flickr_val=0.15)
    return write_world(tmp_path_factory.mktemp("end_to_end") / "world", scenes=60, image_size=32, splits=splits, workers=1)


@pytest.fixture(scope="session", autouse=True)
def surroundings(world: Path) -> Iterator[None]:
    """The world by its environment variable, one thread, and W&B and DDP variables of the outside kept out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSLIGHT_WORLD", str(world))
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "CROSSLIGHT_RANK0_RUN_FOLDER"):
            patch.delenv(name, raising=False)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `photos`, which holds images and a table."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world / "flickr30k" / "flickr30k-images", tmp_path / "photos" / "files")
    with (tmp_path / "photos" / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption", "split"])
        for image in json.loads((world / "flickr30k" / "dataset_flickr30k.json").read_text())["images"]:
            rows.writerows([f"files/{image['filename']}", each["raw"], image["split"]] for each in image["sentences"])
    return tmp_path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def full_run(runs: Path) -> Path:
    """Both towers, trained from random weights."""
    succeed("run", *arguments("full", "--trainer.max_epochs=1", f"--run_dir={runs / 'full'}", "--seed_everything=3"))
    return runs / "full"


@pytest.fixture(scope="session")
def mwa_run(runs: Path, full_run: Path, world: Path) -> Path:
    """A MultiWay-Adapter on the full run, three epochs, tested on a second data set as well."""
    options = (
        f"--model.init_args.init_from={full_run}", "--trainer.max_epochs=3", "--model.init_args.optimization.lr=0.01",
        "--evaluate.other=datamodules.coco.COCO", f"--evaluate.other.init_args.root={world / 'coco'}",
        "--evaluate.other.init_args.num_workers=0", f"--run_dir={runs / 'mwa'}",
    )  # fmt: skip
    succeed("run", *arguments("mwa", *options))
    return runs / "mwa"


@pytest.fixture(scope="session")
def head_run(runs: Path) -> Path:
    """The heads alone, on random towers."""
    succeed("run", *arguments("head", "--trainer.max_epochs=1", f"--run_dir={runs / 'head'}"))
    return runs / "head"


@pytest.fixture(scope="session")
def uniter_run(runs: Path, world: Path) -> Path:
    """IAIS-distributed with dropout on the Entities part, tested on five of its images under another name as well."""
    root, entities = world / "flickr30k", "--evaluate.few=datamodules.flickr30k_entities.Flickr30kEntities"
    few = "--evaluate.few.init_args"
    options = (
        "--model.init_args.network.init_args.dropout=0.1", "--model.init_args.optimization.lr=0.005", entities,
        f"{few}.root={root}", f"{few}.regions.image_db=img_db/flickr30k", f"{few}.regions.kind=all", f"{few}.limits.test=5",
        f"{few}.num_workers=0", f"--run_dir={runs / 'uniter'}",
    )  # fmt: skip
    succeed("run", *uniter("distributed", *options))
    return runs / "uniter"


@pytest.fixture(scope="session")
def vilt_run(runs: Path) -> Path:
    """IAIS-singular on ViLT, with dropout."""
    dropout = "--model.init_args.network.init_args.config.hidden_dropout_prob=0.1"
    succeed("run", *vilt("singular", dropout, "--model.init_args.optimization.lr=0.005", f"--run_dir={runs / 'vilt'}"))
    return runs / "vilt"


@pytest.fixture(scope="session")
def i_tuning_run(runs: Path, world: Path) -> Path:
    """I-Tuning on the world's captions, tested on both splits of its NoCaps as well."""
    options = [f"--run_dir={runs / 'i_tuning'}", "--wandb.enabled=true"]
    for split in ("val", "test"):
        given = f"--evaluate.nocaps_{split}"
        options += [f"{given}=datamodules.nocaps.NoCaps", f"{given}.init_args.root={world / 'nocaps'}"]
        options += [f"{given}.init_args.split={split}", f"{given}.init_args.num_workers=0"]
    succeed("run", *captioner("i_tuning", *options))
    return runs / "i_tuning"
