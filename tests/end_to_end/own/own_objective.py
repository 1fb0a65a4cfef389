"""A contrastive loss with a parameter: a learned margin that wrong pairs get as a handicap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.objectives.contrastive import first_row, gather
from lightning_modules.objectives.objective import ContrastiveObjective


class OwnObjective(ContrastiveObjective):
    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.tensor(margin))

    def forward(
        self, images_BD: Tensor, texts_BD: Tensor, scale: Tensor, image_index_B: Tensor | None = None
    ) -> dict[str, Tensor]:
        labels_B = first_row(len(images_BD)) + torch.arange(len(images_BD), device=images_BD.device)
        logits_BG = scale * images_BD @ gather(texts_BD).T + self.margin
        own_BG = F.one_hot(labels_B, logits_BG.shape[1])
        loss = F.cross_entropy(logits_BG - self.margin * own_BG, labels_B)
        return {"loss": loss, "margin": self.margin.detach()}
