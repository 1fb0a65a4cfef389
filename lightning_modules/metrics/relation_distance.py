"""How far the relations of words and of regions are apart: ISDa (Ren et al., ACL 2021, Algorithm 1, Eq. 7-9) and the two
distances beside it in Table 2, the IAIS losses themselves.

    object i        the words and the regions of one thing (a chain of Flickr30k Entities)
    A_LL[i, j]      attention between two objects' words: sum over the words of j, mean over the words of i
    A_VV[i, j]      likewise between their regions
    ISDa            m-KL(A_LL, A_VV), averaged over pairs                                      (Eq. 8, 9)

The authors published no code, and the body of Algorithm 1 leaves open what is compressed and how rows become distributions. The
default is the head-averaged attention that IAIS trains (softmax per head over words, and over regions), and rows divided by their
sum: the rest of the attention went to words of no object. The alternatives are options.

Legend: B pairs, H heads, N objects, W words, R regions, I items (words or regions), C columns of a mask.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from datamodules.errors import InputError
from datamodules.records import Objects
from lightning_modules.metrics.gather import gather_values
from lightning_modules.networks.attention import Attended, Items
from lightning_modules.objectives.relation_alignment import Reading, RelationAlignment, Scores, m_kl

Compression = Literal["probabilities", "scores"]
Rows = Literal["renormalised", "softmax", "literal"]

_LEAST = 1e-30  # attention that is as good as none, as in the losses


class RelationDistance(Metric):
    """ISDa over all pairs that were added, exact on any number of devices.

    Args:
        compression: What is compressed to objects: "probabilities" = the head-averaged attention among the words (or regions), by
            default; "scores" = the scores before the softmax (Algorithm 2 cuts from these), which takes rows="softmax".
        rows: How a row over objects becomes a distribution: "renormalised" = divided by its sum; "softmax" = softmax (for
            scores per head, then the mean over heads); "literal" = not at all: Eq. 8 on rows that sum to less than 1.

    Raises:
        InputError: An option that does not exist, or scores without softmax.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    total: Tensor
    total_of_means: Tensor
    pairs: Tensor

    def __init__(self, compression: Compression = "probabilities", rows: Rows = "renormalised") -> None:
        super().__init__(dist_sync_fn=gather_values)
        _check(compression, rows)
        self.compression: Compression = compression
        self.rows: Rows = rows
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total_of_means", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, attended: Attended, words: Items, regions: Items, objects: Objects) -> None:
        """Adds matched pairs. A pair with fewer than two objects has no relation to compare and does not count; an object without
        words or without regions (a caption that was cut, say) is none.

        Args:
            attended: Queries and keys of one layer over the joint sequence (the paper: the last).
            words: The captions' content tokens; word w is column w + 1 of `tokens_BT`.
            regions: The images' regions.
            objects: What both show.

        Raises:
            InputError: Objects that are elsewhere than at words and regions.
        """
        words_BNW = _among(objects.words_BNT[..., 1:], objects.words_BNT[..., :1], words, "words")
        regions_BNR = _among(objects.regions_BNR, objects.regions_BNR[..., :0], regions, "regions")
        with torch.no_grad(), torch.autocast(attended.queries_BHQD.device.type, enabled=False):
            scores = Scores(attended, words, regions)
            if self.compression == "probabilities":
                maps = [scores.map(side, side).double()[:, None] for side in "LV"]
            else:
                maps = [scores.raw(side, side).double() for side in "LV"]
            distance_BN, objects_B = relation_distances(
                maps[0], maps[1], words_BNW, regions_BNR, objects.mask_BN, self.compression, self.rows
            )
            counted_B = objects_B >= 2
            of_pair_B = torch.where(counted_B, distance_BN.sum(1), 0.0)
            self.total += of_pair_B.sum()
            self.total_of_means += (of_pair_B / objects_B.clamp_min(1)).sum()
            self.pairs += counted_B.sum()

    def compute(self) -> dict[str, Tensor]:
        """Averages over pairs, NaN without any, and `isda_pairs`: how many pairs counted.

        `isda` is the sum over a pair's objects (rows), as Eq. 8 has it; `isda_mean` is the mean over them, the scale of Table 2's
        IAIS columns (KLDivLoss "batchmean").
        """
        return {
            "isda": (self.total / self.pairs).float(),
            "isda_mean": (self.total_of_means / self.pairs).float(),
            "isda_pairs": self.pairs.float(),
        }


class AlignmentDistance(Metric):
    """Both IAIS losses as distances (Table 2's L(s) and L(d)), averaged over all pairs with words and regions that were added.

    Args:
        reading: Of the losses: released (what the printed numbers come from) or paper; see `objectives/relation_alignment.py`.
        anchors: Language's and vision's loss: their "sum" (Eq. 11 and 13) or "mean".

    Raises:
        InputError: An option that does not exist.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    singular: Tensor
    distributed: Tensor
    pairs: Tensor

    def __init__(self, reading: Reading = "released", anchors: Literal["sum", "mean"] = "sum") -> None:
        super().__init__(dist_sync_fn=gather_values)
        if anchors not in ("sum", "mean"):
            raise InputError(f"distances of alignment: anchors is {anchors!r}; choose sum or mean")
        self.anchors = anchors
        self._losses = {
            "singular": RelationAlignment("singular", reading),
            "distributed": RelationAlignment("distributed", reading),
        }
        for name in self._losses:
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, attended: Attended, words: Items, regions: Items) -> None:
        """Adds matched pairs; see `RelationDistance.update`."""
        with torch.no_grad():
            self.pairs += (words.mask_BN.any(1) & regions.mask_BN.any(1)).sum()  # of the others the loss is 0
            for name, loss in self._losses.items():
                terms = loss(attended, words, regions, ("language", "vision"))
                total = (terms["language"].double() + terms["vision"].double()).sum()
                setattr(self, name, getattr(self, name) + (total / 2 if self.anchors == "mean" else total))

    def compute(self) -> dict[str, Tensor]:
        """`iais_singular`, `iais_distributed`, averaged over pairs and NaN without any; `iais_pairs`: how many."""
        return {
            "iais_singular": (self.singular / self.pairs).float(),
            "iais_distributed": (self.distributed / self.pairs).float(),
            "iais_pairs": self.pairs.float(),
        }


def relation_distances(
    words_BHWW: Tensor,
    regions_BHRR: Tensor,
    words_BNW: Tensor,
    regions_BNR: Tensor,
    mask_BN: Tensor,
    compression: Compression = "probabilities",
    rows: Rows = "renormalised",
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of every pair at once.

    Args:
        words_BHWW: Attention among words: probabilities (H = 1 where heads are averaged) or scores.
        regions_BHRR: Attention among regions.
        words_BNW: bool, the words of every object.
        regions_BNR: bool, its regions.
        mask_BN: bool, True = an object.
        compression: See `RelationDistance`.
        rows: See `RelationDistance`.

    Returns:
        m-KL of every object's row [B, N] (0 where there is none), and how many objects each pair has [B].

    Raises:
        InputError: An option that does not exist, or scores without softmax.
    """
    _check(compression, rows)
    mask_BN = mask_BN & words_BNW.any(-1) & regions_BNR.any(-1)
    pair_BNN = mask_BN[:, :, None] & mask_BN[:, None, :]
    logs = []
    for map_BHII, items_BNI in ((words_BHWW, words_BNW), (regions_BHRR, regions_BNR)):
        among_BHNN = compress(map_BHII, items_BNI)
        if rows == "softmax":
            filled_BHNN = among_BHNN.masked_fill(~pair_BNN[:, None], torch.finfo(among_BHNN.dtype).min)
            among_BHNN = torch.softmax(filled_BHNN, -1)
        among_BNN = torch.where(pair_BNN, among_BHNN.mean(1), 0.0)
        if rows == "renormalised":
            among_BNN = among_BNN / among_BNN.sum(-1, keepdim=True).clamp_min(_LEAST)
        logs.append(among_BNN.clamp_min(_LEAST).log())
    return m_kl(logs[0], logs[1], pair_BNN), mask_BN.sum(1)


def compress(map_BHII: Tensor, items_BNI: Tensor) -> Tensor:
    """[B, H, N, N]: from every object's items (mean) to every object's items (sum), as Clark et al. (2019) go from word pieces to
    words: the share of attention is kept. Rows and columns of what has no items are 0."""
    items_B1NI = items_BNI[:, None].to(map_BHII.dtype)
    # scores hold the lowest finite number where nothing is; 0 times that is -0, and no overflow can make it a NaN
    among_BHNN = items_B1NI @ map_BHII @ items_B1NI.transpose(-2, -1)
    return among_BHNN / items_B1NI.sum(-1, keepdim=True).clamp_min(1)


def _check(compression: str, rows: str) -> None:
    if compression not in ("probabilities", "scores") or rows not in ("renormalised", "softmax", "literal"):
        raise InputError(
            f"ISDa: compression {compression!r} and rows {rows!r}; choose probabilities or scores, and renormalized, softmax or "
            "literal"
        )
    if compression == "scores" and rows != "softmax":
        raise InputError(f"ISDa: scores are no shares of attention, so their rows cannot be {rows}; set rows to softmax")


def _among(columns_BNC: Tensor, before_BNC: Tensor, items: Items, what: str) -> Tensor:
    """Objects' columns as items [B, N, I]: cut or filled to the items' number."""
    count = items.mask_BN.shape[1]
    found_BNI = F.pad(columns_BNC[..., :count], (0, max(count - columns_BNC.shape[-1], 0)))
    outside = before_BNC.any() | columns_BNC[..., count:].any() | (found_BNI & ~items.mask_BN[:, None]).any()
    if bool(outside):
        raise InputError(
            f"ISDa: an object is at a place where the pair has no {what}; objects must be marked among the {what} that the batch "
            "carries (special tokens and padding are none)"
        )
    return found_BNI
