"""The data modules of Flickr8k, Flickr30k and COCO: splits, limits, fingerprints, what is missing; under a Trainer."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.image_text import Limits
from datamodules.inputs import ImageInput, Inputs
from datamodules.records import PairBatch


def test_missing_images_are_found_before_training(flickr8k_root: Path, inputs: Inputs) -> None:
    (flickr8k_root / "images" / "1003.jpg").unlink()
    data = Flickr8k(str(flickr8k_root))
    with pytest.raises(InputError, match=r"flickr8k train: 1 of 13 image files are missing, first image 1003: .*1003\.jpg"):
        data.records("train")
    assert len(Flickr8k(str(flickr8k_root), limits=Limits(train=3)).records("train")) == 3


def test_limits_show_in_the_split_label(flickr8k_root: Path) -> None:
    data = Flickr8k(str(flickr8k_root), limits=Limits(train=4, test=100))
    assert (data.split_label("train"), data.split_label("val"), data.split_label("test")) == ("train[:4]", "val", "test")
    assert data.describe()["splits"]["train[:4]"] == {"images": 4, "captions": 1 + 2 + 3 + 4}
    with pytest.raises(InputError, match=r"limits\.val is 0"):
        Limits(val=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": -1}, "eval_batch_size is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"min_scale": 1.5}, "min_scale is 1.5"),
    ],
)
def test_options_out_of_range(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Flickr8k(str(tmp_path), **options)


def test_a_mistyped_option_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="batchsize"):
        Flickr8k(str(tmp_path), batchsize=3)


def test_unconnected_and_one_sided_networks_are_refused(flickr8k_root: Path, inputs: Inputs) -> None:
    data = Flickr8k(str(flickr8k_root), batch_size=4)
    with pytest.raises(InputError, match="call connect"):
        data.train_dataloader()
    with pytest.raises(InputError, match="takes no texts"):
        data.connect(Inputs(image=ImageInput(8, (0, 0, 0), (1, 1, 1))))
    data.connect(inputs, 0, 3)
    assert len(data.evaluation_loaders("test")) == 2  # only training needs a batch that divides
    with pytest.raises(InputError, match="does not divide by 3"):
        data.train_dataloader()
    data.connect(inputs)
    big = Flickr8k(str(flickr8k_root), batch_size=64)
    big.connect(inputs)
    with pytest.raises(InputError, match="fewer than one batch of 64"):
        big.train_dataloader()


# ------------------------------------------------------------------------------------------------------ under a Trainer


class Module(LightningModule):
    def __init__(self, inputs: Inputs | None) -> None:
        super().__init__()
        self.network = nn.Linear(3, 1)
        if inputs is not None:
            self.network.inputs = inputs  # type: ignore[assignment]
        self.trained: list[tuple[str, ...]] = []
        self.evaluated: dict[tuple[str, int], list[int]] = {}

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        assert batch.images.pixels_B3HW is not None
        self.trained.append(batch.texts.caption_ids)
        return self.network(batch.images.pixels_B3HW.mean((2, 3))).sum()

    def _record(self, stage: str, batch: Any, dataloader_idx: int) -> None:
        self.evaluated.setdefault((stage, dataloader_idx), []).extend(batch.index_B.tolist())

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._record("val", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._record("test", batch, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._record("predict", batch, dataloader_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def quiet_trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**({"accelerator": "cpu", "max_epochs": 1, "default_root_dir": folder} | quiet | options))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fit_test_predict(flickr8k_root: Path, inputs: Inputs, tmp_path: Path, precision: str) -> None:
    module, data = Module(inputs), Flickr8k(str(flickr8k_root), batch_size=6, eval_batch_size=4, num_workers=1)
    trainer = quiet_trainer(tmp_path, precision=precision, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    trainer.predict(module, datamodule=data)
    assert len(module.trained) == 6
    captions = {split: sum(len(record.captions) for record in data.records(split)) for split in ("val", "test")}
    assert sorted(module.evaluated["val", 0]) == list(range(5))
    assert sorted(module.evaluated["val", 1]) == list(range(captions["val"]))
    for stage in ("test", "predict"):
        assert sorted(module.evaluated[stage, 0]) == list(range(3))
        assert sorted(module.evaluated[stage, 1]) == list(range(captions["test"]))


def test_a_network_without_inputs_is_refused(flickr8k_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Module\.network\.inputs names no transform"):
        quiet_trainer(tmp_path).fit(Module(None), datamodule=Flickr8k(str(flickr8k_root)))


def _rank(rank: int, port: int, root: Path, inputs: Inputs, folder: Path, sharded: bool, results: Any) -> None:
    import os

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    module, data = Module(inputs), Flickr8k(str(root), batch_size=6, eval_batch_size=2, num_workers=0)
    module.network.register_buffer("statistic", torch.zeros(1))  # DDP synchronises buffers in every forward
    trainer = quiet_trainer(
        folder, strategy="ddp", devices=2, use_distributed_sampler=sharded, num_sanity_val_steps=0, max_epochs=2
    )
    try:
        trainer.fit(module, datamodule=data)
        results.put((rank, module.trained, module.evaluated))
    except InputError as error:
        results.put((rank, str(error), None))


def _two_processes(root: Path, inputs: Inputs, folder: Path, sharded: bool) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, port, root, inputs, folder, sharded, results)) for rank in range(2)]
    for process in processes:
        process.start()
    answers = sorted((results.get(timeout=120) for _ in processes), key=lambda answer: answer[0])
    for process in processes:
        process.join(30)
    return answers


def test_two_processes_see_the_batches_of_one(flickr8k_root: Path, inputs: Inputs, tmp_path: Path) -> None:
    first, second = _two_processes(flickr8k_root, inputs, tmp_path, sharded=False)
    alone = Module(inputs)
    data = Flickr8k(str(flickr8k_root), batch_size=6, num_workers=0)
    quiet_trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(alone, datamodule=data)
    assert [left + right for left, right in zip(first[1], second[1], strict=True)] == alone.trained
    for loader, rows in ((0, 5), (1, 15)):  # 5 images and 15 captions do not divide by two
        share = [answer[2]["val", loader] for answer in (first, second)]
        assert sorted(share[0] + share[1]) == sorted(2 * list(range(rows)))  # two epochs


def test_lightnings_own_sampler_is_refused(flickr8k_root: Path, inputs: Inputs, tmp_path: Path) -> None:
    for _, message, _ in _two_processes(flickr8k_root, inputs, tmp_path, sharded=True):
        assert "set trainer.use_distributed_sampler to false" in message
