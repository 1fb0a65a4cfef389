"""Visual Genome as a data module; its files and their options are those of sources/visual_genome.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from datamodules.image_text import ImageTextDataModule
from datamodules.loading.captions import Captioning
from datamodules.sources.visual_genome import VisualGenomeSource

_KEPT = ("images", "phrases")


class VisualGenome(VisualGenomeSource, ImageTextDataModule):
    """Visual Genome, to pre-train captioners on. There is nothing to validate or test on: choose by another data set's validation
    split, or train for a fixed time.

    Args:
        place: Of the data set, as `VisualGenomeSource`.
        captioning: Which phrases make a training text, and how many of an image in an epoch: five, of about fifty, make an epoch
            as long as COCO's.
        options: Those of `VisualGenomeSource`, and of all image-text data modules.
    """

    def __init__(
        self,
        *place: Any,
        captioning: Captioning = Captioning(captions_per_image=5),  # noqa: B008 - frozen
        **options: Any,
    ) -> None:
        super().__init__(*place, captioning=captioning, **options)
        self._digest: str | None = None

    def recall(self, remembered: Mapping[str, Any]) -> None:
        """Says on one process what was left out."""
        super().recall(remembered)
        rank_zero_info(f"Visual Genome: {self.counts}")

    def describe(self) -> dict[str, Any]:
        """As of all data modules, and what was left out of the files, and why."""
        described = super().describe()
        assert self.counts is not None
        return {**described, "left_out": {key: value for key, value in asdict(self.counts).items() if key not in _KEPT}}

    def fingerprint(self) -> str:
        """As of all data modules; made once, for the files are large."""
        if self._digest is None:
            self._digest = super().fingerprint()
        return self._digest

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """None: there is no validation split."""
        return []
