"""Words and sentences without sense: a vocabulary as large as COCO's, frequencies of a language (Zipf), lengths of captions."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np

_CONSONANTS, _VOWELS = "bdfghklmnprstvwz", "aeiou"
WORDS = 8000


@cache
def words(count: int = WORDS) -> tuple[str, ...]:
    """Distinct words of one syllable and more, the shortest first."""
    syllables = [consonant + vowel for vowel in _VOWELS for consonant in _CONSONANTS]
    longer = ("".join(parts) for length in itertools.count(1) for parts in itertools.product(syllables, repeat=length))
    return tuple(itertools.islice(longer, count))


def sentences(random: np.random.Generator, count: int, mean: float = 10.5, least: int = 6, most: int = 30) -> list[str]:
    """So many, of about `mean` words each (COCO's captions: 10.5)."""
    lengths = np.clip(np.rint(random.normal(mean, mean / 4.5, count)), least, most).astype(int)
    known = words()
    upto = np.cumsum(1 / np.arange(1, len(known) + 1))
    drawn = np.searchsorted(upto, random.random(int(lengths.sum())) * upto[-1]).clip(max=len(known) - 1)
    flat = [known[number] for number in drawn]
    ends = np.cumsum(lengths)
    return [" ".join(flat[end - length : end]) for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
