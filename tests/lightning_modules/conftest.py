"""Tiny networks with random weights: one of every kind of block, built in milliseconds."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported

import pytest
import torch

from datamodules.records import ImageBatch, TextBatch
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.networks.towers.base import ImageTower, TextTower
from lightning_modules.networks.towers.hugging_face import HFImageTower, HFTextTower
from lightning_modules.networks.towers.timm import TimmImageTower

WIDTH, FFN, DEPTH, SIZE, TOKENS, VOCAB = 16, 64, 2, 16, 6, 40
_SIZES = {"hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": DEPTH, "num_attention_heads": 2}


class Tiny:
    """Builders. Every network has width 16, FFN 64, 2 blocks a tower unless told otherwise, 16 px images, 6 tokens of 40."""

    width, ffn, depth, size = WIDTH, FFN, DEPTH, SIZE
    image_kinds = ("timm_vit", "vit", "clip", "dinov2")
    text_kinds = ("bert", "roberta", "clip")

    def image_tower(self, kind: str = "timm_vit", pooling: Any = None, drop: float = 0.0, depth: int = DEPTH) -> ImageTower:
        if kind == "timm_vit":
            options = {
                "embed_dim": WIDTH,
                "depth": depth,
                "num_heads": 2,
                "patch_size": 8,
                "img_size": SIZE,
                "proj_drop_rate": drop,
            }
            return TimmImageTower("vit_tiny_patch16_224", "random", pooling=pooling or "default", options=options)
        if kind == "cnn":
            return TimmImageTower("test_efficientnet", "random", image_size=32, pooling=pooling or "default")
        sizes = {**_SIZES, "num_hidden_layers": depth, "image_size": SIZE, "patch_size": 8}
        sizes["model_type"] = {"clip": "clip_vision_model"}.get(kind, kind)
        if kind == "dinov2":
            sizes["mlp_ratio"] = sizes.pop("intermediate_size") // WIDTH
        if kind == "vit":
            sizes["hidden_dropout_prob"] = drop
        return HFImageTower(config=sizes, weights="random", pooling=pooling or "cls")

    def text_tower(self, kind: str = "bert", pooling: Any = None, drop: float = 0.0, depth: int = DEPTH) -> TextTower:
        sizes: dict[str, Any] = {**_SIZES, "num_hidden_layers": depth, "vocab_size": VOCAB, "max_position_embeddings": 16}
        sizes["model_type"] = {"clip": "clip_text_model"}.get(kind, kind)
        if kind != "clip":
            sizes |= {"hidden_dropout_prob": drop, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
        return HFTextTower(config=sizes, weights="random", tokenizer="none", max_tokens=8, pooling=pooling or "mean")

    def network(
        self, image: str = "timm_vit", text: str = "bert", seed: int = 0, drop: float = 0.0, depth: int = DEPTH, **options: Any
    ) -> DualEncoder:
        torch.manual_seed(seed)
        options = {"weights": "random", **options}
        towers = self.image_tower(image, drop=drop, depth=depth), self.text_tower(text, drop=drop, depth=depth)
        network = DualEncoder(*towers, embed_dim=8, **options)
        # library inits are near zero: at width 16 nothing but the residual stream would be seen
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        return network.eval()

    def images(self, rows: int = 4, size: int = SIZE, seed: int = 1) -> ImageBatch:
        pixels = torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))
        return ImageBatch(tuple(map(str, range(rows))), torch.arange(rows), pixels)

    def texts(self, rows: int = 4, seed: int = 1) -> TextBatch:
        tokens = torch.randint(3, VOCAB, (rows, TOKENS), generator=torch.Generator().manual_seed(seed))
        mask = torch.arange(TOKENS)[None] < torch.tensor([TOKENS - (i % 3) for i in range(rows)])[:, None]
        ids = tuple(map(str, range(rows)))
        return TextBatch(ids, ids, torch.arange(rows), torch.arange(rows), tokens.where(mask, 0), mask)

    def randomise(self, network: torch.nn.Module, part: str, seed: int = 5) -> None:
        """Random values in every parameter whose name contains `part`: an adapter that does something."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if part in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    torch.set_num_threads(1)
    return Tiny()
