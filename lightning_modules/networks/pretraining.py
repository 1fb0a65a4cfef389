"""What a network owes to be pre-trained on pairs of which something is hidden (`PretrainingModule`).

Legend: B pairs, T text tokens, R regions, N of them that are looked at, D width, F feature width, V vocabulary, C region classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from datamodules.records import MaskedBatch
from lightning_modules.networks.network import Network

WORDS, FEATURES, CLASSES, MATCHING = "words", "features", "classes", "matching"
"""The heads, by the methods of `PretrainingNetwork` that use them; an objective says which are its own (`uses`)."""


@dataclass(frozen=True)
class MaskedStates:
    """Output of the last layer for every pair.

    Args:
        words_BTD: Of its text tokens, those that begin and end it included; what stands in padding means nothing.
        regions_BRD: Of its regions, likewise.
    """

    words_BTD: Tensor
    regions_BRD: Tensor


class PretrainingNetwork(Network):
    """A network of words and regions with heads that guess what is hidden. Its `inputs` say `masked`."""

    @abstractmethod
    def encode_masked(self, batch: MaskedBatch, text_only: bool = False) -> MaskedStates:
        """The states of a batch, of whose regions the hidden ones are not looked at; or of its texts without any image."""

    @abstractmethod
    def word_logits(self, states_ND: Tensor) -> Tensor:
        """Which token is at these places: logits [N, V], fp32."""

    @abstractmethod
    def region_features(self, states_ND: Tensor) -> Tensor:
        """The features of the regions at these places [N, F], fp32."""

    @abstractmethod
    def region_logits(self, states_ND: Tensor) -> Tensor:
        """The classes of the regions at these places: logits [N, C], fp32; class 0 is the background."""

    @abstractmethod
    def match_logits(self, states: MaskedStates) -> Tensor:
        """Whether the image is the caption's own: logits [B, 2] (no, yes), fp32."""

    @abstractmethod
    def learn(self, heads: Set[str], images: Literal["never", "sometimes", "always"]) -> None:
        """Told before training: which heads take part in it, and in how many of its steps images do. `unused_parameters` and
        `occasional_parameters` go by it.

        Raises:
            InputError: A head that the network was not built with.
        """
