"""A tiny UNITER and a ranking batch of all lengths."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from datamodules.records import Candidates, ImageBatch, RankingBatch, Regions, TextBatch
from lightning_modules.networks.uniter import UniterRetrieval
from lightning_modules.ranking import RankingModule

IMAGES, TEXTS, CANDIDATES, HARD = 6, 8, 4, 2


WEIGHT = 0.7


def module(**options: Any) -> RankingModule:
    torch.manual_seed(3)
    network = UniterRetrieval(24, 2, 2, 48, 40, 16, 5, dropout=options.pop("dropout", 0.0), tokenizer=None)
    for parameter in network.parameters():  # attention that tells items apart
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model = RankingModule(network, hard_negatives=HARD, **options)
    model.log_dict = lambda *arguments, **keywords: None  # type: ignore[method-assign] - outside a trainer
    model._trainer = SimpleNamespace(global_step=5, estimated_stepping_batches=10, accumulate_grad_batches=3)
    return model.train()


def batch() -> RankingBatch:
    """Two positives on the hard-text side, one on the hard-image side; all of different lengths."""
    draw = torch.Generator().manual_seed(1)
    mask_R = torch.arange(7) < torch.tensor([3, 7, 5, 6, 2, 4])[:, None]
    mask_T = torch.arange(9) < torch.tensor([5, 9, 6, 3, 7, 8, 4, 6])[:, None]
    regions = Regions(
        torch.randn(IMAGES, 7, 5, generator=draw), torch.rand(IMAGES, 7, 7, generator=draw), torch.ones(IMAGES, 7), mask_R
    )
    images = ImageBatch(("",) * IMAGES, torch.arange(IMAGES), regions=regions)
    tokens = torch.randint(5, 40, (TEXTS, 9), generator=draw)
    ids = ("",) * TEXTS
    texts = TextBatch(ids, ids, torch.arange(TEXTS), torch.arange(TEXTS) % IMAGES, tokens, mask_T)
    hard_texts = Candidates(torch.tensor([[0] * 5, [1] * 5]), torch.tensor([[0, 1, 2, 3, 4], [7, 2, 3, 4, 5]]))
    hard_images = Candidates(torch.tensor([[2, 0, 1, 3, 4]]), torch.tensor([[2] * 5]))
    return RankingBatch(images, texts, hard_texts, hard_images)
