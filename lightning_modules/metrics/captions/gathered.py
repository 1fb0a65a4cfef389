"""Caption metrics of a split whose captions are written by many processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics import Metric

from datamodules.errors import InputError
from lightning_modules import collectives
from lightning_modules.metrics.captions.caption_metric import CaptionMetric
from lightning_modules.metrics.captions.evaluation import JAVA_FREE, CaptionScorer, Frequencies, Scores, Tokenizer
from lightning_modules.metrics.gather import gather_rows, joined, split_order


class CaptionScores(Metric):
    """Caption metrics of a split, on any number of devices: every process adds the captions of the images it saw, each exactly
    once over all processes; `compute` gathers the text and scores the whole split in one process, which tells the others.

    Use `update`, not `forward`: a corpus metric of one batch has no meaning.

    Args:
        references: Captions of each image of the split, in the split's order, the same in every process.
        metrics: Which to compute; by default those that need no Java.
        tokenizer: See `CaptionScorer`.
        required: See `CaptionScorer`.
        domains: See `CaptionScorer`.
        domain_frequencies: See `CaptionScorer`.
        files: See `CaptionScorer`.

    Raises:
        InputError: See `CaptionScorer`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    characters: list[Tensor]
    lengths: list[Tensor]
    index: list[Tensor]

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        metrics: Sequence[str | CaptionMetric] = JAVA_FREE,
        tokenizer: Tokenizer = "auto",
        required: Sequence[str] = (),
        domains: Sequence[str | None] | None = None,
        domain_frequencies: Frequencies = "whole",
        files: Sequence[Path | None] = (),
    ) -> None:
        super().__init__(dist_sync_fn=gather_rows)
        self.scorer = CaptionScorer(references, metrics, tokenizer, required, domains, domain_frequencies, files)
        self.scores: Scores | None = None
        self.written: list[str] = []  # the captions of the last `compute`, in the split's order
        self.add_state("characters", default=[], dist_reduce_fx="cat")  # code points of all captions in a row
        self.add_state("lengths", default=[], dist_reduce_fx="cat")
        self.add_state("index", default=[], dist_reduce_fx="cat")

    def update(self, captions: Sequence[str], index_B: Tensor) -> None:
        """Adds one caption an image, and the images' rows [B] in the split (`ImageBatch.index_B`)."""
        if index_B.shape != (len(captions),):
            raise InputError(f"{len(captions)} captions need one image row each, got indices {tuple(index_B.shape)}")
        self.characters.append(torch.tensor([ord(c) for caption in captions for c in caption], dtype=torch.int64).to(self.device))
        self.lengths.append(torch.tensor([len(caption) for caption in captions], dtype=torch.int64).to(self.device))
        self.index.append(index_B.long().to(self.device))

    def captions(self) -> list[str]:
        """All captions added so far, in the split's order (after synchronisation: of all processes).

        Raises:
            InputError: Images without a caption, or with several.
        """
        order = split_order(joined(self.index), self.scorer.images, "image").tolist()
        text = "".join(map(chr, joined(self.characters).tolist()))
        ends = joined(self.lengths).cumsum(0).tolist()
        return [text[(ends[row - 1] if row else 0) : ends[row]] for row in order]

    def compute(self) -> dict[str, Tensor]:
        """The scores of the split by name (float64), also kept whole in `scores`. Names as in `Scores.values`.

        Raises:
            InputError: Images without a caption or with several, a program that fails, a required one that is missing (in all
                processes).
        """
        captions = self.written = self.captions()
        # SPICE of a large split takes longer than a collective may wait
        score = self.scorer.score
        self.scores = collectives.by_first(lambda: score(captions)) if self._is_synced else score(captions)
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in self.scores.values.items()}

    @property
    def unavailable(self) -> dict[str, str]:
        """Of the last `compute`: metrics that were not computed, and what to install."""
        return dict(self.scores.unavailable) if self.scores else {}

    def per_image(self) -> dict[str, Tensor]:
        """Scores of each image [I] of the last `compute`, in the split's order, float64 on the CPU."""
        if self.scores is None:
            raise RuntimeError("per_image() needs compute() first")
        return {name: torch.from_numpy(values.copy()) for name, values in self.scores.per_image.items()}

    def reset(self) -> None:
        """Forgets everything but the references."""
        super().reset()
        self.scores, self.written = None, []
