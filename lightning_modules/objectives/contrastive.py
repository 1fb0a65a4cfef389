"""Symmetric image-text contrastive loss over the global batch (ITC; BEiT-3's `ClipLoss`, open_clip style).

Shapes: B pairs on this process, G = world size x B pairs in the global batch, D width of the shared space.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules import collectives
from lightning_modules.objectives.objective import ContrastiveObjective


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order [B, ...] -> [G, ...]; a row's gradient is the sum of what all processes did with it.

    Every process must bring the same number of rows. Without a process group, the rows themselves.
    """
    return collectives.gathered_with_gradient(rows)


def first_row(rows: int) -> int:
    """Where this process's rows begin among those of all."""
    return collectives.rank() * rows


class ContrastiveLoss(ContrastiveObjective):
    """Each image must pick its caption among all captions of the global batch, and each caption its image.

    Averaged over processes (as DDP averages gradients), loss and gradients equal those of one process with the global batch.

    Args:
        same_image: Captions of the same image that meet in one batch: "negative" counts them as wrong (BEiT-3, MWA),
            "ignore" takes them out of the denominator.
    """

    def __init__(self, same_image: Literal["negative", "ignore"] = "negative") -> None:
        super().__init__()
        self.same_image = same_image

    def forward(
        self, images_BD: Tensor, texts_BD: Tensor, scale: Tensor, image_index_B: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Named terms: `loss` = mean of `image_to_text` and `text_to_image`. All in fp32, also under autocast.

        Args:
            images_BD: Unit vectors of this process's images.
            texts_BD: Unit vectors of their captions, row by row.
            scale: Factor on the cosines, i.e. `logit_scale.exp()`.
            image_index_B: int64 row of each pair's image in its split; needed for same_image "ignore".
        """
        if self.same_image == "ignore" and image_index_B is None:
            raise ValueError("same_image='ignore' needs image_index_B")
        with torch.autocast(images_BD.device.type, enabled=False):
            images_BD, texts_BD, scale = images_BD.float(), texts_BD.float(), scale.float()
            images_GD, texts_GD = gather(images_BD), gather(texts_BD)
            image_logits_BG = scale * images_BD @ texts_GD.T
            text_logits_BG = scale * texts_BD @ images_GD.T
            own = first_row(len(images_BD))
            labels_B = torch.arange(own, own + len(images_BD), device=images_BD.device)
            if self.same_image == "ignore" and image_index_B is not None:
                same_BG = image_index_B[:, None] == gather(image_index_B)[None, :]
                same_BG[torch.arange(len(labels_B), device=labels_B.device), labels_B] = False
                image_logits_BG = image_logits_BG.masked_fill(same_BG, float("-inf"))
                text_logits_BG = text_logits_BG.masked_fill(same_BG, float("-inf"))
            image_to_text = F.cross_entropy(image_logits_BG, labels_B)
            text_to_image = F.cross_entropy(text_logits_BG, labels_B)
        return {
            "loss": (image_to_text + text_to_image) / 2,
            "image_to_text": image_to_text,
            "text_to_image": text_to_image,
        }
