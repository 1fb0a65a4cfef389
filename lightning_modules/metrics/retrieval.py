"""Image-text retrieval: ranks, recalls, the five-fold protocol of COCO, and the metric that gathers them over devices.

One rank computation serves both kinds of scorer: pairs of encoders (`embedding_ranks`, cosine by matmul) and pair scorers
(`score_ranks`, a full score matrix). Recall@k of either direction is the share of queries whose rank is at most k.

What a rank is, and how ties count:

- Image to text: the place (1 = first) of the best-placed caption of the image. Its other captions never stand in its way, so
  `rank <= k` says "one of the first k captions is the image's own" (TR@k of BEiT-3's `RetrievalHandler`, of VSE++, of UNITER).
- Text to image: the place of the caption's own image.
- ties="pessimistic" (default): a competitor with an equal score is placed before the target, so a model that gives every pair
  the same score gets no hit it did not earn (its ranks are the worst ones).
- ties="index": equal scores are placed by their row number, smaller first: the order of a stable descending argsort, and what
  `torch.topk` of the official code gives where nothing ties.
- NaN scores are refused: they compare as "not ahead" and would win every query.

Any number of captions an image is fine. An image without captions is no query of image-to-text (it has nothing to find), and
still a candidate that text-to-image has to beat.

Legend of the shape letters: I images, T texts (captions), Q image queries (images that have captions), D embedding width,
R rows of one block of images.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from datamodules.errors import InputError
from datamodules.records import Positives
from lightning_modules.metrics.gather import gather_rows, joined, split_order
from lightning_modules.metrics.positives import embedding_measures
from lightning_modules.metrics.ranks import Ties, embedding_ranks
from lightning_modules.metrics.recalls import fold_recalls, recalls

# ------------------------------------------------------------------------------------------------------------ over devices


class RetrievalRecall(Metric):
    """Recall@1/5/10 both ways over a whole split, exact on any number of devices.

    Every process adds the images and captions it encoded, each exactly once over all processes, in any order and number
    (none is fine); `compute` gathers them, puts them into the order of the split, and ranks everything against
    everything. A sampler that repeats or drops samples is an error, not a slightly wrong number. Use `update_images` and
    `update_texts`, not `forward`: a recall of one batch has no meaning.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    image_embeddings: list[Tensor]
    image_index: list[Tensor]
    text_embeddings: list[Tensor]
    text_index: list[Tensor]
    text_image_index: list[Tensor]

    def __init__(
        self,
        expected_images: int | None = None,
        expected_texts: int | None = None,
        ties: Ties = "pessimistic",
        folds: int | None = None,
    ) -> None:
        """Starts empty.

        Args:
            expected_images: Images of the split; may be set later as an attribute. None checks for repeats and holes only.
            expected_texts: Captions of the split, likewise.
            ties: How equal scores are placed: "pessimistic" before the target, "index" by row number.
            folds: Give also `folds_...`, recalls over so many galleries (`fold_recalls`); may be set later as an attribute.
        """
        super().__init__(dist_sync_fn=gather_rows)
        self.expected_images = expected_images
        self.expected_texts = expected_texts
        self.ties: Ties = ties
        self.folds = folds
        self.positives: Mapping[str, Positives] = {}  # sets of further right answers, which `compute` measures too
        self._last: dict[str, Tensor] | None = None
        self.add_state("image_embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("image_index", default=[], dist_reduce_fx="cat")
        self.add_state("text_embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("text_index", default=[], dist_reduce_fx="cat")
        self.add_state("text_image_index", default=[], dist_reduce_fx="cat")

    def update_images(self, embeddings: Tensor, index: Tensor) -> None:
        """Adds image embeddings [B, D] (L2-normalized) with their rows [B] in the split (`ImageBatch.index_B`)."""
        self.update(embeddings, index)

    def update_texts(self, embeddings: Tensor, index: Tensor, image_index: Tensor) -> None:
        """Adds caption embeddings [B, D], their rows [B] and their images' rows [B] (`TextBatch.index_B`,
        `.image_index_B`)."""
        self.update(embeddings, index, image_index)

    def update(self, embeddings: Tensor, index: Tensor, image_index: Tensor | None = None) -> None:
        """Adds images, or with `image_index` captions. See `update_images` and `update_texts`."""
        rows = (len(embeddings),)
        if embeddings.ndim != 2 or index.shape != rows or (image_index is not None and image_index.shape != rows):
            raise InputError(
                f"embeddings {tuple(embeddings.shape)} need two dimensions and one index each, got indices {tuple(index.shape)}"
                + ("" if image_index is None else f" and image indices {tuple(image_index.shape)}")
            )
        # Half precision is stored as float32 (exact): all processes then gather one type.
        kept = embeddings.detach().to(torch.float64 if embeddings.dtype == torch.float64 else torch.float32)
        if image_index is None:
            self.image_embeddings.append(kept)
            self.image_index.append(index.long())
        else:
            self.text_embeddings.append(kept)
            self.text_index.append(index.long())
            self.text_image_index.append(image_index.long())

    def compute(self) -> dict[str, Tensor]:
        """Recalls of everything added so far, as `recalls` names them, with `folds` the same over folds, and with `positives`
        the measures of metrics/positives.py.

        Raises:
            InputError: Rows that are missing or there more than once, or what `embedding_ranks` refuses.
        """
        image_index, text_index = joined(self.image_index), joined(self.text_index)
        if not len(image_index) or not len(text_index):
            raise InputError(
                f"recall needs images and captions, got {len(image_index)} and {len(text_index)}: "
                "the evaluation loaders must give both"
            )
        image_order = split_order(image_index, self.expected_images, "image")
        text_order = split_order(text_index, self.expected_texts, "caption")
        text_image_index = joined(self.text_image_index)[text_order]
        images_ID, texts_TD = joined(self.image_embeddings)[image_order], joined(self.text_embeddings)[text_order]
        ranks = embedding_ranks(images_ID, texts_TD, text_image_index, ties=self.ties)
        values = recalls(ranks)
        if self.folds is not None:
            folded = fold_recalls(images_ID, texts_TD, text_image_index, folds=self.folds, ties=self.ties)
            values |= {f"folds_{name}": value for name, value in folded.items()}
        values |= embedding_measures(images_ID, texts_TD, self.positives, self.ties)
        self._last = {
            "i2t_image_index": ranks.i2t_image_Q.cpu(),
            "i2t_rank": ranks.i2t_Q.cpu(),
            "t2i_text_index": torch.arange(len(text_index)),
            "t2i_image_index": text_image_index.cpu(),
            "t2i_rank": ranks.t2i_T.cpu(),
        }
        return {name: value.to(image_index.device) for name, value in values.items()}

    def query_ranks(self) -> dict[str, Tensor]:
        """Per-query ranks of the last `compute`, on every process, int64 on the CPU.

        `i2t_rank` [Q] of the images `i2t_image_index` [Q]; `t2i_rank` [T] of the captions `t2i_text_index` [T] (0..T-1),
        whose images are `t2i_image_index` [T].
        """
        if self._last is None:
            raise RuntimeError("query_ranks() needs compute() first")
        return dict(self._last)

    def reset(self) -> None:
        """Forgets everything, the ranks of the last `compute` too."""
        super().reset()
        self._last = None
