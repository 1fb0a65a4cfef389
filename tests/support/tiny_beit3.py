"""A tiny BEiT-3 and pairs for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.retrieval import RetrievalModule


def beit3(**options: Any) -> RetrievalModule:
    torch.manual_seed(0)
    network = BEiT3Retrieval(32, 24, 2, 2, 48, 16, 40, 16, max_tokens=12, weights="random", init="scratch")
    model = RetrievalModule(network, options.pop("adapter", None), options.pop("tuning", "full"), **options)
    model.log_dict = lambda *arguments, **keywords: None  # type: ignore[method-assign] - outside a trainer
    model._trainer = SimpleNamespace(global_step=5, estimated_stepping_batches=10, accumulate_grad_batches=2)
    return model.eval()  # without dropout


def beit3_pairs(rows: int = 4) -> PairBatch:
    generator = torch.Generator().manual_seed(1)
    index = torch.arange(rows)
    mask = torch.arange(7) < torch.tensor([[7], [5], [4], [3]])[:rows]
    ids = ("",) * rows
    tokens = torch.randint(4, 40, (rows, 7), generator=generator)
    images = ImageBatch(ids, index, torch.randn(rows, 3, 32, 32, generator=generator))
    return PairBatch(images, TextBatch(ids, ids, index, index, tokens, mask))
