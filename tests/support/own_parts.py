"""A user's own module and data, which derive from Lightning's alone, and classes with the mistakes that people make."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.adapters.adapter import Adapter
from lightning_modules.networks.towers.timm import TimmImageTower

built: list[str] = []  # what was made, by class


class Module(LightningModule):
    def __init__(self, lr: float = 0.1, plateau: str | None = None) -> None:
        super().__init__()
        built.append("Module")
        self.layer, self.lr, self.plateau = torch.nn.Linear(4, 2), lr, plateau

    def _loss(self, batch: Tensor, name: str) -> Tensor:
        loss = self.layer(batch).square().mean()
        self.log(name, loss)
        return loss

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        built.append("a step")
        return self._loss(batch, "train/loss")

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self._loss(batch, "val/loss")

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self._loss(batch, "test/loss")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        if self.plateau is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": self.plateau}}


class Declares(Module):
    validation_metrics: ClassVar = {"loss": "min", "accuracy": "max"}


class Normed(Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)


class Holds(Module):
    """A tower of ours beside its layer, and a `weights` that means something else."""

    def __init__(self, of_tower: str | None = None, frozen: bool = True) -> None:
        super().__init__()
        self.weights, options = "imagenet", {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 16}
        self.tower = TimmImageTower("vit_tiny_patch16_224", of_tower, options=options).requires_grad_(not frozen)


class Diverges(Module):
    """A finite loss whose gradient is not, or with `loss` a loss that is not."""

    def __init__(self, loss: bool = False) -> None:
        super().__init__()
        self.far = 1.0 if loss else 0.0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + (loss.detach() - loss - self.far).sqrt()


class Hand(Holds):
    """Optimizes by hand, and trains what its loss does not use."""

    def __init__(self) -> None:
        super().__init__("random", frozen=False)
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()


class Unvalidated(Module):
    validation_step = LightningModule.validation_step


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(128.0).view(32, 4) / 128, batch_size=8)

    val_dataloader = test_dataloader = train_dataloader


class Unannotated(Callback):
    def __init__(self, patience=4) -> None:
        pass


class Needs(Callback):
    def __init__(self, patience) -> None:
        self.patience = patience


class Half(Adapter):
    def __init__(self, rank=2) -> None:
        self.rank = rank

    def inject(self, network) -> None:
        pass


class Whole(Half):
    def owns(self, parameter_name) -> bool:
        return False


def make(rank=2):
    return Whole(rank)


class Raises(Callback):
    def __init__(self) -> None:
        raise RuntimeError("no licence\nfound")
