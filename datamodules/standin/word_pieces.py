"""A BERT vocabulary of the right size: special pieces at their places, the more frequent of our words, pieces for the others."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from datamodules.standin.words import WORDS, words

_KNOWN = 6000
"""Words that are one piece. The rest are cut, as rare words are."""


@dataclass(frozen=True)
class WordPieces:
    """The vocabularies of bert-base-cased (28,996 pieces, "!" is 106) and bert-base-uncased (30,522, "!" is 999).

    Args:
        size: Pieces.
        first_word: The first that is no special or unused one.
    """

    size: int = 28_996
    first_word: int = 106

    def vocabulary(self) -> tuple[str, ...]:
        """All pieces, in the order of their ids."""
        return _vocabulary(self.size, self.first_word)

    def ids(self, word: str) -> list[int]:
        """Of one word, the longest pieces first, as BERT cuts."""
        return list(_ids(self, word))


@cache
def _vocabulary(size: int, first_word: int) -> tuple[str, ...]:
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    unused = (f"[unused{number}]" for number in itertools.count())
    head = [special.get(place) or next(unused) for place in range(first_word)]
    pieces = itertools.chain(
        "!", string.punctuation.replace("!", ""), string.digits, string.ascii_lowercase,
        (f"##{letter}" for letter in string.ascii_lowercase + string.digits), words(min(_KNOWN, WORDS)), _endings(),
    )  # fmt: skip
    return (*head, *itertools.islice(dict.fromkeys(itertools.islice(pieces, 2 * size)), size - first_word))


def _endings() -> Iterator[str]:
    for length in itertools.count(2):
        yield from ("##" + "".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=length))


@cache
def _index(pieces: WordPieces) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(pieces.vocabulary())}


@cache
def _ids(pieces: WordPieces, word: str) -> tuple[int, ...]:
    index, start, found = _index(pieces), 0, []
    while start < len(word):
        prefix = "##" if start else ""
        end = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in index), None)
        if end is None:
            return (index["[UNK]"],)
        found.append(index[prefix + word[start:end]])
        start = end
    return tuple(found)
