"""The cost callback: what a training run costs, in the columns of MultiWay-Adapter's Table 1."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sized
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from datamodules.records import CaptionBatch, ImageBatch, PairBatch, TextBatch
from lightning_modules.adapters.tuning import ParameterCounts, count_parameters
from lightning_modules.callbacks.cost_record import Cost
from lightning_modules.metrics.training_memory import (
    SavedBytes,
    gradient_bytes,
    optimizer_state_bytes,
)

DEVICE_MEMORY = "device allocator peak while training"
CPU_MEMORY = "saved activations + gradients + optimizer state"
_KEPT_STEP_TIMES = 10_000


class CostMonitor(Callback):
    """Measures tunable parameters, peak memory and training time without touching the training.

    Memory: on a GPU the allocator's peak over the training steps, validation left out. On the CPU, the largest saved
    activations of the first `memory_steps` optimizer steps plus gradients plus optimizer state (`SavedBytes` says what
    that leaves out). Both are of this process: under DDP each device has its own.

    Time: from the start of an epoch's batches to their end, waiting for data included, validation, sanity check and the
    checkpoints written after them left out. The clock reads the device's progress only where it stops (`synchronize` once
    an epoch or validation), never every step; step times of a GPU run are therefore those at which Lightning could go on.

    Totals travel with checkpoints: a resumed run goes on counting from what its checkpoint had seen, and work that was
    lost with a crash is not counted twice. `seconds_per_epoch` divides by epochs in fractions, so stopping or resuming
    inside an epoch does not distort it.
    """

    def __init__(self, memory_steps: int = 2) -> None:
        """Starts at zero.

        Args:
            memory_steps: Optimizer steps of each start whose saved activations are counted on the CPU (they run a
                little slower and are left out of the median step time). 0 measures no memory there.
        """
        self.memory_steps = memory_steps
        self._parameters = ParameterCounts(total=0, trainable=0, backbone=0, adapter=0, heads=0)
        self._memory_kind = CPU_MEMORY
        self._peak_bytes = self._activation_bytes = self._copy_bytes = self._gradient_bytes = self._optimizer_bytes = 0
        self._seconds = 0.0
        self._epochs = 0.0
        self._pairs = self._images = self._batches = self._steps = 0
        self._step_times: deque[float] = deque(maxlen=_KEPT_STEP_TIMES)
        # Of this process only, never saved:
        self._running_since: float | None = None
        self._last_step_at: float | None = None
        self._saved: SavedBytes | None = None
        self._first_step = self._seen_step = 0
        self._fitting = True

    # ------------------------------------------------------------------------------------------------------------- hooks

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Counts parameters, for a run that only evaluates too."""
        self._fitting = stage == "fit"
        self._parameters = count_parameters(pl_module, getattr(pl_module, "adapter", None))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts parameters again, now that every other callback has frozen what it wanted to."""
        self._parameters = count_parameters(pl_module, getattr(pl_module, "adapter", None))
        self._memory_kind = DEVICE_MEMORY if pl_module.device.type == "cuda" else CPU_MEMORY
        self._first_step = self._seen_step = trainer.global_step
        self._reset_peak(pl_module.device)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock before the first batch is fetched."""
        self._start()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock again after a validation, and the count of saved bytes in the first steps."""
        if self._running_since is None:
            self._start()
        if pl_module.device.type != "cuda" and trainer.global_step - self._first_step < self.memory_steps:
            self._saved = SavedBytes(exclude=pl_module)
            self._saved.__enter__()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Reads the size of the gradients where all of them exist."""
        if self._saved is not None:
            self._gradient_bytes = max(self._gradient_bytes, gradient_bytes(pl_module.parameters()))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch and, if the optimizer has stepped, the step."""
        measured = self._saved is not None
        self._stop_saved()
        if measured:
            state = sum(optimizer_state_bytes(optimizer) for optimizer in trainer.optimizers)
            self._optimizer_bytes = max(self._optimizer_bytes, state)
            self._peak_bytes = self._activation_bytes + self._gradient_bytes + self._optimizer_bytes
        self._batches += 1
        pairs = _pairs_of(batch)
        self._pairs += pairs * trainer.world_size
        # captions of one image share its encoding, every other pair encodes its own
        self._images += (len(batch.images) if isinstance(batch, CaptionBatch) else pairs) * trainer.world_size
        if isinstance(trainer.num_training_batches, int):
            self._epochs += 1 / trainer.num_training_batches
        stepped = trainer.global_step - self._seen_step
        if stepped:
            now = time.perf_counter()
            if self._last_step_at is not None and not measured:
                self._step_times.append((now - self._last_step_at) / stepped)
            self._last_step_at = now
            self._steps += stepped
            self._seen_step = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock."""
        self._stop(pl_module.device)
        if not isinstance(trainer.num_training_batches, int):  # a loader without a length: whole epochs are all there is
            self._epochs += 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock; it starts again with the next training batch, after checkpoints are written."""
        self._stop(pl_module.device)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the memory that validation took."""
        self._reset_peak(pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock of a run that ended inside an epoch."""
        self._stop(pl_module.device)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leaves no hooks behind, and the totals as they were (no synchronize: the device may be what failed)."""
        self._stop_saved()
        self._stop(pl_module.device, wait=False)

    # ------------------------------------------------------------------------------------------------------------- results

    def summary(self) -> Cost:
        """The totals so far; None where nothing was measured."""
        seconds, epochs = self._seconds_now(), round(self._epochs, 6)  # a sum of fractions: 3 x 1/3 is 1
        pairs, images = (count / seconds if seconds and count else None for count in (self._pairs, self._images))
        cpu = self._memory_kind == CPU_MEMORY
        return Cost(
            tunable_parameters=self._parameters.trainable,
            total_parameters=self._parameters.total,
            adapter_parameters=self._parameters.adapter,
            tunable_percent=self._parameters.percent,
            peak_memory_bytes=self._peak_bytes or None,
            memory_kind=self._memory_kind,
            saved_activation_bytes=(self._activation_bytes or None) if cpu else None,
            saved_copy_bytes=self._copy_bytes if cpu and self._activation_bytes else None,
            gradient_bytes=(self._gradient_bytes or None) if cpu else None,
            optimizer_state_bytes=self._optimizer_bytes if cpu and self._peak_bytes else None,
            train_seconds=seconds,
            seconds_per_epoch=seconds / epochs if epochs else None,
            seconds_per_step_median=median(self._step_times) if self._step_times else None,
            pairs_per_second=pairs,
            images_per_second=images,
            epochs=epochs,
            steps=self._steps,
            batches=self._batches,
            pairs=self._pairs,
            images=self._images,
        )

    def state_dict(self) -> dict[str, Any]:
        """Totals for the checkpoint, with the time of the running epoch up to now."""
        return {
            "peak_bytes": self._peak_bytes,
            "activation_bytes": self._activation_bytes,
            "copy_bytes": self._copy_bytes,
            "gradient_bytes": self._gradient_bytes,
            "optimizer_bytes": self._optimizer_bytes,
            "seconds": self._seconds_now(),
            "epochs": self._epochs,
            "pairs": self._pairs,
            "images": self._images,
            "batches": self._batches,
            "steps": self._steps,
            "step_times": list(self._step_times),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint's totals; not when it is only tested: the best checkpoint knows less than the whole fit."""
        if not self._fitting:
            return
        for name in ("peak_bytes", "activation_bytes", "gradient_bytes", "optimizer_bytes"):
            setattr(self, f"_{name}", int(state_dict[name]))
        self._copy_bytes = int(state_dict.get("copy_bytes", 0))  # checkpoints of older versions have none
        self._seconds, self._epochs = float(state_dict["seconds"]), float(state_dict["epochs"])
        self._pairs, self._batches, self._steps = (int(state_dict[name]) for name in ("pairs", "batches", "steps"))
        self._images = int(state_dict.get("images", self._pairs))
        self._step_times = deque(state_dict["step_times"], maxlen=_KEPT_STEP_TIMES)

    # ------------------------------------------------------------------------------------------------------------- clock

    def _start(self) -> None:
        self._running_since = time.perf_counter()
        self._last_step_at = self._running_since

    def _seconds_now(self) -> float:
        return self._seconds + (0.0 if self._running_since is None else time.perf_counter() - self._running_since)

    def _stop(self, device: torch.device, wait: bool = True) -> None:
        if self._running_since is None:
            return
        if device.type == "cuda":
            if wait:
                torch.cuda.synchronize(device)
            self._peak_bytes = max(self._peak_bytes, torch.cuda.max_memory_allocated(device))
        self._seconds = self._seconds_now()
        self._running_since = self._last_step_at = None

    def _stop_saved(self) -> None:
        if self._saved is not None:
            self._saved.__exit__()
            if self._saved.peak_bytes > self._activation_bytes:
                self._activation_bytes, self._copy_bytes = self._saved.peak_bytes, self._saved.peak_copy_bytes
            self._saved = None

    @staticmethod
    def _reset_peak(device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)


def _pairs_of(batch: Any) -> int:
    """Pairs in a local batch; plain tensors and (x, y) tuples of them count rows, so that the callback works with any
    module."""
    if isinstance(batch, (PairBatch, ImageBatch, TextBatch)):
        return len(batch)
    if isinstance(batch, (tuple, list)) and batch:
        return _pairs_of(batch[0])
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    return len(batch) if isinstance(batch, Sized) else 0
