"""The tasks of UNITER's pre-training: guess hidden words, the features or classes of hidden regions, and whether an image is the
caption's own (paper: arXiv 1909.11740, Section 3.2; released code: ChenRocks/UNITER `model/pretrain.py`).

Where paper and code differ, `reading` has both. Released is a mean over everything; the paper adds up what belongs to one region:

    features    released  mean of (f - v)^2 over regions and entries of a feature     paper  sum over entries, mean over regions
    classes kl  released  mean of p log(p / q) over regions and classes               paper  sum over classes, mean over regions

Legend: B pairs, N things that are guessed, F feature width, C region classes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import MaskedBatch
from lightning_modules.networks.pretraining import CLASSES, FEATURES, MATCHING, WORDS, PretrainingNetwork
from lightning_modules.objectives.objective import Objective
from lightning_modules.objectives.optimal_transport import transport_distance

Reading = Literal["released", "paper"]


@dataclass(frozen=True)
class Guessed:
    """What came of a batch: `loss_N` of each thing that was guessed, fp32, which the module averages over all processes, and bool
    `right_N`, whether it was guessed right (None: there is no right and wrong)."""

    loss_N: Tensor
    right_N: Tensor | None = None


class PretrainingObjective(Objective):
    """One task of pre-training. A class says what its batches must have hidden, and which heads of the network it uses;
    parameters of its own are trained and kept like those of any objective.

    Attributes:
        hides: What the data corrupt for it (`datamodules.loading.pretraining.MaskedTask.hides`).
        uses: Heads, by the names in `networks.pretraining`.
        text_only: Whether it never looks at an image.
        graded: Whether a guess is right or wrong (`Guessed.right_N`).
    """

    hides: ClassVar[Literal["words", "regions", "images"]]
    uses: ClassVar[frozenset[str]] = frozenset()
    text_only: bool = False
    graded: ClassVar[bool] = True

    @abstractmethod
    def forward(self, network: PretrainingNetwork, batch: MaskedBatch) -> Guessed:
        """The losses of this process's part of a batch."""


class HiddenWords(PretrainingObjective):
    """Masked language modeling: cross-entropy of the words that are hidden, beside all regions of the image.

    Args:
        text_only: Without the image: what BERT learns.
    """

    hides = "words"
    uses = frozenset({WORDS})

    def __init__(self, text_only: bool = False) -> None:
        super().__init__()
        self.text_only = text_only

    def forward(self, network: PretrainingNetwork, batch: MaskedBatch) -> Guessed:
        assert batch.labels_BT is not None
        hidden_BT = batch.labels_BT >= 0
        logits_NV = network.word_logits(network.encode_masked(batch, self.text_only).words_BTD[hidden_BT])
        labels_N = batch.labels_BT[hidden_BT]
        return Guessed(F.cross_entropy(logits_NV, labels_N, reduction="none"), logits_NV.argmax(1) == labels_N)


class HiddenFeatures(PretrainingObjective):
    """Masked region feature regression: squared distance of the features of hidden regions, beside all words.

    Args:
        reading: See the top of the file.
    """

    hides = "regions"
    uses = frozenset({FEATURES})
    graded = False

    def __init__(self, reading: Reading = "released") -> None:
        super().__init__()
        self.reading = _checked(reading)

    def forward(self, network: PretrainingNetwork, batch: MaskedBatch) -> Guessed:
        assert batch.hidden_BR is not None
        assert batch.images.regions is not None
        guessed_NF = network.region_features(network.encode_masked(batch).regions_BRD[batch.hidden_BR])
        features_NF = batch.images.regions.features_BRD[batch.hidden_BR].float()
        return Guessed(_over_entries(F.mse_loss(guessed_NF, features_NF, reduction="none"), self.reading))


class HiddenClasses(PretrainingObjective):
    """Masked region classification: the classes that the detector gives to hidden regions, beside all words. Their probabilities
    have to be in the image databases (`soft_labels`).

    Args:
        target: "kl" = the detector's probabilities, background included (MRC-kl, which the released recipe has); "class" = the
            most probable class that is no background (MRC).
        reading: Of "kl", see the top of the file.
    """

    hides = "regions"
    uses = frozenset({CLASSES})

    def __init__(self, target: Literal["kl", "class"] = "kl", reading: Reading = "released") -> None:
        super().__init__()
        if target not in ("kl", "class"):
            raise InputError(f"hidden classes: target is {target!r}; give kl or class")
        self.target, self.reading = target, _checked(reading)

    def forward(self, network: PretrainingNetwork, batch: MaskedBatch) -> Guessed:
        """Raises InputError: the data gave no probabilities."""
        assert batch.hidden_BR is not None
        assert batch.images.regions is not None
        if batch.images.regions.classes_BRC is None:
            raise InputError("hidden classes: the batch has no probabilities of classes; set region_classes of the network")
        logits_NC = network.region_logits(network.encode_masked(batch).regions_BRD[batch.hidden_BR])
        soft_NC = batch.images.regions.classes_BRC[batch.hidden_BR].float()
        best_N = soft_NC[:, 1:].argmax(1) + 1
        right_N = logits_NC[:, 1:].argmax(1) + 1 == best_N
        if self.target == "class":
            return Guessed(F.cross_entropy(logits_NC, best_N, reduction="none"), right_N)
        divergence_NC = F.kl_div(F.log_softmax(logits_NC, dim=1), soft_NC, reduction="none")
        return Guessed(_over_entries(divergence_NC, self.reading), right_N)


class PairsMatched(PretrainingObjective):
    """Image-text matching: is the image the caption's own? Cross-entropy, and word-region alignment beside it: words and regions
    of matching pairs are to be close, of others far (`optimal_transport`).

    Args:
        alignment: Weight of word-region alignment (released: 0.1); 0 = none.
    """

    hides = "images"
    uses = frozenset({MATCHING})

    def __init__(self, alignment: float = 0.1) -> None:
        super().__init__()
        if alignment < 0:
            raise InputError(f"pairs matched: alignment is {alignment}; give 0 or more")
        self.alignment = alignment

    def forward(self, network: PretrainingNetwork, batch: MaskedBatch) -> Guessed:
        assert batch.matched_B is not None
        assert batch.images.regions is not None
        states = network.encode_masked(batch)
        logits_B2, target_B = network.match_logits(states), batch.matched_B.long()
        loss_B = F.cross_entropy(logits_B2, target_B, reduction="none")
        if self.alignment:
            words_BT, regions_BR = batch.texts.mask_BT, batch.images.regions.mask_BR
            distance_B = transport_distance(states.words_BTD, words_BT, states.regions_BRD, regions_BR)
            loss_B = loss_B + self.alignment * distance_B * (2 * target_B - 1)
        return Guessed(loss_B, logits_B2.argmax(1) == target_B)


def _over_entries(values_NX: Tensor, reading: Reading) -> Tensor:
    return values_NX.mean(1) if reading == "released" else values_NX.sum(1)


def _checked(reading: Reading) -> Reading:
    if reading not in ("released", "paper"):
        raise InputError(f"reading is {reading!r}; give released or paper")
    return reading
