"""What a network wants to be fed: the image transform and the tokenizer it was built with.

A network names these (`network.inputs`), data modules read them from there, so the two cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImageInput:
    """Size in pixels (square), how an image becomes that size at evaluation, and the normalization.

    `resize="squash"` ignores the aspect ratio (BEiT-3's evaluation), `"crop"` resizes the shorter side to
    `size / crop_fraction` and crops the centre (timm, CLIP). Mean and standard deviation are of RGB in [0, 1].
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["squash", "crop"] = "crop"
    crop_fraction: float = 1.0
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"


@dataclass(frozen=True)
class RegionInput:
    """Region features of `feature_width` in place of pixels."""

    feature_width: int


@dataclass(frozen=True)
class TextInput:
    """`tokenizer` is a Hugging Face name, a local folder, or a sentencepiece file of BEiT-3's kind (`.../beit3.spm`; the bare
    name fetches the official one). None: captions must come as token ids, from files that name their special tokens.

    `max_tokens` counts special tokens, longer captions are cut. `vocabulary` is the number of rows of the network's token table:
    a tokenizer with more ids is refused (None: not checked). `before` is put before every caption that a language model learns to
    write: a space behind a prompt, since most tokenizers have other tokens for the first word of a text.
    """

    tokenizer: str | None
    max_tokens: int = 64
    vocabulary: int | None = None
    before: str = ""


@dataclass(frozen=True)
class Inputs:
    """What there is of each; a network that takes no text, say, leaves it None. With `regions` and without `image`, data modules
    give region features in place of pixels.

    `captions`: the network writes captions. Data modules then give images once with all their captions of a batch, as tokens that
    end in the end token and have no begin token.
    """

    image: ImageInput | None = None
    text: TextInput | None = None
    regions: RegionInput | None = None
    captions: bool = False
