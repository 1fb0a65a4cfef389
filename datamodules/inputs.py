"""What a network wants to be fed: the image transform and the tokenizer it was built with.

A network names these (`network.inputs`), data modules read them from there, so the two cannot disagree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from datamodules.errors import InputError


@dataclass(frozen=True)
class ImageInput:
    """Size in pixels, how an image becomes that size at evaluation, and the normalization.

    `resize="squash"` ignores the aspect ratio (BEiT-3's evaluation), `"crop"` resizes the shorter side to
    `size / crop_fraction` and crops the centre (timm, CLIP), `"squash_crop"` resizes both sides to that and crops the centre
    (ALIGN): these give squares. `"keep"` keeps the aspect ratio (ViLT): the shorter side becomes `size`, or less where the longer
    one would be more than `longest`, and both are rounded down to whole patches. Mean and standard deviation are of RGB in
    [0, 1].

    `patch` is the side in pixels of the patches that a network reads, row by row, where it says so: what ties the phrases of a
    caption to them. Only `"keep"` needs it and `longest`.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["squash", "crop", "squash_crop", "keep"] = "crop"
    crop_fraction: float = 1.0
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    longest: int | None = None
    patch: int | None = None

    def __post_init__(self) -> None:
        if self.resize == "keep" and (self.patch is None or self.longest is None or not self.patch <= self.size <= self.longest):
            raise InputError(
                f"an image transform that keeps the aspect ratio needs a patch ({self.patch}) of at most its size ({self.size}), "
                f"and a longest side ({self.longest}) of at least that."
            )


@dataclass(frozen=True)
class RegionInput:
    """Region features of `feature_width` in place of pixels, and the probabilities of `classes` classes where the network learns
    them too (None: it does not)."""

    feature_width: int
    classes: int | None = None


class TextTokenizer(ABC):
    """A tokenizer that is no folder and no file of those that `TextInput` knows: a library's own, say. A network gives an object
    of it as `TextInput.tokenizer`. Data workers get a copy, so it must survive pickling.

    Attributes:
        name: What messages call it.
    """

    name: str

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens included."""

    @property
    @abstractmethod
    def special(self) -> int:
        """How many special tokens `rows` puts around a text."""

    @property
    def unknown(self) -> int | None:
        """The id of words that the vocabulary lacks; None where every text has ids."""
        return None

    @abstractmethod
    def rows(self, texts: Sequence[str], most: int) -> list[list[int]]:
        """The ids of each text as the network reads them: cut to `most` with the special tokens, and not padded."""

    @abstractmethod
    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """All ids of each text, without special tokens, however many."""

    @abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id as the vocabulary writes it."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text that has these ids."""


PROMPT = "{}"  # the text as it is


@dataclass(frozen=True)
class TextInput:
    """`tokenizer` is a Hugging Face name, a local folder, a sentencepiece file of BEiT-3's kind (`.../beit3.spm`; the bare
    name fetches the official one), or an object (`TextTokenizer`). None: captions must come as token ids, from files that name
    their special tokens.

    `max_tokens` counts special tokens, longer captions are cut. `vocabulary` is the number of rows of the network's token table:
    a tokenizer with more ids is refused (None: not checked). `before` is put before every caption that a language model learns to
    write: a space behind a prompt, since most tokenizers have other tokens for the first word of a text.

    `prompt` is what two encoders read in place of every text, with the text at {}: "a photo of {}". The tokenizer puts texts into
    it, so that training, tests, searches and whatever else reads texts have the same. `padding`: texts become as long as the
    longest of their batch, or all `max_tokens` long, for a network that reads the padding (SigLIP).

    Raises:
        InputError: The prompt has no {}, or several.
    """

    tokenizer: str | TextTokenizer | None
    max_tokens: int = 64
    vocabulary: int | None = None
    before: str = ""
    prompt: str = PROMPT
    padding: Literal["longest", "max_length"] = "longest"

    def __post_init__(self) -> None:
        if self.prompt.count(PROMPT) != 1:
            raise InputError(f'prompt is {self.prompt!r}; it needs {{}} once, where the text goes: "a photo of {{}}".')


@dataclass(frozen=True)
class Inputs:
    """What there is of each; a network that takes no text, say, leaves it None. With `regions` and without `image`, data modules
    give region features in place of pixels.

    `captions`: the network writes captions. Data modules then give images once with all their captions of a batch, as tokens that
    end in the end token and have no begin token.

    `ranking`: the network scores pairs of pixels and text. Data modules then give positives with candidates for hard negatives.
    (A network that takes regions in place of pixels always gets these.)

    `masked`: the network is pre-trained on pairs in which words, regions or the image are hidden or exchanged (`MaskedBatch`).
    """

    image: ImageInput | None = None
    text: TextInput | None = None
    regions: RegionInput | None = None
    captions: bool = False
    ranking: bool = False
    masked: bool = False
