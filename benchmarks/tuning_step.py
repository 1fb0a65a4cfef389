"""`RetrievalModule`'s own training step on one batch: without Lightning's loop, and without data loading."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import autocast
from lightning_modules import optimization
from lightning_modules.metrics.training_memory import SavedBytes, gradient_bytes, optimizer_state_bytes
from lightning_modules.retrieval import RetrievalModule


class TuningStep:
    """A module with its optimizer, ready to step.

    Args:
        module: What is tuned; put on the device and in training mode.
        device: "cpu" or "cuda".
        bf16: Under bf16 autocast, as Lightning's bf16-mixed does it.
    """

    def __init__(self, module: RetrievalModule, device: str = "cpu", bf16: bool = False) -> None:
        self.module, self.device, self.bf16 = module.to(device).train(), device, bf16
        module.log_dict = lambda *_, **__: None  # type: ignore[method-assign] # there is no trainer to log to
        self.optimizer, self.schedule = optimization.build(module.network, module.optimization, 100_000, module.owns)

    def loss(self, batch: Any) -> torch.Tensor:
        with autocast(self.device, self.bf16):
            return self.module.training_step(batch, 0)

    def backward(self, batch: Any) -> None:
        """Forward and backward without the optimizer's step."""
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()

    def advance(self) -> None:
        """What is left of a step after the backward pass."""
        self.optimizer.step()
        self.schedule.step()

    def whole(self, batch: Any) -> None:
        """A whole step."""
        self.backward(batch)
        self.advance()

    def counted(self, batch: Any) -> FlopCounterMode:
        """FLOPs of one forward and backward pass, counted by torch while it runs."""
        with FlopCounterMode(display=False) as counter:
            self.backward(batch)
        self.optimizer.zero_grad()
        return counter

    def kept_bytes(self, batch: Any) -> dict[str, int]:
        """Bytes that one step keeps: activations saved for backward, gradients, AdamW's moments. Takes a step."""
        with SavedBytes(exclude=self.module) as saved:
            self.backward(batch)
        gradients = gradient_bytes(self.module.parameters())
        self.optimizer.step()
        return {
            "activations": saved.peak_bytes,
            "gradients": gradients,
            "optimizer": optimizer_state_bytes(self.optimizer),
        }
