"""IAIS: intra-modal self-attention alignment (Ren et al., ACL 2021, Eq. 8-13), and the annealing of its weight (Eq. 16).

One modality is the anchor. Its intra-modal attention should look like the attention of the other modality, rebuilt item by item:

    singular     S_VV^(s)[i, j] = S_LL[i*, j*],   i* = argmax S_VL[i, :]                      (Algorithm 2, Eq. 10-11)
    distributed  S_VV^(d)       = softmax(S_VL) softmax(S_LV)                                 (Eq. 12-13)
    loss         m-KL(softmax(S_VV), mirrored) = KL both ways                                 (Eq. 8)

Two readings. `released` is what the published code computes and what gave the printed results: a softmax per head over the
sub-block (words without [CLS], [SEP] and padding; regions), then the mean over heads, then everything else on these
probabilities: the singular mirror is a softmax of probabilities, and KL is a mean over rows. `paper` follows the equations: the
singular mirror is cut out of the raw scores and normalized once, and KL is a sum over rows.

Words and regions of a pair are laid side by side, J items, and all is computed from one product of their queries and keys. Its
softmaxes are [[LL, LV], [VL, VV]], with one distribution over words and one over regions in every row; both anchors are then the
two diagonal blocks of the same few operations. No loop over pairs or heads, in fp32, with logarithms that cannot be -inf.

Legend: B pairs, H heads, J items of a pair (words, then regions), D head width.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.networks.attention import Attended, Items, Relations
from lightning_modules.objectives.annealing import Annealing

Kind = Literal["singular", "distributed"]
Anchor = Literal["language", "vision"]
Reading = Literal["released", "paper"]

RELEASED_POSITIVES = 8  # `train_batch_size` of the released configurations: micro-batches of one positive a device and step


class RelationAlignment(nn.Module):
    """The IAIS loss of positive pairs.

    Args:
        kind: singular or distributed.
        reading: released (default) or paper; see the top of the file.
    """

    def __init__(self, kind: Kind = "singular", reading: Reading = "released") -> None:
        super().__init__()
        if kind not in ("singular", "distributed") or reading not in ("released", "paper"):
            raise InputError(f"IAIS: kind {kind!r} and reading {reading!r}; choose singular or distributed, released or paper")
        self.kind = kind
        self.reading = reading

    def forward(self, attended: Attended, words: Items, regions: Items, anchors: tuple[Anchor, ...]) -> dict[Anchor, Tensor]:
        """Loss of every pair [B] for each anchor; a pair without words or without regions has 0.

        Args:
            attended: Queries and keys of one layer over the joint sequence.
            words: The caption's content tokens.
            regions: The image's regions.
            anchors: Which modality is the anchor; both share one set of scores.
        """
        with torch.autocast(attended.queries_BHQD.device.type, enabled=False):
            scores = Scores(attended, words, regions)
            mirror = self._singular if self.kind == "singular" else self._distributed
            eps = 1e-6 if self.kind == "distributed" and self.reading == "released" else 0.0
            rows_BJ = m_kl(_log(scores.attention_BJJ), mirror(scores), scores.alike_BJJ, eps)
            terms: dict[Anchor, Tensor] = {}
            for anchor in anchors:
                own = "L" if anchor == "language" else "V"
                total_B, count_B = rows_BJ[:, scores.span[own]].sum(1), scores.masks[own].sum(1)
                terms[anchor] = total_B / count_B.clamp_min(1) if self.reading == "released" else total_B
            return terms

    def _singular(self, scores: Scores) -> Tensor:
        """log of the mirrored matrices [B, J, J] (Algorithm 2): entry i, j is that of i* and j*, of the other modality."""
        released = self.reading == "released"
        across_BJJ = scores.attention_BJJ if released else scores.scores_BHJJ.mean(1)
        star_BJ = across_BJJ.detach().masked_fill(~scores.across_BJJ, -math.inf).argmax(-1)
        source_BXJJ = scores.attention_BJJ[:, None] if released else scores.scores_BHJJ
        entry_BE = (star_BJ[:, :, None] * star_BJ.shape[1] + star_BJ[:, None, :]).flatten(1)
        chosen_BXE = source_BXJJ.flatten(2).gather(2, entry_BE[:, None].expand(-1, source_BXJJ.shape[1], -1))
        log_BXJJ = _log_softmax(chosen_BXE.view_as(source_BXJJ), scores.alike_BJJ[:, None])
        return log_BXJJ[:, 0] if released else _log(log_BXJJ.exp().mean(1))

    def _distributed(self, scores: Scores) -> Tensor:
        """log of the mirrored matrices [B, J, J] (Eq. 12): [[0, LV], [VL, 0]] squared is [[LV VL, 0], [0, VL LV]]."""
        across_BJJ = scores.attention_BJJ.masked_fill(~scores.across_BJJ, 0.0)
        return _log(across_BJJ @ across_BJJ)


class Scores:
    """Scores and attention among all items J of a pair, the words L and then the regions V, from one product.

    Attributes:
        scores_BHJJ: q k^T / sqrt(D) in fp32; the lowest finite number in columns that are no item.
        mask_BJ: bool, True = an item.
        alike_BJJ: bool, True = two words or two regions, of a pair that has both.
        across_BJJ: bool, True = the column is an item of the other modality than the row.
        span: Where L and V are in J.
        masks: The masks of L and V.
    """

    def __init__(self, attended: Attended, words: Items, regions: Items) -> None:
        items = Items(torch.cat([words.place_BN, regions.place_BN], 1), torch.cat([words.mask_BN, regions.mask_BN], 1))
        count, total = words.mask_BN.shape[1], items.mask_BN.shape[1]
        self.masks = {"L": words.mask_BN, "V": regions.mask_BN}
        self.span = {"L": slice(0, count), "V": slice(count, total)}
        self.mask_BJ = items.mask_BN
        region_J = torch.arange(total, device=self.mask_BJ.device) >= count
        same_JJ = region_J[:, None] == region_J
        usable_B = words.mask_BN.any(1) & regions.mask_BN.any(1)
        real_BJJ = self.mask_BJ[:, :, None] & self.mask_BJ[:, None, :]
        self.alike_BJJ = real_BJJ & same_JJ & usable_B[:, None, None]
        self.across_BJJ = self.mask_BJ[:, None, :] & ~same_JJ
        queries_BHJD = items.of(attended.queries_BHQD).float() / math.sqrt(attended.queries_BHQD.shape[-1])
        scores_BHJJ = queries_BHJD @ items.of(attended.keys_BHKD).float().transpose(-2, -1)
        nothing_BJ = torch.zeros_like(self.mask_BJ, dtype=scores_BHJJ.dtype)
        nothing_BJ = nothing_BJ.masked_fill(~self.mask_BJ, torch.finfo(scores_BHJJ.dtype).min)
        self.scores_BHJJ = scores_BHJJ + nothing_BJ[:, None, None, :]

    @cached_property
    def attention_BJJ(self) -> Tensor:
        """[[LL, LV], [VL, VV]], head-averaged: every row has a softmax over the words, and one over the regions."""
        sizes = [columns.stop - columns.start for columns in self.span.values()]
        return torch.cat([scores_BHJN.softmax(-1).mean(1) for scores_BHJN in self.scores_BHJJ.split(sizes, -1)], -1)

    def raw(self, rows: str, columns: str) -> Tensor:
        """[B, H, rows, columns] scores; the lowest finite number where a row or column is no item."""
        scores_BHRC = self.scores_BHJJ[:, :, self.span[rows], self.span[columns]]
        return scores_BHRC.masked_fill(~self.mask_BJ[:, None, self.span[rows], None], torch.finfo(scores_BHRC.dtype).min)

    def map(self, rows: str, columns: str) -> Tensor:
        """[B, rows, columns]: head-averaged attention of rows to columns; 0 where either is no item."""
        real_BRC = self.mask_BJ[:, self.span[rows], None] & self.mask_BJ[:, None, self.span[columns]]
        return self.attention_BJJ[:, self.span[rows], self.span[columns]].masked_fill(~real_BRC, 0.0)


_LEAST = 1e-30  # a probability that is as good as none; 1 / _LEAST, a gradient, must leave room for a loss scale in fp32
_NOTHING = -1e4  # log of what is no probability; finite, so that no gradient meets inf - inf


def _log(probabilities: Tensor) -> Tensor:
    """Logarithm that is never -inf, and whose gradient is never infinite."""
    return probabilities.clamp_min(_LEAST).log()


def _log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """log softmax over the last axis among the masked-in; `_NOTHING` elsewhere, also in rows without any."""
    filled = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.log_softmax(filled, dim=-1).masked_fill(~mask, _NOTHING)


def m_kl(log_p: Tensor, log_q: Tensor, mask: Tensor, eps: float = 0.0) -> Tensor:
    """KL(p || q) + KL(q || p) of each row (Eq. 8), over the masked-in entries: [..., N, N] -> [..., N].

    `eps` is added to both probabilities inside the logarithm that is compared with (the released distributed loss: 1e-6).
    """
    p, q = log_p.exp(), log_q.exp()
    if not eps:
        return ((p - q) * (log_p - log_q)).masked_fill(~mask, 0.0).sum(-1)
    terms = p * (log_p - torch.log(q + eps)) + q * (log_q - torch.log(p + eps))
    return terms.masked_fill(~mask, 0.0).sum(-1)


class IAIS(nn.Module):
    """Which pairs' relations are aligned, in which layers, and with what weight in the loss.

    Total loss of a step (Eq. 15): ranking or contrastive loss + annealing(t) * IAIS.

    Args:
        kind: singular or distributed.
        reading: released (default) or paper: see the top of the file; it also decides the next two where they are null.
        anchors: language, vision, or both.
        positives: Hard-negative training has two sides with different positives. by_side (released) = the vision anchor on the
            hard-text side and the language anchor on the hard-image side; all (Eq. 11, 13) = every anchor on every positive.
            Where a batch has one kind of positives, as in contrastive training, every anchor sees them all.
        reduction: mean over the positives of a step (paper, Eq. 15), or sum: eight times that mean. The released code adds up the
            losses of a device's eight micro-batches of one positive, while the ranking loss is their mean; here the weight is the
            same for any batch and any number of devices. In contrastive training null is the mean.
        layers: Layers that are aligned, 0-based, negative counts from the last; their losses are averaged. Default: the last.
        annealing: The weight over the steps.
    """

    def __init__(
        self,
        kind: Kind = "singular",
        reading: Reading = "released",
        anchors: Literal["language", "vision", "both"] = "both",
        positives: Literal["by_side", "all"] | None = None,
        reduction: Literal["mean", "sum"] | None = None,
        layers: list[int] | None = None,
        annealing: Annealing | None = None,
    ) -> None:
        super().__init__()
        self.loss = RelationAlignment(kind, reading)
        self.anchors: tuple[Anchor, ...] = ("language", "vision") if anchors == "both" else (anchors,)
        self.positives = positives or ("by_side" if reading == "released" else "all")
        self.reduction = reduction
        self.layers = [-1] if layers is None else layers
        self.annealing = annealing or Annealing()

    def of_network(self, num_layers: int) -> list[int]:
        """The layers counted from 0.

        Raises:
            InputError: None, or one that the network does not have.
        """
        found = [layer + num_layers if layer < 0 else layer for layer in self.layers]
        if not found or not all(0 <= layer < num_layers for layer in found):
            raise InputError(f"IAIS: layers {self.layers}; the network has layers 0 to {num_layers - 1} (or -{num_layers} to -1)")
        return found

    def anchors_of(self, side: Literal["hard_texts", "hard_images"]) -> tuple[Anchor, ...]:
        """The anchors that see the positives of a side."""
        if self.positives == "all":
            return self.anchors
        released: Anchor = "vision" if side == "hard_texts" else "language"
        return tuple(anchor for anchor in self.anchors if anchor == released)

    def factor(self, hard_negatives: bool) -> int:
        """What the mean over the positives of a step is multiplied by, in hard-negative or in contrastive training."""
        default = "sum" if hard_negatives and self.loss.reading == "released" else "mean"
        return RELEASED_POSITIVES if (self.reduction or default) == "sum" else 1

    def forward(self, relations: Relations, anchors: tuple[Anchor, ...] | None = None) -> dict[Anchor, Tensor]:
        """Loss of every pair [B] for each of `anchors` (default: all that are set), mean over the layers in `relations`."""
        chosen = self.anchors if anchors is None else anchors
        layers = [self.loss(each, relations.words, relations.regions, chosen) for each in relations.attention.values()]
        return {anchor: torch.stack([each[anchor] for each in layers]).mean(0) for anchor in chosen}
