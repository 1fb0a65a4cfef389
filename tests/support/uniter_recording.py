"""The tensors recorded from the official UNITER and IAIS code, as inputs and outputs of ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_modules.checkpoints.uniter import official_names
from lightning_modules.networks.packing import Packed, pack
from lightning_modules.networks.uniter import UniterRetrieval

FOLDER = Path(__file__).parents[1] / "recordings" / "iais"


@dataclass
class Recorded:
    network: UniterRetrieval
    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    @property
    def tokens(self) -> Tensor:
        return self.tensors["inputs/input_ids"]

    @property
    def features(self) -> Tensor:
        return self.tensors["inputs/img_feat"]

    @property
    def boxes(self) -> Tensor:
        return self.tensors["inputs/img_pos_feat"]

    @property
    def words(self) -> Tensor:
        return self.tensors["inputs/txt_lens"]

    @property
    def regions(self) -> Tensor:
        return self.tensors["inputs/num_bbs"]

    @property
    def text_mask(self) -> Tensor:
        return torch.arange(self.tokens.shape[1])[None] < self.words[:, None]

    @property
    def region_mask(self) -> Tensor:
        return torch.arange(self.features.shape[1])[None] < self.regions[:, None]

    def packed(self) -> Packed:
        encoder = self.network.encoder
        texts = encoder.embed_texts(self.tokens, self.text_mask)
        return pack(texts, encoder.embed_regions(self.features, self.boxes, self.region_mask))


def recorded() -> Recorded:
    meta = json.loads((FOLDER / "recording.json").read_text())
    tensors = load_file(FOLDER / "recording.safetensors")
    config = meta["config"]
    network = UniterRetrieval(
        width=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        ffn_width=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        text_positions=config["max_position_embeddings"],
        feature_width=meta["img_dim"],
    )
    weights = {name.removeprefix("weights/"): tensor for name, tensor in tensors.items() if name.startswith("weights/")}
    state = {name: torch.cat([weights.pop(each) for each in official_names(name)]) for name in network.state_dict()}
    assert not weights, "recorded weights that nothing of ours took"
    network.load_state_dict(state)
    return Recorded(network.eval(), meta, tensors)
