"""Batch norms of several processes: synchronized on GPUs, where torch can do it; refused where each would see its share alone."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins import LayerSync
from torch import nn

from datamodules.errors import AgreedError, some
from lightning_modules.networks.modes import training_statistics


class SyncBatchNorms(LayerSync):
    """`trainer.sync_batchnorm`, as timm does it: torch's conversion, which Lightning calls, loses the activation that batch norms
    of timm have inside."""

    def apply(self, model: nn.Module) -> nn.Module:
        from timm.layers import convert_sync_batchnorm

        converted: nn.Module = convert_sync_batchnorm(model)
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Nothing: outside of training a synchronized one computes what the other does."""
        return model


def require_synchronized(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """See that a network's statistics are of the whole batch, on any number of devices.

    Raises:
        AgreedError: Batch norms train, each process would see its share of the batch alone, and nobody synchronizes them; or they
            are to be synchronized on processors.
    """
    strategy: Any = trainer.strategy
    synchronizes, device = getattr(strategy, "_layer_sync", None) is not None, strategy.root_device.type
    if synchronizes and device == "cpu":
        raise AgreedError(
            "trainer.sync_batchnorm is true, but torch synchronizes batch norms on GPUs alone: leave it out, and train in one "
            "process (trainer.devices=1) if the network has batch norms that train."
        )
    names = [] if trainer.world_size == 1 or synchronizes else training_statistics(module)
    if names:
        remedy = "set trainer.sync_batchnorm=true" if device == "cuda" else "train in one process (trainer.devices=1)"
        raise AgreedError(
            f"{len(names)} {'layer' if len(names) == 1 else 'layers'} of the network ({some(names)}) would take statistics of "
            f"each process's share of the batch, so {trainer.world_size} processes would not train what one does: {remedy}, or "
            "freeze what they belong to (model.tuning, model.frozen_tower)."
        )
