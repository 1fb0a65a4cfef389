"""How even attention within a modality is: what a relation distance alone does not show.

    p_i       attention of word i to the words of its caption (of region i to the regions), head-averaged: what IAIS trains
    H(p_i)    its entropy
    evenness  exp(H(p_i)) / n, averaged over the n words, then over pairs

1 means that every word has the same attention, 1/n that all of it is on one word. Even attention is a solution of both IAIS
losses: two even maps have no distance, whatever there is to see (docs/iais.md). No paper prints this number.

Legend: B pairs, I items (words or regions).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.metrics.gather import gather_values
from lightning_modules.networks.attention import Attended, Items
from lightning_modules.objectives.relation_alignment import Scores

EVEN = 0.95  # where both sides are as even as this, the distance between them says nothing of what they see


class RelationEvenness(Metric):
    """Evenness among words and among regions over all pairs that were added, exact on any number of devices.

    A pair with a single word has nothing to choose from and does not count for words; likewise for regions.
    """

    is_differentiable = False
    full_state_update = False

    words: Tensor
    regions: Tensor
    pairs: Tensor

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=gather_values)
        for name in ("words", "regions"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, attended: Attended, words: Items, regions: Items) -> None:
        """Adds matched pairs; see `RelationDistance.update`."""
        with torch.no_grad(), torch.autocast(attended.queries_BHQD.device.type, enabled=False):
            scores = Scores(attended, words, regions)
            for place, (name, side) in enumerate((("words", "L"), ("regions", "V"))):
                items_BI = scores.masks[side]
                counted_B = (items_BI.sum(1) > 1) & words.mask_BN.any(1) & regions.mask_BN.any(1)
                evenness_B = evenness(scores.map(side, side), items_BI)
                setattr(self, name, getattr(self, name) + torch.where(counted_B, evenness_B, 0.0).sum())
                self.pairs[place] += counted_B.sum()

    def compute(self) -> dict[str, Tensor]:
        """`evenness_words`, `evenness_regions`: averages over pairs, NaN without any."""
        return {
            "evenness_words": (self.words / self.pairs[0]).float(),
            "evenness_regions": (self.regions / self.pairs[1]).float(),
        }


def evenness(map_BII: Tensor, items_BI: Tensor) -> Tensor:
    """exp of the entropy over how many items there are, mean over the rows of a map [B]; 0 where there is no item.

    Args:
        map_BII: Attention among items, rows that sum to 1; 0 where either is no item.
        items_BI: bool, True = an item.
    """
    count_B = items_BI.sum(1).clamp_min(1)
    spread_BI = torch.special.entr(map_BII.double()).sum(-1).exp().masked_fill(~items_BI, 0.0)
    return spread_BI.sum(1) / count_B**2
