"""A training of a few batches in this process, without files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import tiny_captioner
import tiny_ranking
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.records import CaptionBatch, PairBatch
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.captioning import CaptioningModule
from lightning_modules.optimization import Optimization
from lightning_modules.retrieval import RetrievalModule


class Weights(pl.Callback):
    """What trains, before each batch."""

    def __init__(self) -> None:
        self.before: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.before.append(trained(pl_module))


def trained(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters() if parameter.requires_grad}


def fit(module: pl.LightningModule, batches: Sequence[Any], **options: Any) -> Weights:
    """Train an epoch of these batches."""
    weights = Weights()
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [weights],
    }
    trainer = pl.Trainer(**{**settings, **options})
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type] - a list is read like a data set
    return weights


LEARN = Optimization(lr=0.01, warmup_fraction=0.0)


def retrieval(tiny: Any) -> tuple[Any, list[Any]]:
    batches = [PairBatch(tiny.images(3, seed=seed), tiny.texts(3, seed=seed)) for seed in range(4)]
    return RetrievalModule(tiny.network(), None, "head", optimization=LEARN), batches


def ranking(tiny: Any) -> tuple[Any, list[Any]]:
    module, batch = tiny_ranking.module(optimization=LEARN), tiny_ranking.batch()
    del module.log_dict
    return module, [batch] * 4


def captioning(tiny: Any) -> tuple[Any, list[Any]]:
    rows = [0, 1, 1]
    batch = CaptionBatch(tiny_captioner.images(2), tiny_captioner.texts(rows), torch.tensor(rows))
    module = CaptioningModule(tiny_captioner.captioner(), ITuning(init_std=0.1), optimization=LEARN)
    module.setup = lambda stage: None  # type: ignore[method-assign] - it looks for a tokenizer
    return module, [batch] * 4


METHODS = (retrieval, ranking, captioning)
