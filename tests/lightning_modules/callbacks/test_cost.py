"""CostMonitor in real (tiny) trainings: hand counts, a fake clock, resuming, and no influence on the weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_modules.callbacks.cost
from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules.callbacks.cost import CPU_MEMORY, CostMonitor, _pairs_of
from lightning_modules.callbacks.cost_record import Cost

B, D, H, BATCHES = 4, 3, 5, 6
STEP_SECONDS, VALIDATION_SECONDS = 2.0, 1000.0


class Clock:
    """Stands in for the module `time`: moves only when the training says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Tiny(pl.LightningModule):
    def __init__(self, clock: Clock | None = None, stop_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(D, H), nn.Sigmoid(), nn.Linear(H, 1))
        self.net[0].requires_grad_(False)
        self.clock, self.stop_at = clock, stop_at

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.stop_at:
            raise KeyboardInterrupt
        if self.clock:
            self.clock.now += STEP_SECONDS
        return self.net(batch[0]).square().mean() + 0.01 * torch.rand(())

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        if self.clock:
            self.clock.now += VALIDATION_SECONDS

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.1)


class SlowSave(Callback):
    """Writing a checkpoint takes time too, after validation."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock.now += VALIDATION_SECONDS


def fit(module: pl.LightningModule, callbacks: list[Callback], ckpt_path: Path | None = None, **options: Any) -> pl.Trainer:
    data = TensorDataset(torch.randn(B * BATCHES, D, generator=torch.Generator().manual_seed(1)))
    loader = DataLoader(data, batch_size=B)
    options = {"max_epochs": 3, "enable_checkpointing": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
            **options,
        )
        trainer.fit(module, loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lightning_modules.callbacks.cost, "time", clock)
    return clock


def test_counts_by_hand(clock: Clock) -> None:
    monitor = CostMonitor()
    fit(Tiny(clock), [monitor, SlowSave(clock)])
    trained, total = H + 1, D * H + H + H + 1
    # Saved by one step: the input of the trained layer [B, H], and the output that the square needs [B, 1].
    activations, gradients, moments = 4 * (B * H + B), 4 * trained, 4 * (2 * trained + 2)
    assert monitor.summary() == Cost(
        tunable_parameters=trained,
        total_parameters=total,
        adapter_parameters=0,
        tunable_percent=100 * trained / total,
        peak_memory_bytes=activations + gradients + moments,
        memory_kind=CPU_MEMORY,
        saved_activation_bytes=activations,
        saved_copy_bytes=0,
        gradient_bytes=gradients,
        optimizer_state_bytes=moments,
        train_seconds=3 * BATCHES * STEP_SECONDS,
        seconds_per_epoch=BATCHES * STEP_SECONDS,
        seconds_per_step_median=STEP_SECONDS,
        pairs_per_second=B / STEP_SECONDS,
        images_per_second=B / STEP_SECONDS,
        images=3 * BATCHES * B,
        epochs=3.0,
        steps=3 * BATCHES,
        batches=3 * BATCHES,
        pairs=3 * BATCHES * B,
    )


def test_validation_inside_an_epoch_and_accumulation(clock: Clock) -> None:
    monitor = CostMonitor()
    fit(Tiny(clock), [monitor, SlowSave(clock)], val_check_interval=2, accumulate_grad_batches=2)
    summary = monitor.summary()
    assert summary.train_seconds == 3 * BATCHES * STEP_SECONDS
    assert summary.steps == 3 * BATCHES // 2
    assert summary.seconds_per_step_median == 2 * STEP_SECONDS
    assert summary.saved_activation_bytes == 4 * (B * H + B)  # two batches a step, never held together


@pytest.mark.parametrize("stop_at", [1, 8, 10])
def test_a_resumed_run_keeps_its_totals(clock: Clock, tmp_path: Path, stop_at: int) -> None:
    """Stopped in the middle of an epoch, resumed from the last checkpoint: the totals are those of a run that was never
    stopped."""
    whole = CostMonitor()
    expected = fit(Tiny(clock), [whole]).lightning_module
    first = CostMonitor()
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=1, filename="last")
    with pytest.raises(SystemExit):
        fit(Tiny(clock, stop_at=stop_at), [first, saver], enable_checkpointing=True)
    assert first.summary().steps == stop_at
    clock.now += 12345.0  # the night between
    second = CostMonitor()
    resumed = fit(Tiny(clock), [second], ckpt_path=tmp_path / "last.ckpt").lightning_module
    assert second.summary() == whole.summary()
    assert expected.state_dict().keys() == resumed.state_dict().keys()


@pytest.mark.parametrize("memory_steps", [0, 2, 1000])
def test_weights_are_bit_equal_with_and_without(memory_steps: int) -> None:
    def weights(callbacks: list[Callback]) -> dict[str, Tensor]:
        module = Tiny()
        torch.manual_seed(3)
        fit(module, callbacks)
        return module.state_dict()

    without, with_monitor = weights([]), weights([CostMonitor(memory_steps)])
    assert all(torch.equal(value, with_monitor[name]) for name, value in without.items())
    assert not torch.equal(without["net.2.weight"], Tiny().net[2].weight)  # it did train


def test_memory_can_be_switched_off() -> None:
    monitor = CostMonitor(memory_steps=0)
    fit(Tiny(), [monitor])
    assert monitor.summary().peak_memory_bytes is None


def test_an_error_leaves_no_hooks_behind() -> None:
    class Broken(Tiny):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            raise ValueError("broken")

    monitor = CostMonitor()
    with pytest.raises(ValueError, match="broken"):
        fit(Broken(), [monitor])
    before = monitor.summary()
    Tiny().net(torch.randn(B, D)).sum().backward()
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    assert monitor.summary() == before


def test_summary_before_training() -> None:
    summary = CostMonitor().summary()
    assert summary.train_seconds == 0
    assert summary.seconds_per_epoch is None
    assert summary.pairs_per_second is None


def test_pairs_of_batches() -> None:
    rows = torch.arange(3)
    texts = TextBatch(("a", "b", "c"), ("", "", ""), rows, rows, rows[:, None], rows[:, None] > 0)
    assert _pairs_of(PairBatch(ImageBatch(("x", "y", "z"), rows), texts)) == 3
    assert _pairs_of((torch.zeros(5, 2), torch.zeros(5))) == 5
    assert _pairs_of(None) == 0
