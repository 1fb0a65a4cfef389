"""A low-rank change of every attention projection, as a user's own adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.adapters.adapter import Adapter


class LowRank(nn.Module):
    """x A B, added to what a linear layer gives; B starts at zero."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(layer.in_features, rank) / layer.in_features)
        self.up = nn.Parameter(torch.zeros(rank, layer.out_features))
        layer.register_forward_hook(lambda _, inputs, output: output + self(inputs[0]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.down @ self.up


class OwnAdapter(Adapter):
    def __init__(self, rank: int = 2) -> None:
        self.rank = rank

    def inject(self, network: nn.Module) -> None:
        for name, layer in list(network.named_modules()):
            if isinstance(layer, nn.Linear) and "blocks" in name and "qkv" in name:
                network.get_submodule(name).own_adapter = LowRank(layer, self.rank)

    def owns(self, parameter_name: str) -> bool:
        return "own_adapter" in parameter_name
