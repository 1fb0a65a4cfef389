"""A tiny UNITER with the heads of its pre-training, and a batch of each task, of all lengths."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from datamodules.records import ImageBatch, MaskedBatch, Regions, TextBatch
from lightning_modules.networks.uniter_pretraining import UniterPretraining
from lightning_modules.objectives.pretraining import (
    HiddenClasses,
    HiddenFeatures,
    HiddenWords,
    PairsMatched,
    PretrainingObjective,
)
from lightning_modules.pretraining import PretrainingModule

PAIRS, CLASSES, WIDTH, VOCABULARY = 4, 6, 5, 40
SIZES: dict[str, Any] = {
    "width": 24, "num_layers": 2, "num_heads": 2, "ffn_width": 48, "vocab_size": VOCABULARY, "text_positions": 16,
    "feature_width": WIDTH, "tokenizer": None,
}  # fmt: skip


def network(**options: Any) -> UniterPretraining:
    torch.manual_seed(3)
    found = UniterPretraining(**{**SIZES, "region_classes": CLASSES, "dropout": 0.0, **options})
    for parameter in found.parameters():  # attention that tells items apart
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return found


def objectives() -> dict[str, PretrainingObjective]:
    return {"itm": PairsMatched(), "mlm": HiddenWords(), "mrfr": HiddenFeatures(), "mrckl": HiddenClasses()}


def module(**options: Any) -> PretrainingModule:
    model = PretrainingModule(
        options.pop("network", None) or network(), options.pop("objectives", None) or objectives(), **options
    )
    model.log_dict = lambda *arguments, **keywords: None  # type: ignore[method-assign] - outside a trainer
    model._trainer = SimpleNamespace(global_step=5, estimated_stepping_batches=10, accumulate_grad_batches=1)
    return model.train()


def batch(task: str) -> MaskedBatch:
    draw = torch.Generator().manual_seed(len(task))
    mask_BR = torch.arange(7) < torch.tensor([3, 7, 5, 6])[:, None]
    mask_BT = torch.arange(9) < torch.tensor([5, 9, 6, 3])[:, None]
    classes_BRC = torch.randn(PAIRS, 7, CLASSES, generator=draw).softmax(-1)
    regions = Regions(
        torch.randn(PAIRS, 7, WIDTH, generator=draw) * mask_BR[:, :, None], torch.rand(PAIRS, 7, 7, generator=draw),
        torch.ones(PAIRS, 7), mask_BR, classes_BRC,
    )  # fmt: skip
    tokens = torch.randint(5, VOCABULARY, (PAIRS, 9), generator=draw) * mask_BT
    names, index = ("",) * PAIRS, torch.arange(PAIRS)
    whole = MaskedBatch(ImageBatch(names, index, regions=regions), TextBatch(names, names, index, index, tokens, mask_BT), task)
    if task == "itm":
        return whole.replaced(matched_B=torch.tensor([True, False, False, True]))
    if task == "mlm":
        labels = torch.full_like(tokens, -1)
        labels[0, 2], labels[1, 1], labels[1, 7], labels[3, 1] = 8, 9, 30, 12
        return whole.replaced(labels_BT=labels)
    hidden = torch.zeros_like(mask_BR)
    hidden[0, 1] = hidden[1, 0] = hidden[1, 6] = hidden[3, 5] = hidden[2, 4] = True
    return whole.replaced(hidden_BR=hidden)
