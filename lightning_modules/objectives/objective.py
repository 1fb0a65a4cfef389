"""What an objective owes. A new one derives from one of these two and edits nothing else.

An objective may have parameters (SigLIP's bias): they train beside whatever `tuning` says trains, but for `frozen`; they are in
an optimizer group, in checkpoints, in exports, and DDP averages their gradients. Every process computes the loss of its own
rows, such that the mean over processes is the loss of the global batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Objective(nn.Module, ABC):
    """Any objective."""


class ContrastiveObjective(Objective):
    """Of image and text vectors of one batch, for two encoders. B pairs on this process. A class may set both attributes.

    Attributes:
        uses_scale: Whether the loss looks at `scale`. Where it does not, the network's temperature does not train.
        init_temperature: Where the network's temperature starts, unless something brings one or the network was given another;
            None = where the network has it.
    """

    uses_scale: bool = True
    init_temperature: float | None = None

    @abstractmethod
    def forward(self, images_BD: Tensor, texts_BD: Tensor, scale: Tensor, image_index_B: Tensor) -> dict[str, Tensor]:
        """Named scalars, `loss` among them; the others are logged beside it.

        Args:
            images_BD: Unit vectors of this process's images.
            texts_BD: Unit vectors of their captions, row by row.
            scale: Factor on the cosines: the network's `logit_scale.exp()`.
            image_index_B: int64 row of each pair's image in its split: equal where captions are of the same image.
        """


class MatchingObjective(Objective):
    """Of scores of positive pairs and their negatives, for a pair scorer. P positives, N negatives of each."""

    @abstractmethod
    def forward(self, scores_PX: Tensor) -> Tensor:
        """Mean over positives. `scores_PX` [P, 1 + N]: raw scores, column 0 the positive pair."""
