"""From batches to numbers. `load(run_or_export)` gives back a usable model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_modules import lazy_imports

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch import LightningModule

lazy_imports.install()


def load(run_or_export: str | Path) -> LightningModule:
    """The trained model of a run folder (its best checkpoint) or of an adapter export, in eval mode on the CPU.

    Raises:
        InputError: Neither a run folder nor an export, no checkpoint in it, or another backbone than it was trained on.
    """
    from lightning_modules.loading import load_export_or_run

    return load_export_or_run(run_or_export)
