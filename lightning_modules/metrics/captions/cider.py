"""CIDEr-D (Vedantam et al., CVPR 2015, section "CIDEr-D"), the "CIDEr" of captioning papers: equal to coco-caption's
`cider_scorer.py`, counted with arrays.

    weight of an n-gram in a sentence     count * (log N - log max(1, df)),  df = images whose references hold it, N = images
    candidate against one reference       sum min(h, r) * r / (|h| |r|) * exp(-(difference of lengths)^2 / (2 * 6^2))
    an image                              10 * mean over n = 1..4 and its references

No stemming. Lengths are counted in bigrams, as there. df and N come from the images that are scored: a single image alone
always gets 0, and a subset's scores are not those that its images have within the whole (evaluation.py offers both). Where the
references cannot tell captions apart, or are few, the scores come with a remark.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lightning_modules.metrics.captions.caption_metric import CaptionMetric, Captions, MetricScores, References
from lightning_modules.metrics.captions.ngrams import ORDERS, Candidates, ReferenceNgrams

Floats = npt.NDArray[np.float64]

SIGMA = 6.0
FEW = 100  # images; below, document frequencies are accidents of the choice


class CIDErD(CaptionMetric):
    """CIDEr-D, key cider. With document frequencies of its own, a domain is scored as if it were the whole set."""

    name = "cider"
    heading = "CIDEr"

    def count(self, references: References) -> None:
        super().count(references)
        self._whole = CIDErReferences(references.ngrams)
        self._of_domain: dict[str, CIDErReferences] = {}
        for domain, rows in references.rows_of.items() if references.own_frequencies else ():
            self._of_domain[domain] = CIDErReferences(ReferenceNgrams([references.sentences[row] for row in rows]))

    def score(self, captions: Captions) -> MetricScores:
        found = self.means(self._whole.scores(captions.matched))
        for domain, counted in self._of_domain.items():
            own = counted.references.match([captions.sentences[row] for row in self.references.rows_of[domain]])
            found.values[f"{domain}/{self.name}"] = float(counted.scores(own).mean())
        return replace(found, remark="; ".join(self._remarks()))

    def _remarks(self) -> Iterator[str]:
        """What the numbers of the set, and of domains that have frequencies of their own, do not show."""
        for place, counted in (("", self._whole), *((f"{domain}: ", own) for domain, own in self._of_domain.items())):
            images = counted.references.images
            if not counted.tells_apart:
                why = "a single image" if images == 1 else f"{images} images whose references all have the same n-grams"
                yield f"{place}is 0 for any caption of {why}, as every inverse document frequency is; score more images"
            elif images < FEW:
                yield f"{place}has its document frequencies of {images} images alone; compare it over these same images only"


class CIDErReferences:
    """Weights and norms of the references, computed once for any number of candidate sets.

    Args:
        references: The references of the images that decide the document frequencies.
    """

    def __init__(self, references: ReferenceNgrams) -> None:
        self.references = references
        self._log_images = np.log(float(references.images))
        self._idf: list[Floats] = []  # of each order [G]
        self._weights: list[Floats] = []  # of each order [E]
        self._norms: list[Floats] = []  # of each order [S]
        for entries, frequency in zip(references.orders, references.document_frequency, strict=True):
            idf_G = self._log_images - np.log(np.maximum(1.0, frequency))
            weight_E = entries.count_E * idf_G[entries.gram_E]
            self._idf.append(idf_G)
            self._weights.append(weight_E)
            self._norms.append(np.sqrt(_sums(entries.row_E, weight_E**2, len(references.image_S))))

    @property
    def tells_apart(self) -> bool:
        """Whether an n-gram of the references has any weight: otherwise every caption gets 0."""
        return any(bool(norm_S.any()) for norm_S in self._norms)

    def scores(self, candidates: Candidates) -> Floats:
        """CIDEr-D of every image [I], as a number around 1 (papers print 100 times that, the highest possible is 10). The score
        of the whole set is the mean.

        Args:
            candidates: What `references.match` gives.
        """
        references = self.references
        image_S, sentences = references.image_S, len(references.image_S)
        bigrams_I, bigrams_S = np.maximum(candidates.lengths_I - 1, 0), np.maximum(references.lengths_S - 1, 0)
        penalty_S = np.exp(-((bigrams_I[image_S] - bigrams_S) ** 2.0) / (2 * SIGMA**2))
        total_S = np.zeros(sentences)
        for order, match in enumerate(candidates.orders):
            entries, hit_E = match.candidates, match.hit_E
            # An n-gram that no reference holds has a document frequency of 0, which counts as 1.
            idf_G = np.append(self._idf[order], self._log_images)
            weight = entries.count_E * idf_G[np.minimum(entries.gram_E, len(idf_G) - 1)]
            norm_I = np.sqrt(_sums(entries.row_E, weight**2, references.images))
            of_reference = self._weights[order][hit_E]
            product = np.minimum(weight[match.place_E[hit_E]], of_reference) * of_reference
            value_S = _sums(references.orders[order].row_E[hit_E], product, sentences)
            norm_S = norm_I[image_S] * self._norms[order]
            total_S += np.divide(value_S, norm_S, out=value_S, where=norm_S != 0) * penalty_S
        return _sums(image_S, total_S, references.images) / ORDERS / references.references_I * 10.0


def _sums(row: npt.NDArray[np.int64], value: Floats, rows: int) -> Floats:
    """Sum of the values of each row; where there is nothing to sum, numpy's would be integers."""
    return np.bincount(row, value, rows).astype(np.float64, copy=False)
