"""CLIPScore and RefCLIPScore (Hessel et al., EMNLP 2021, arXiv 2104.08718) from the vectors of any dual encoder.

    CLIP-S(c, v)       w * max(cos(c, v), 0), w = 2.5; texts begin with "A photo depicts "
    RefCLIP-S(c, R, v) harmonic mean of CLIP-S(c, v) and max(max over r in R of cos(c, r), 0)

torchmetrics has another reading: 100 * cos, no prompt, and the mean of a set, not each score, is at least 0. Fractions here.

Legend: I images, each with one caption; S references of all images, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from lightning_modules.metrics.captions.caption_metric import Floats

Reading = Literal["paper", "torchmetrics"]

WEIGHT = 2.5
PROMPT = "A photo depicts "


def read_texts(texts: Sequence[str], reading: Reading) -> list[str]:
    """What the text encoder reads."""
    return [PROMPT + text for text in texts] if reading == "paper" else list(texts)


def clip_scores(images_ID: Tensor, captions_ID: Tensor, reading: Reading = "paper") -> Floats:
    """[I]: of each image and its caption, unit vectors both."""
    cosine_I = (images_ID * captions_ID).sum(1).double().numpy()
    return WEIGHT * np.maximum(cosine_I, 0) if reading == "paper" else cosine_I


def reference_scores(scores_I: Floats, captions_ID: Tensor, references_SD: Tensor, image_S: Sequence[int]) -> Floats:
    """[I]: RefCLIPScore.

    Args:
        scores_I: CLIPScore, the paper's reading.
        captions_ID: Unit vectors.
        references_SD: Unit vectors of all references, each image with at least one.
        image_S: The image of each reference.
    """
    nearest_I = np.zeros(len(scores_I))
    np.maximum.at(nearest_I, np.asarray(image_S), (references_SD * captions_ID[list(image_S)]).sum(1).double().numpy())
    total_I = scores_I + nearest_I
    return np.divide(2 * scores_I * nearest_I, total_I, out=np.zeros_like(total_I), where=total_I > 0)
