"""IAIS: intra-modal self-attention alignment (Ren et al., ACL 2021, Eq. 8-13), and the annealing of its weight (Eq. 16).

One modality is the anchor. Its intra-modal attention should look like the attention of the other modality, rebuilt item by item:

    singular     S_VV^(s)[i, j] = S_LL[i*, j*],   i* = argmax S_VL[i, :]                      (Algorithm 2, Eq. 10-11)
    distributed  S_VV^(d)       = softmax(S_VL) softmax(S_LV)                                 (Eq. 12-13)
    loss         m-KL(softmax(S_VV), mirrored) = KL both ways                                 (Eq. 8)

Two readings. `released` is what the published code computes and what gave the printed results: a softmax per head over the
sub-block (words without [CLS], [SEP] and padding; regions), then the mean over heads, then everything else on these
probabilities: the singular mirror is a softmax of probabilities, and KL is a mean over rows. `paper` follows the equations: the
singular mirror is cut out of the raw scores and normalised once, and KL is a sum over rows.

All of it is computed from one set of scores, vectorised over batch and heads, in fp32, with logarithms that cannot be -inf.

Legend: B pairs, H heads, A items of the anchor, O items of the other modality, D head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.networks.attention import Attended

Kind = Literal["singular", "distributed"]
Anchor = Literal["language", "vision"]
Reading = Literal["released", "paper"]


@dataclass(frozen=True)
class Items:
    """Where the words or regions of each pair are in the sequence: `place_BN` (int64) and `mask_BN` (bool, True = an item).

    Words are the content tokens: [CLS], [SEP] and padding are no items.
    """

    place_BN: Tensor
    mask_BN: Tensor

    def of(self, states_BHSD: Tensor) -> Tensor:
        """The items' rows of queries or keys: [B, H, N, D]."""
        index = self.place_BN[:, None, :, None].expand(-1, states_BHSD.shape[1], -1, states_BHSD.shape[3])
        return states_BHSD.gather(2, index)


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
            scores = _Scores(attended, words, regions)
            return {anchor: self._loss(scores, anchor) for anchor in anchors}

    def _loss(self, scores: _Scores, anchor: Anchor) -> Tensor:
        own, other = ("L", "V") if anchor == "language" else ("V", "L")
        mask_BA = scores.masks[own]
        pair_BAA = mask_BA[:, :, None] & mask_BA[:, None, :]
        log_own_BAA = scores.log_map(own, own)
        if self.kind == "singular":
            log_mirror_BAA = self._singular(scores, own, other, pair_BAA)
            eps = 0.0
        else:
            mirror_BAA = scores.log_map(own, other).exp() @ scores.log_map(other, own).exp()
            log_mirror_BAA = mirror_BAA.clamp_min(torch.finfo(mirror_BAA.dtype).tiny).log()
            eps = 1e-6 if self.reading == "released" else 0.0
        rows_BA = m_kl(log_own_BAA, log_mirror_BAA, pair_BAA, eps)
        total_B = rows_BA.sum(1)
        usable_B = scores.masks["L"].any(1) & scores.masks["V"].any(1)
        total_B = torch.where(usable_B, total_B, torch.zeros_like(total_B))
        return total_B / mask_BA.sum(1).clamp_min(1) if self.reading == "released" else total_B

    def _singular(self, scores: _Scores, own: str, other: str, pair_BAA: Tensor) -> Tensor:
        """log of the mirrored matrix [B, A, A]."""
        if self.reading == "released":
            chosen_BA = scores.log_map(own, other).detach().argmax(-1)
            source_BHOO = scores.log_map(other, other).exp().unsqueeze(1)
        else:
            chosen_BA = scores.raw(own, other).mean(1).detach().argmax(-1)
            source_BHOO = scores.raw(other, other)
        heads, others = source_BHOO.shape[1], source_BHOO.shape[3]
        rows_BHAO = source_BHOO.gather(2, chosen_BA[:, None, :, None].expand(-1, heads, -1, others))
        extracted_BHAA = rows_BHAO.gather(3, chosen_BA[:, None, None, :].expand(-1, heads, rows_BHAO.shape[2], -1))
        return _mean_of_heads(_log_softmax(extracted_BHAA, pair_BAA[:, None]))


class _Scores:
    """Scores between words (L) and regions (V), computed once each and only when asked for."""

    def __init__(self, attended: Attended, words: Items, regions: Items) -> None:
        items = {"L": words, "V": regions}
        self.masks = {side: each.mask_BN for side, each in items.items()}
        scale = 1 / math.sqrt(attended.queries_BHQD.shape[-1])
        self._queries = {side: each.of(attended.queries_BHQD).float() * scale for side, each in items.items()}
        self._keys = {side: each.of(attended.keys_BHKD).float() for side, each in items.items()}
        self._raw: dict[str, Tensor] = {}
        self._log_maps: dict[str, Tensor] = {}

    def raw(self, rows: str, columns: str) -> Tensor:
        """[B, H, rows, columns] scores; the lowest finite number where a row or column is no item."""
        name = rows + columns
        if name not in self._raw:
            scores_BHRC = self._queries[rows] @ self._keys[columns].transpose(-2, -1)
            mask_B1RC = (self.masks[rows][:, :, None] & self.masks[columns][:, None, :])[:, None]
            self._raw[name] = scores_BHRC.masked_fill(~mask_B1RC, torch.finfo(scores_BHRC.dtype).min)
        return self._raw[name]

    def log_map(self, rows: str, columns: str) -> Tensor:
        """[B, rows, columns]: log of the head-averaged attention of rows to columns; -inf where either is no item."""
        name = rows + columns
        if name not in self._log_maps:
            mask_BRC = self.masks[rows][:, :, None] & self.masks[columns][:, None, :]
            self._log_maps[name] = _mean_of_heads(_log_softmax(self.raw(rows, columns), mask_BRC[:, None]))
        return self._log_maps[name]


_NOTHING = -1e4  # log of a probability that is none; finite, so that no gradient meets inf - inf


def _log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """log softmax over the last axis among the items; `_NOTHING` elsewhere, also in rows without any item."""
    filled = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.log_softmax(filled, dim=-1).masked_fill(~mask, _NOTHING)


def _mean_of_heads(logs_BHRC: Tensor) -> Tensor:
    """log of the mean over heads of probabilities given as logs."""
    return torch.logsumexp(logs_BHRC, dim=1) - math.log(logs_BHRC.shape[1])


def m_kl(log_p: Tensor, log_q: Tensor, mask: Tensor, eps: float = 0.0) -> Tensor:
    """KL(p || q) + KL(q || p) of each row (Eq. 8), over the masked-in entries: [..., N, N] -> [..., N].

    `eps` is added to both probabilities inside the logarithm that is compared with (the released distributed loss: 1e-6).
    """
    p, q = log_p.exp(), log_q.exp()
    seen_p, seen_q = (torch.log(p + eps), torch.log(q + eps)) if eps else (log_p, log_q)
    terms = p * (log_p - seen_q) + q * (log_q - seen_p)
    return torch.where(mask, terms, torch.zeros_like(terms)).sum(-1)


@dataclass
class Annealing:
    """Weight of the IAIS loss over the steps: it comes in after the items are aligned (Eq. 16, Section 5.3).

    Args:
        schedule: exp = exp((t / T - 1) scale); linear = t / T; log = 1 - exp(-t / T scale); constant = 1.
        scale: The paper's gamma, 5 or 10.
        weight: Factor on everything.
    """

    schedule: Literal["exp", "linear", "log", "constant"] = "exp"
    scale: float = 5.0
    weight: float = 1.0

    def __call__(self, step: int, total: int) -> float:
        """Weight at `step` (0-based, before the update) of `total`."""
        progress = step / total
        if self.schedule == "exp":
            value = math.exp((progress - 1) * self.scale)
        elif self.schedule == "log":
            value = 1 - math.exp(-progress * self.scale)
        else:
            value = progress if self.schedule == "linear" else 1.0
        return self.weight * value
