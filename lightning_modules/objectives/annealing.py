"""The weight of the IAIS loss over the steps; without torch, so that a report can draw it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


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
