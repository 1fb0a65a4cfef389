"""A tiny ViLT with attention that tells tokens apart, and pairs of all sizes."""

from __future__ import annotations

from typing import Any

import torch

from datamodules.records import ImageBatch, TextBatch
from lightning_modules.networks.vilt import ViLT

CONFIG: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 40,
    "max_position_embeddings": 12, "image_size": 16, "patch_size": 4,
}  # fmt: skip
SIZES = ((16, 24), (24, 16), (16, 16), (12, 24), (8, 8))  # rows x columns of patches: 4 x 6, 6 x 4, 4 x 4, 3 x 6, 2 x 2
WORDS = (10, 6, 4, 8, 2)


def vilt(**options: Any) -> ViLT:
    torch.manual_seed(3)
    network = ViLT(config=CONFIG | options.pop("config", {}), **({"tokenizer": "unused", "weights": "random"} | options))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def images() -> ImageBatch:
    """Images of several sizes in one batch."""
    draw = torch.Generator().manual_seed(1)
    pixels_B3HW = torch.zeros(len(SIZES), 3, 24, 24)
    for row, (height, width) in enumerate(SIZES):
        pixels_B3HW[row, :, :height, :width] = torch.randn(3, height, width, generator=draw)
    return ImageBatch(("",) * len(SIZES), torch.arange(len(SIZES)), pixels_B3HW, sizes_B2=torch.tensor(SIZES))


def texts() -> TextBatch:
    draw = torch.Generator().manual_seed(2)
    mask_BT = torch.arange(max(WORDS)) < torch.tensor(WORDS)[:, None]
    tokens_BT = torch.randint(1, 40, mask_BT.shape, generator=draw) * mask_BT
    index, ids = torch.arange(len(WORDS)), ("",) * len(WORDS)
    return TextBatch(ids, ids, index, index, tokens_BT, mask_BT)
