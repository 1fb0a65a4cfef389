"""The captions view of the image-text data modules: chosen by the network, resumed as the others are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.inputs import Inputs, RegionInput
from datamodules.loading.captions import Captioning
from datamodules.records import CaptionBatch, ImageBatch


class Network(nn.Module):
    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.weight = nn.Parameter(torch.zeros(3))


class Recorder(LightningModule):
    def __init__(self, inputs: Inputs, fail_at: int | None = None) -> None:
        super().__init__()
        self.network = Network(inputs)
        self.fail_at = fail_at
        self.seen: list[tuple[int, tuple[str, ...], float]] = []

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        if self.global_step == self.fail_at:
            raise KeyboardInterrupt
        assert batch.images.pixels_B3HW is not None
        self.seen.append((self.current_epoch, batch.texts.caption_ids, batch.images.pixels_B3HW.sum().item()))
        return (self.network.weight * batch.images.pixels_B3HW.mean((0, 2, 3))).sum()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        assert isinstance(batch, ImageBatch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    root: Path, inputs: Inputs, folder: Path, fail_at: int | None = None, ckpt: Path | None = None, **options: Any
) -> Recorder:
    module = Recorder(inputs, fail_at)
    data = Flickr8k(str(root), batch_size=4, num_workers=0, seed=3, **options)
    callback = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_on_train_epoch_end=False)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(module, data, ckpt_path=ckpt)
    except (KeyboardInterrupt, SystemExit):
        assert fail_at is not None
    return module


def test_the_network_chooses(flickr8k_root: Path, inputs: Inputs) -> None:
    data = Flickr8k(str(flickr8k_root), batch_size=6, eval_batch_size=3, num_workers=0)
    data.connect(replace(inputs, captions=True))
    batches = list(data.train_dataloader())
    assert len(batches) == 6
    assert all(isinstance(batch, CaptionBatch) for batch in batches)
    assert sum(len(batch.images) for batch in batches) <= 18
    (loader,) = data.evaluation_loaders("val")
    assert [row for batch in loader for row in batch.index_B.tolist()] == list(range(5))
    data.connect(inputs)
    assert len(data.evaluation_loaders("val")) == 2
    with pytest.raises(InputError, match="captioning takes pixels"):
        data.connect(Inputs(None, inputs.text, RegionInput(4), captions=True))


def test_processes_evaluate_disjoint_images(flickr8k_root: Path, inputs: Inputs) -> None:
    rows = []
    for rank in range(2):
        data = Flickr8k(str(flickr8k_root), num_workers=0)
        data.connect(replace(inputs, captions=True), rank, 2)
        rows += [row for batch in data.evaluation_loaders("train")[0] for row in batch.index_B.tolist()]
    assert sorted(rows) == list(range(13))


def test_a_run_stopped_in_mid_epoch_sees_the_batches_it_would_have_seen(
    flickr8k_root: Path, inputs: Inputs, tmp_path: Path
) -> None:
    inputs = replace(inputs, captions=True)
    captioning = Captioning(captions_per_image=3)
    whole = fit(flickr8k_root, inputs, tmp_path / "whole", captioning=captioning)
    assert len(whole.seen) == 3 * (30 // 4)  # 13 images with 1, 2, 3, 3, 3, 1, ... captions
    begun = fit(flickr8k_root, inputs, tmp_path / "cut", fail_at=10, captioning=captioning)
    rest = fit(flickr8k_root, inputs, tmp_path / "cut", ckpt=tmp_path / "cut" / "last.ckpt", captioning=captioning)
    assert begun.seen + rest.seen == whole.seen
    with pytest.raises(InputError, match=r"with captioning\.captions_per_image 3, this run has None"):
        fit(flickr8k_root, inputs, tmp_path / "other", ckpt=mid(flickr8k_root, inputs, tmp_path, captioning))


def mid(root: Path, inputs: Inputs, folder: Path, captioning: Captioning) -> Path:
    fit(root, inputs, folder / "mid", fail_at=2, captioning=captioning)
    return folder / "mid" / "last.ckpt"
