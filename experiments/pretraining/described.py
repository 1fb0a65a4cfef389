"""How the miniature's vision towers learn to see details: a tower learns with the I-Tuning modules that look at it.

Contrastive training tells scenes apart by their colors first, and a tower of half a million parameters stops there: shapes are
seldom what tells two of 256 images apart. The words of captions name them all (as in CapPa, arXiv 2306.07915), so a second stage
trains the tower beneath a captioner, whose language model stays frozen. The modules are thrown away afterwards.
"""

from __future__ import annotations

from torch import nn

from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.networks.captioner import Captioner


class DescribedTower(ITuning):
    """I-Tuning whose parameters include the vision tower's that its tokens depend on: both train, the language model does not."""

    _unused: frozenset[str] = frozenset()

    def inject(self, network: nn.Module) -> None:
        super().inject(network)
        assert isinstance(network, Captioner)
        self._unused = network.unused_parameters()

    def owns(self, parameter_name: str) -> bool:
        tower = parameter_name.split(".")[0] == "vision" and parameter_name not in self._unused
        return tower or super().owns(parameter_name)
