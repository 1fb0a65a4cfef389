"""Puts weights among those of the package, whose folder the test has changed (`miniatures.FOLDER`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from lightning_modules.checkpoints import miniatures
from lightning_modules.checkpoints.weights import write_weights


def ship(name: str, state: Mapping[str, Tensor]) -> None:
    """As halves."""
    file = miniatures.FOLDER / f"{name}.safetensors"
    write_weights({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, file)
    sums = miniatures.read_sums(miniatures.FOLDER) | {name: hashlib.sha256(file.read_bytes()).hexdigest()}
    (miniatures.FOLDER / miniatures.SUMS_FILE).write_text(miniatures.sums_text(sums))
