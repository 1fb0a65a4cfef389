"""Tiny pair scorers of Hugging Face, the library's own model with the same weights, and batches of all lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datamodules.records import ImageBatch, Regions, TextBatch
from lightning_modules.networks.blip import BLIP
from lightning_modules.networks.bridgetower import BridgeTower
from lightning_modules.networks.hugging_face_scorer import HuggingFaceScorer
from lightning_modules.networks.visual_bert import VisualBERT

IMAGES, TEXTS, SIZE, WORDS, FEATURES = 3, 4, 16, 40, 5
MASK_T = torch.arange(7) < torch.tensor([5, 7, 3, 6])[:, None]
MASK_R = torch.arange(6) < torch.tensor([4, 6, 2])[:, None]
_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": WORDS}
_DROP = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
VISUAL_BERT = {**_BERT, **_DROP, "visual_embedding_dim": FEATURES, "max_position_embeddings": 12, "pad_token_id": 0}
BLIP_SIZES: dict[str, Any] = {
    "text_config": {**_BERT, **_DROP, "encoder_hidden_size": 24, "max_position_embeddings": 12, "pad_token_id": 0},
    "vision_config": {
        "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": SIZE,
        "patch_size": 8,
    },
    "image_text_hidden_size": 8,
}  # fmt: skip
# its ViT has a head for each 64 of its width
BRIDGETOWER: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "text_config": {**_BERT, **_DROP, "num_hidden_layers": 3, "max_position_embeddings": 14, "pad_token_id": 1},
    "vision_config": {"hidden_size": 64, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 8},
}  # fmt: skip
NETWORKS: dict[str, tuple[type[HuggingFaceScorer], dict[str, Any], str]] = {
    "visual_bert": (VisualBERT, VISUAL_BERT, "VisualBertForPreTraining"),
    "blip": (BLIP, BLIP_SIZES, "BlipForImageTextRetrieval"),
    "bridgetower": (BridgeTower, BRIDGETOWER, "BridgeTowerForImageAndTextRetrieval"),
}


def network(name: str, **options: Any) -> Any:
    """In eval mode, its weights large enough to tell pairs apart."""
    kind, sizes, _ = NETWORKS[name]
    torch.manual_seed(2)
    made: Any = kind(**{"config": sizes, "tokenizer": "none", "max_tokens": 10, **options})
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def library(name: str, ours: Any, attention: bool = False) -> Any:
    """The library's model with the same weights, its heads of other tasks random."""
    import transformers

    _, _, kind = NETWORKS[name]
    settings = ours.model.config
    settings._attn_implementation = "eager" if attention else settings._attn_implementation
    theirs = getattr(transformers, kind)(settings)
    missing, unexpected = theirs.load_state_dict(ours.model.state_dict(), strict=False)
    assert all(key.startswith(ours.without) for key in missing)
    assert not unexpected
    return theirs.eval()


def images(name: str) -> ImageBatch:
    draw = torch.Generator().manual_seed(1)
    index, ids = torch.arange(IMAGES), tuple(map(str, range(IMAGES)))
    if name != "visual_bert":
        return ImageBatch(ids, index, torch.randn(IMAGES, 3, SIZE, SIZE, generator=draw))
    features, boxes = torch.randn(IMAGES, 6, FEATURES, generator=draw), torch.rand(IMAGES, 6, 7, generator=draw)
    return ImageBatch(ids, index, regions=Regions(features, boxes, torch.ones(IMAGES, 6), MASK_R))


def texts(padding: int = 0) -> TextBatch:
    draw = torch.Generator().manual_seed(2)
    tokens_BT = torch.randint(3, WORDS - 1, (TEXTS, 7), generator=draw).masked_fill(~MASK_T, padding)
    ids = tuple(map(str, range(TEXTS)))
    return TextBatch(ids, ids, torch.arange(TEXTS), torch.arange(TEXTS) % IMAGES, tokens_BT, MASK_T)


def every_pair() -> tuple[Tensor, Tensor]:
    """Rows of the images and texts of all pairs, mixed."""
    image_P, text_P = torch.cartesian_prod(torch.arange(IMAGES), torch.arange(TEXTS)).unbind(1)
    mixed = torch.randperm(len(image_P), generator=torch.Generator().manual_seed(5))
    return image_P[mixed], text_P[mixed]


def scores(ours: Any, name: str) -> Tensor:
    """Of every pair, in the order of `every_pair`."""
    return ours.score_pairs(ours.embed_images(images(name)), ours.embed_texts(texts()), *every_pair())
