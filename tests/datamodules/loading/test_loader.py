"""A run stopped in mid-epoch and resumed sees the very batches that it would have seen."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_data import write_flickr8k
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.inputs import Inputs
from datamodules.loading import loader as loader_file
from datamodules.loading.loader import BatchDataset, BatchLoader
from datamodules.records import PairBatch


class Network(nn.Module):
    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.weight = nn.Parameter(torch.zeros(3))


class Recorder(LightningModule):
    """Trains three numbers on the pixels and records every batch; is interrupted, or killed, before step `fail_at`."""

    def __init__(self, inputs: Inputs, fail_at: int | None = None, killed: bool = False) -> None:
        super().__init__()
        self.network = Network(inputs)
        self.fail_at, self.killed = fail_at, killed
        self.seen: list[tuple[int, tuple[str, ...], float]] = []

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        if self.global_step == self.fail_at:
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        assert batch.images.pixels_B3HW is not None
        self.seen.append((self.current_epoch, batch.texts.caption_ids, batch.images.pixels_B3HW.sum().item()))
        return (self.network.weight * batch.images.pixels_B3HW.mean((0, 2, 3))).sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    root: Path,
    inputs: Inputs,
    folder: Path,
    workers: int,
    fail_at: int | None = None,
    ckpt_path: Path | None = None,
    checkpoint: dict[str, Any] | None = None,
    batch_size: int = 4,
    killed: bool = False,
    **trainer_options: Any,
) -> Recorder:
    module = Recorder(inputs, fail_at, killed)
    data = Flickr8k(str(root), batch_size=batch_size, num_workers=workers, seed=3, eval_batch_size=4)
    callback = ModelCheckpoint(
        folder, save_last=True, save_top_k=1, **(checkpoint or {"every_n_train_steps": 1, "save_on_train_epoch_end": False})
    )
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **trainer_options,
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=False)
    except SystemExit:  # Lightning's answer to a KeyboardInterrupt
        assert fail_at is not None
    return module


@pytest.fixture(scope="module")
def whole(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(write_flickr8k(folder / "flickr8k"), inputs, folder, 0)


@pytest.mark.parametrize("workers", [0, 2])
# 13 images have 36 captions: nine batches an epoch. 5: mid-epoch. 9: between epochs. 14: in mid-epoch of a later epoch.
@pytest.mark.parametrize("stop", [5, 9, 14])
def test_resumed_batches_are_those_of_the_uninterrupted_run(
    flickr8k_root: Path, inputs: Inputs, whole: Recorder, tmp_path: Path, workers: int, stop: int
) -> None:
    assert len(whole.seen) == 27
    assert len({ids for _, ids, _ in whole.seen}) == 27

    before = fit(flickr8k_root, inputs, tmp_path / "cut", workers, fail_at=stop)
    after = fit(flickr8k_root, inputs, tmp_path / "cut", workers, ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert len(before.seen) == stop
    assert before.seen + after.seen == whole.seen
    assert torch.equal(after.network.weight, whole.network.weight)


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"save_on_train_epoch_end": True},  # after the epoch's counters have moved on
        {"save_on_train_epoch_end": False},  # after validation, inside the epoch's last batch
    ],
)
@pytest.mark.parametrize("limit", [1.0, 6])  # the whole epoch, or cut by limit_train_batches
def test_resume_from_an_end_of_epoch_checkpoint(
    flickr8k_root: Path, inputs: Inputs, tmp_path: Path, checkpoint: dict[str, Any], limit: float
) -> None:
    options: dict[str, Any] = {"checkpoint": checkpoint, "limit_train_batches": limit}
    per_epoch = 9 if limit == 1.0 else 6
    whole = fit(flickr8k_root, inputs, tmp_path / "whole", 0, **options)
    assert len(whole.seen) == 3 * per_epoch
    fit(flickr8k_root, inputs, tmp_path / "cut", 0, fail_at=2 * per_epoch + 2, **options)  # third epoch; loses two steps
    after = fit(flickr8k_root, inputs, tmp_path / "cut", 0, ckpt_path=tmp_path / "cut" / "last.ckpt", **options)
    assert after.seen == whole.seen[2 * per_epoch :]


def test_resume_after_validation_in_mid_epoch(flickr8k_root: Path, inputs: Inputs, tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": {"save_on_train_epoch_end": False}, "val_check_interval": 4}
    whole = fit(flickr8k_root, inputs, tmp_path / "whole", 0, **options)
    fit(flickr8k_root, inputs, tmp_path / "cut", 0, fail_at=15, **options)  # validated and saved after step 13
    after = fit(flickr8k_root, inputs, tmp_path / "cut", 0, ckpt_path=tmp_path / "cut" / "last.ckpt", **options)
    assert after.seen == whole.seen[13:]


def test_mid_epoch_resume_with_another_batch_size_is_refused(flickr8k_root: Path, inputs: Inputs, tmp_path: Path) -> None:
    fit(flickr8k_root, inputs, tmp_path, 0, fail_at=5)
    with pytest.raises(InputError, match=r"mid-epoch.*after 5 batches.*batch_size 4, this run has 6"):
        fit(flickr8k_root, inputs, tmp_path, 0, ckpt_path=tmp_path / "last.ckpt", batch_size=6)


def _fit_and_be_killed(root: Path, inputs: Inputs, folder: Path) -> None:
    torch.set_num_threads(1)
    fit(root, inputs, folder, workers=1, fail_at=7, killed=True)


def test_sigkill_in_mid_epoch(flickr8k_root: Path, inputs: Inputs, whole: Recorder, tmp_path: Path) -> None:
    """A process killed without a chance to clean up, with a worker that has prefetched further batches."""
    process = multiprocessing.get_context("fork").Process(target=_fit_and_be_killed, args=(flickr8k_root, inputs, tmp_path))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    after = fit(flickr8k_root, inputs, tmp_path, 0, ckpt_path=tmp_path / "last.ckpt")
    assert after.seen == whole.seen[7:]
    assert torch.equal(after.network.weight, whole.network.weight)


def test_no_warning_that_the_loader_cannot_resume(
    flickr8k_root: Path, inputs: Inputs, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    fit(flickr8k_root, inputs, tmp_path, 0, fail_at=5)
    fit(flickr8k_root, inputs, tmp_path, 0, ckpt_path=tmp_path / "last.ckpt")
    assert not [warning for warning in recwarn if "not resumable" in str(warning.message)]


class Stuck(BatchDataset):
    def make(self, keys: Any) -> Any:
        time.sleep(60)


def test_a_worker_that_is_stuck_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BatchLoader([1]).timeout == 0
    monkeypatch.setattr(loader_file, "PATIENCE", 0.2)
    batches = iter(BatchLoader(Stuck(), batch_size=None, sampler=[[0]], num_workers=1))
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 0\.2 seconds"):
        next(batches)
    for worker in batches._batches._workers:
        worker.kill()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="mended in Python 3.12")
def test_no_worker_is_forked_while_a_thread_enters_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for ever. The list of threads is asked for first, which waits for the lock that must not be inherited."""
    asked: list[int] = []
    frames = sys._current_frames
    monkeypatch.setattr(sys, "_current_frames", lambda: asked.append(os.getpid()) or frames())
    loader = BatchLoader([torch.ones(1)] * 2, num_workers=1)
    assert len(list(loader)) == 2
    assert asked == [os.getpid()]
