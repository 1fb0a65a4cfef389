"""How captions are made, as a record: what a configuration and the command line say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datamodules.errors import InputError


@dataclass(frozen=True)
class Decoding:
    """How captions are made. The defaults are I-Tuning's beam search.

    Args:
        num_beams: Beams of beam search; 1 = greedy, or one sample.
        max_new_tokens: Longest caption, its end token included.
        min_new_tokens: No end before so many tokens.
        length_penalty: Beam scores are divided by length to this power; of several beams.
        no_repeat_ngram: No n-gram of this size twice; 0 = allowed.
        sample: Draw tokens instead of taking the best. What is drawn for an image depends on the run's seed and the image alone,
            so images are captioned one at a time.
        temperature: Of sampling.
        top_k: Sample from so many best tokens; 0 = all.
        top_p: Sample from the best tokens that have this probability together.
        algorithm: "library" = Hugging Face's `generate`. "clipcap" = the beam search of ClipCap's released `generate_beam`: beams
            are compared by their mean log probability at every step, finished ones with the open ones.
        keep_eos: Leave the end token in the caption; ClipCap's released models end with the full stop.

    Raises:
        InputError: A value is out of range, an option has no use beside the others, or "clipcap" with sampling.
    """

    num_beams: int = 5
    max_new_tokens: int = 30
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    algorithm: Literal["library", "clipcap"] = "library"
    keep_eos: bool = False

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.max_new_tokens < 1 or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise InputError(
                f"decoding: num_beams ({self.num_beams}) and max_new_tokens ({self.max_new_tokens}) must be positive, "
                f"min_new_tokens ({self.min_new_tokens}) between 0 and max_new_tokens"
            )
        if self.no_repeat_ngram < 0 or self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"decoding: no_repeat_ngram ({self.no_repeat_ngram}) and top_k ({self.top_k}) must be 0 or more, temperature "
                f"({self.temperature}) positive, top_p ({self.top_p}) in (0, 1]"
            )
        drawn = {"temperature": (self.temperature, 1.0), "top_k": (self.top_k, 0), "top_p": (self.top_p, 1.0)}
        if not self.sample and (given := [f"{name} ({value})" for name, (value, plain) in drawn.items() if value != plain]):
            raise InputError(
                f"decoding: {', '.join(given)}: temperature, top_k and top_p are of sampling: set sample to true, or leave "
                "them out"
            )
        if self.num_beams == 1 and self.length_penalty != 1.0:
            raise InputError(
                f"decoding: length_penalty ({self.length_penalty}) compares beams, and num_beams is 1: give more beams, or leave "
                "it out (1.0)"
            )
        clipcaps = (self.sample, self.min_new_tokens, self.no_repeat_ngram, self.length_penalty) == (False, 0, 0, 1.0)
        if self.algorithm == "clipcap" and not clipcaps:
            raise InputError(
                "decoding: ClipCap's beam search knows neither sampling, min_new_tokens, no_repeat_ngram nor a length_penalty; "
                "leave them out, or set algorithm to library"
            )
