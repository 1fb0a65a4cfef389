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
    """Of image and text vectors of one batch, for two encoders. B pairs on this process. A class may set these attributes.

    Attributes:
        uses_scale: Whether the loss looks at `scale`. Where it does not, the network's temperature does not train.
        uses_bias: Whether `forward` takes `bias`, which is added to scaled cosines. Where the network has one (`logit_bias`),
            `leave_bias` is called at the start and that one is given; an objective that does not use it keeps it from training.
        init_temperature: Where the network's temperature starts, unless something brings one or the network was given another;
            None = where the network has it.
    """

    uses_scale: bool = True
    uses_bias: bool = False
    init_temperature: float | None = None

    init_bias: float | None = None
    """Where a network's bias starts that nothing brings, if `uses_bias`."""

    def leave_bias(self) -> None:
        """The network has a bias: have none here. Called before anything trains, if `uses_bias`."""

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
