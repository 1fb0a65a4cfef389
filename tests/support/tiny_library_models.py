"""Configurations of Hugging Face's dual encoders, tiny: two layers of width 16 a tower, images of 16 px, 40 tokens."""

from __future__ import annotations

from typing import Any

import torch

from lightning_modules.networks.pretrained_dual_encoder import HFDualEncoder

_T = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_IMAGE = {**_T, "image_size": 16, "patch_size": 8}
_TEXT = {**_T, "vocab_size": 40, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_BERT = {**_TEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_CNN = {
    "image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 8, "in_channels": [8, 8],
    "out_channels": [8, 8], "kernel_sizes": [3, 3], "strides": [1, 2], "num_block_repeats": [1, 1], "expand_ratios": [1, 2],
    "depthwise_padding": [], "drop_connect_rate": 0.0,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"projection_dim": 8, "text_config": _TEXT, "vision_config": _IMAGE},
    "siglip": {"text_config": {**_TEXT, "projection_size": 16}, "vision_config": _IMAGE},
    "siglip2": {"text_config": {**_TEXT, "projection_size": 16}, "vision_config": {**_T, "patch_size": 8, "num_patches": 4}},
    "metaclip_2": {"projection_dim": 8, "text_config": _TEXT, "vision_config": _IMAGE},
    "align": {"projection_dim": 8, "text_config": _BERT, "vision_config": _CNN, "temperature_init_value": 0.05},
    "altclip": {
        "projection_dim": 8, "vision_config": _IMAGE,
        "text_config": {**_BERT, "project_dim": 12, "pad_token_id": 0, "max_position_embeddings": 17},
    },
    "chinese_clip": {"projection_dim": 8, "text_config": _BERT, "vision_config": _IMAGE},
    "blip": {
        "projection_dim": 8, "vision_config": _IMAGE,
        "text_config": {**_BERT, "encoder_hidden_size": 16, "projection_dim": 8, "sep_token_id": 2},
    },
    "aimv2": {
        "projection_dim": 8, "vision_config": _IMAGE,
        "text_config": {**_T, "vocab_size": 40, "max_position_embeddings": 16, "eos_token_id": 2},
    },
}  # fmt: skip


def dual_encoder(kind: str, seed: int = 0, **options: Any) -> HFDualEncoder:
    """In eval mode, with weights large enough that all of it is seen."""
    torch.manual_seed(seed)
    if kind == "siglip2":
        options = {"image_size": 16, **options}
    config = {"model_type": kind, **CONFIGS[kind]}
    network = HFDualEncoder(**{"config": config, "weights": "random", "tokenizer": "none", **options})
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()
