"""How far the words of a caption are from the regions of an image, as the cost of moving one onto the other (UNITER, "word-region
alignment"; released code: ChenRocks/UNITER `model/ot.py`).

The plan P that moves them is found by IPOT (Xie et al. 2018, proximal point iterations, one inner step each):

    C = 1 - cos(words, regions);  G = exp(-C / beta);  P = 1, a = 1 / T
    repeat:  Q = G * P;  b = 1 / (R * Q^T a);  a = 1 / (T * Q b);  P = diag(a) Q diag(b)

The distance is the sum of C * P. No gradient goes through P.

Legend: B pairs, T words, R regions, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BETA, ITERATIONS = 0.5, 50
_EPS = 1e-5  # of the norms


def transport_distance(words_BTD: Tensor, words_BT: Tensor, regions_BRD: Tensor, regions_BR: Tensor) -> Tensor:
    """[B], fp32.

    Args:
        words_BTD: States of the words; released: also of the tokens that begin and end the caption.
        words_BT: bool, True = a word.
        regions_BRD: States of the regions.
        regions_BR: bool, True = a region.
    """
    with torch.autocast(words_BTD.device.type, enabled=False):
        cosine_BTR = F.normalize(words_BTD.float(), dim=-1, eps=_EPS) @ F.normalize(
            regions_BRD.float(), dim=-1, eps=_EPS
        ).transpose(1, 2)
        both_BTR = words_BT[:, :, None] & regions_BR[:, None, :]
        cost_BTR = (1 - cosine_BTR).masked_fill(~both_BTR, 0)
        return (cost_BTR * transport_plan(cost_BTR.detach(), words_BT, regions_BR)).sum((1, 2))


@torch.no_grad()
def transport_plan(cost_BTR: Tensor, words_BT: Tensor, regions_BR: Tensor) -> Tensor:
    """[B, T, R]: how much of each word goes to each region; 0 in padding."""
    both_BTR = (words_BT[:, :, None] & regions_BR[:, None, :]).to(cost_BTR.dtype)
    gibbs_BTR = torch.exp(-cost_BTR / BETA) * both_BTR
    words_B1, regions_B1 = words_BT.sum(1, keepdim=True), regions_BR.sum(1, keepdim=True)
    of_words_BT = words_BT / words_B1
    plan_BTR = both_BTR
    for _ in range(ITERATIONS):
        moved_BTR = gibbs_BTR * plan_BTR
        to_regions_BR = regions_B1 * (moved_BTR * of_words_BT[:, :, None]).sum(1)
        of_regions_BR = regions_BR / to_regions_BR.masked_fill(~regions_BR, 1)
        to_words_BT = words_B1 * (moved_BTR * of_regions_BR[:, None, :]).sum(2)
        of_words_BT = words_BT / to_words_BT.masked_fill(~words_BT, 1)
        plan_BTR = of_words_BT[:, :, None] * moved_BTR * of_regions_BR[:, None, :]
    return plan_BTR
