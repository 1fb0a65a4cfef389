"""Ranking of one positive pair against its mined negatives (UNITER `model/itm.py`; IAIS Eq. 14).

Shapes: P positives, N negatives of each.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.errors import InputError
from lightning_modules.objectives.objective import MatchingObjective


class MarginRanking(MatchingObjective):
    """The positive's similarity, sigmoid(score), should exceed each negative's by a margin.

    Args:
        margin: alpha, on similarities in (0, 1).
        hinge: Where the hinge is. "each" = the mean over negatives of [alpha + S_neg - S_pos]_+, what the code computes and what
            gave the printed results; "sum" = [sum_j S_neg_j - S_pos + alpha]_+ of a positive, Eq. 14 as printed.
    """

    def __init__(self, margin: float = 0.2, hinge: Literal["each", "sum"] = "each") -> None:
        super().__init__()
        if not 0 <= margin <= 1 or hinge not in ("each", "sum"):
            raise InputError(f"margin ranking: margin {margin} must be in [0, 1] and hinge {hinge!r} one of each, sum")
        self.margin = margin
        self.hinge = hinge

    def forward(self, scores_PX: Tensor) -> Tensor:
        """Mean over positives, fp32. `scores_PX` [P, 1 + N]: raw ranking scores, column 0 the positive pair."""
        similarity_PX = torch.sigmoid(scores_PX.float())
        positive_P1, negative_PN = similarity_PX[:, :1], similarity_PX[:, 1:]
        if self.hinge == "each":
            return (self.margin + negative_PN - positive_P1).clamp_min(0).mean()
        return (negative_PN.sum(1) - positive_P1[:, 0] + self.margin).clamp_min(0).mean()


class Matching(MatchingObjective):
    """Does a caption match an image? Binary cross-entropy on raw scores, positives and negatives weighing the same: the matching
    task of UNITER's pre-training. A margin hardly moves a network that was not pre-trained; this is how a small UNITER gets
    started where no checkpoint fits it, and sigmoid(score) then tells pairs apart, which the margin can go on with."""

    def forward(self, scores_PX: Tensor) -> Tensor:
        """Mean over positives, fp32. `scores_PX` [P, 1 + N]: raw ranking scores, column 0 the positive pair."""
        scores_PX = scores_PX.float()
        positive_P, negative_PN = F.logsigmoid(scores_PX[:, 0]), F.logsigmoid(-scores_PX[:, 1:])
        return -(positive_P.mean() + negative_PN.mean()) / 2


def require_candidates(hard_negatives: int, candidates: int) -> None:
    """So many candidates that the hardest can be chosen from them.

    Raises:
        InputError: Fewer of them than are to be kept.
    """
    if candidates < hard_negatives:
        raise InputError(
            f"mining: {hard_negatives} hard negatives of {candidates} candidates; lower model.hard_negatives or raise "
            "data.ranking.candidates"
        )


def hardest(scores_PX: Tensor, count: int) -> Tensor:
    """Columns of the positive (0) and of its `count` best-scored negatives, [P, 1 + count], positive first.

    Ties go to the lower column, so that every device and every number of processes mines the same.

    Raises:
        InputError: Fewer negatives than asked for.
    """
    require_candidates(count, scores_PX.shape[1] - 1)
    order_PN = torch.sort(scores_PX[:, 1:], dim=1, descending=True, stable=True).indices[:, :count] + 1
    return torch.cat([order_PN.new_zeros(len(order_PN), 1), order_PN], dim=1)
