"""SigLIP's sigmoid loss (Zhai et al. 2023, arXiv 2303.15343, Algorithm 1): each pair of the global batch is a yes or a no.

Shapes: B pairs on this process, G = world size x B pairs in the global batch, D width of the shared space.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.objectives.contrastive import first_row, gather
from lightning_modules.objectives.objective import ContrastiveObjective


class SigmoidLoss(ContrastiveObjective):
    """-1/G sum_ij log sigmoid(z_ij (t x_i y_j + b)), z_ij = 1 for a pair and -1 for any other. The bias b is learned.

    The factor t is the network's, 1 / temperature; it starts at the paper's 10 where no checkpoint brings it. So is b where the
    network has one (`logit_bias` of a SigLIP): then it trains when the temperature does. Any other network learns b here.

    Args:
        init_bias: Start of b where nothing brings it. A batch has far more negatives than pairs; at -10 they weigh next to
            nothing at the start.
        init_temperature: Start of the network's temperature, unless something brings one or the network is given another (a dual
            encoder's `init_temperature`); null = where the network has it.
        same_image: Another caption of the same image is a "positive" (z = 1), a "negative", or left out ("ignore").
    """

    def __init__(
        self,
        init_bias: float = -10.0,
        same_image: Literal["positive", "negative", "ignore"] = "negative",
        init_temperature: float | None = 0.1,
    ) -> None:
        super().__init__()
        if init_temperature is not None and init_temperature <= 0:
            raise InputError(f"sigmoid loss: init_temperature is {init_temperature}; it must be positive")
        self.init_temperature = init_temperature
        self.init_bias = float(init_bias)
        self.bias: nn.Parameter | None = nn.Parameter(torch.tensor(self.init_bias))
        self.same_image = same_image

    uses_bias = True

    def leave_bias(self) -> None:
        """The network has a bias: it is given to `forward`."""
        self.bias = None

    def forward(
        self,
        images_BD: Tensor,
        texts_BD: Tensor,
        scale: Tensor,
        image_index_B: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss`, and its parts `positive_pairs` and `negative_pairs`; fp32, also under autocast. See `ContrastiveObjective`."""
        if (bias := self.bias if bias is None else bias) is None:
            raise ValueError("the bias is the network's, and it was not given")
        if self.same_image != "negative" and image_index_B is None:
            raise ValueError(f"same_image={self.same_image!r} needs image_index_B")
        with torch.autocast(images_BD.device.type, enabled=False):
            logits_BG = scale.float() * images_BD.float() @ gather(texts_BD.float()).T + bias.float()
            rows_B = torch.arange(len(images_BD), device=images_BD.device)
            own_BG = torch.zeros_like(logits_BG, dtype=torch.bool)
            own_BG[rows_B, first_row(len(images_BD)) + rows_B] = True
            positive_BG, counted_BG = own_BG, torch.ones_like(own_BG)
            if self.same_image != "negative" and image_index_B is not None:
                same_BG = image_index_B[:, None] == gather(image_index_B)[None, :]
                if self.same_image == "positive":
                    positive_BG = same_BG
                else:
                    counted_BG = own_BG | ~same_BG
            losses_BG = -F.logsigmoid(torch.where(positive_BG, logits_BG, -logits_BG)) * counted_BG
            positive_pairs = (losses_BG * positive_BG).sum() / len(images_BD)
            negative_pairs = (losses_BG * ~positive_BG).sum() / len(images_BD)
        return {"loss": positive_pairs + negative_pairs, "positive_pairs": positive_pairs, "negative_pairs": negative_pairs}
