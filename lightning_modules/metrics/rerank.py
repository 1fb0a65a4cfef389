"""Retrieval in two stages: a network's own vectors choose the pairs that are worth its score.

Released code: `train_retrieval.py` of salesforce/BLIP (and LAVIS): each image's `k_test` most similar captions and each caption's
`k_test` most similar images are scored; the rest comes behind them all. A score there is the matching head's plus the cosine.

Legend: I images, T texts (captions), P pairs, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import InputError
from lightning_modules.metrics.ranks import Ranks, Ties, score_ranks
from lightning_modules.networks.network import FirstStage
from lightning_modules.networks.pair_scorer import Ragged

UNSCORED = float("-inf")
_BLOCK = 256  # items whose vectors are made at a time


@dataclass(frozen=True)
class Rerank:
    """Score only what the network's own vectors put first.

    Args:
        k_test: Candidates of each query, in both directions (BLIP: 256 on COCO, 128 on Flickr30k). Recall at more than these is
            the first stage's failure: what it does not find counts as not found.
        add_similarity: A candidate's score is the matching head's plus the cosine, as BLIP's released code has it; false = the
            matching head's alone, as its paper says.

    Raises:
        InputError: Not even one candidate.
    """

    k_test: int = 128
    add_similarity: bool = True

    def __post_init__(self) -> None:
        if self.k_test < 1:
            raise InputError(f"model.rerank.k_test is {self.k_test}; give at least 1, and 10 for recall at 10.")

    def most(self, images: int, texts: int) -> int:
        """Pairs that are scored at most, of so many images and captions."""
        return min(images * min(self.k_test, texts) + texts * min(self.k_test, images), images * texts)

    def protocol(self) -> str:
        """In words, for results.json."""
        added = " plus the cosine" if self.add_similarity else ""
        return (
            f"every image against every caption of the split by the cosine of their own vectors, the first {self.k_test} of each "
            f"query ordered anew by their score{added}, the rest not found, pessimistic ties"
        )

    def refused(self, network: object) -> str | None:
        """Why a network cannot choose; None = it can."""
        if isinstance(network, FirstStage):
            return None
        return (
            f"model.rerank: {type(network).__name__} has no vectors of its own to choose pairs by (image_vectors, text_vectors). "
            "Set model.rerank to null: every pair is scored then."
        )


@dataclass(frozen=True)
class Chosen:
    """What the first stage chose, on the CPU.

    Args:
        similarity_IT: Cosines.
        captions_IT: bool: among its image's candidates.
        images_IT: bool: among its caption's candidates.
        rerank: How many, and what a score is.
    """

    similarity_IT: Tensor
    captions_IT: Tensor
    images_IT: Tensor
    rerank: Rerank

    @property
    def pairs_IT(self) -> Tensor:
        """bool: the pairs to score, for either direction."""
        return self.captions_IT | self.images_IT

    def values(self, scores_IT: Tensor) -> tuple[Tensor, Tensor]:
        """What images order captions by, and captions images [I, T] both: a query sees its own candidates only.

        Args:
            scores_IT: Scores, `UNSCORED` at pairs that were not chosen.

        Raises:
            InputError: A chosen pair was not scored.
        """
        if bool((self.pairs_IT & (scores_IT == UNSCORED)).any()):
            raise InputError(
                "the scores that are kept lack pairs that the first stage chooses now: another device or number of processes "
                "rounds its vectors otherwise. Delete the scores (RUN/scores), or go on as the run was started."
            )
        values_IT = scores_IT + self.similarity_IT if self.rerank.add_similarity else scores_IT
        return values_IT.masked_fill(~self.captions_IT, UNSCORED), values_IT.masked_fill(~self.images_IT, UNSCORED)

    def ranks(self, scores_IT: Tensor, image_index_T: Tensor, ties: Ties) -> Ranks:
        """Ranks both ways.

        Args:
            scores_IT: As for `values`.
            image_index_T: int64, the image row that each caption describes.
            ties: As for `score_ranks`.

        Raises:
            InputError: A chosen pair was not scored.
        """
        captions, images = (score_ranks(values_IT, image_index_T, ties=ties) for values_IT in self.values(scores_IT))
        return Ranks(i2t_Q=captions.i2t_Q, i2t_image_Q=captions.i2t_image_Q, t2i_T=images.t2i_T)


def choose(scorer: FirstStage, images: Ragged, texts: Ragged, rerank: Rerank) -> Chosen:
    """Compare all vectors, and keep each query's first candidates.

    Args:
        scorer: In eval mode.
        images: Embedded images of the split.
        texts: Embedded captions.
        rerank: How many.
    """
    image_ID = _in_blocks(scorer.image_vectors, images)
    text_TD = _in_blocks(scorer.text_vectors, texts)
    with torch.autocast(image_ID.device.type, enabled=False):
        similarity_IT = (image_ID.float() @ text_TD.float().T).cpu()
    captions_IT, images_IT = (torch.zeros_like(similarity_IT, dtype=torch.bool) for _ in range(2))
    for own_IT, dim in ((captions_IT, 1), (images_IT, 0)):
        first = similarity_IT.topk(min(rerank.k_test, similarity_IT.shape[dim]), dim=dim).indices
        own_IT.scatter_(dim, first, value=True)
    return Chosen(similarity_IT, captions_IT, images_IT, rerank)


def _in_blocks(vectors: Callable[[Ragged], Tensor], items: Ragged) -> Tensor:
    rows = torch.arange(len(items), device=items.lengths_B.device)
    return torch.cat([vectors(items.take(block)) for block in rows.split(_BLOCK)])
