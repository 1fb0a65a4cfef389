"""Captioners of a few thousand parameters around every family of language models."""

from __future__ import annotations

from typing import Any

import torch

from datamodules.records import ImageBatch, TextBatch
from lightning_modules.networks.captioner import Captioner
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.towers.hugging_face import HFImageTower

END, VOCABULARY, LAYERS = 60, 61, 4
_SIZES = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "max_position_embeddings": 48}
_LLAMA = {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 1}
_OPT = {**_SIZES, "model_type": "opt", "ffn_dim": 24}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": LAYERS, "n_head": 2, "n_positions": 48},
    "pythia": {**_SIZES, "model_type": "gpt_neox", "intermediate_size": 24},
    "gpt_neox, sequential": {**_SIZES, "model_type": "gpt_neox", "intermediate_size": 24, "use_parallel_residual": False},
    "llama": {**_LLAMA, "model_type": "llama"},
    "mistral": {**_LLAMA, "model_type": "mistral"},
    "qwen2": {**_LLAMA, "model_type": "qwen2"},
    "qwen3": {**_LLAMA, "model_type": "qwen3", "head_dim": 8},
    "opt": {**_OPT, "word_embed_proj_dim": 16},
    "opt 350m": {**_OPT, "word_embed_proj_dim": 8, "do_layer_norm_before": False},
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 8,
}


def captioner(family: str = "gpt2", **options: Any) -> Captioner:
    """Random weights that are large enough for logits to differ, in eval mode, everything frozen."""
    torch.manual_seed(0)
    config = {**FAMILIES[family], "vocab_size": VOCABULARY, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    language = LanguageModel(config=config, weights="random", max_tokens=12)
    network = Captioner(HFImageTower(config=CLIP, weights="random"), language, **options)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(False)


def images(number: int) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(number, 3, 16, 16, generator=generator)
    return ImageBatch(tuple(map(str, range(number))), torch.arange(number), pixels)


def texts(rows: list[int], longest: int = 7) -> TextBatch:
    """A caption for each of these image rows: random tokens, an end token, padding."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, END, (len(rows), longest), generator=generator)
    lengths = torch.randint(2, longest + 1, (len(rows),), generator=generator)
    lengths[0] = longest
    mask = torch.arange(longest) < lengths[:, None]
    tokens[torch.arange(len(rows)), lengths - 1] = END
    tokens[~mask] = END
    return TextBatch(
        tuple(map(str, range(len(rows)))), ("",) * len(rows), torch.arange(len(rows)), torch.tensor(rows), tokens, mask
    )
