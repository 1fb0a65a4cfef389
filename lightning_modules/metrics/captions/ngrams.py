"""N-grams of references and candidates as arrays, counted once for BLEU and CIDEr-D together.

A word is a number, an n-gram (n >= 2) the pair (its first n - 1 words, its last word) and so a number again; what a sentence
holds is then a sort of int64 keys. References are counted once, with their document frequencies, and matched with any number of
candidate sets (one a validation).

Legend of the shape letters: I images, S reference sentences, T tokens of all sentences, E distinct n-grams of each sentence,
G distinct n-grams of all references.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

ORDERS = 4  # BLEU-1..4; CIDEr's n
_BITS = 31  # of the second number of a key: up to 2^31 n-grams and 2^32 sentences
_LOW = (1 << _BITS) - 1


@dataclass(frozen=True)
class Entries:
    """The distinct n-grams of one order, sentence by sentence: `row_E` the sentence, `gram_E` the n-gram, `count_E` how often.
    Sorted by row, then n-gram."""

    row_E: Integers
    gram_E: Integers
    count_E: Integers


@dataclass(frozen=True)
class Matches:
    """One order of n-grams of a candidate set against the references.

    `candidates`: entries whose row is the image. `place_E` of every reference entry: the candidate entry of the same image and
    n-gram, valid where `hit_E`.
    """

    candidates: Entries
    place_E: Integers
    hit_E: Flags


@dataclass(frozen=True)
class Candidates:
    """A candidate set, one sentence an image: `lengths_I` words, `orders` its n-grams by order."""

    lengths_I: Integers
    orders: tuple[Matches, ...]


class ReferenceNgrams:
    """The n-grams of the references of all images of an evaluation.

    Args:
        references: Tokenized sentences of each image (words separated by white space), at least one an image.

    Raises:
        InputError: No image, or an image without references.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        if not references:
            raise InputError("there are no images to score captions of")
        count_I = np.fromiter(map(len, references), np.int64, len(references))
        if not count_I.all():
            raise InputError(f"image row {int(count_I.argmin())} has no references: every image needs at least one")
        self.images = len(references)
        self.image_S: Integers = np.repeat(np.arange(self.images), count_I)
        self.references_I: Integers = count_I
        tokens_T, self.lengths_S, self._words = _numbered(list(chain.from_iterable(references)), {})
        self._known: dict[int, Integers] = {}  # of each order from 2 on: the n-grams' sorted keys; the places are their numbers
        self.orders: list[Entries] = list(_orders(tokens_T, self.lengths_S, self._learn))
        # Of each order: (image, n-gram) of every entry, and how many images' references hold each n-gram [G].
        self.keys: list[Integers] = [self.image_S[entries.row_E] << _BITS | entries.gram_E for entries in self.orders]
        sizes = [len(self._words), *map(len, self._known.values())]
        self.document_frequency: list[Integers] = [
            np.bincount(_distinct(key) & _LOW, minlength=size) for key, size in zip(self.keys, sizes, strict=True)
        ]

    def match(self, candidates: Sequence[str]) -> Candidates:
        """The n-grams of one tokenized candidate an image, found again among the references of its image.

        Raises:
            InputError: The number of candidates is not the number of images.
        """
        if len(candidates) != self.images:
            raise InputError(f"{len(candidates)} captions for {self.images} images: every image needs exactly one")
        tokens_T, lengths_I, _ = _numbered(candidates, self._words)
        orders = []
        for key, entries in zip(self.keys, _orders(tokens_T, lengths_I, self._recognise), strict=True):
            orders.append(Matches(entries, *_find(entries.row_E << _BITS | entries.gram_E, key)))
        return Candidates(lengths_I, tuple(orders))

    def _learn(self, order: int, key: Integers) -> Integers:
        self._known[order], number = np.unique(key, return_inverse=True)
        return number

    def _recognise(self, order: int, key: Integers) -> Integers:
        """Numbers of n-grams; those that no reference holds get numbers beyond the known ones."""
        known = self._known[order]
        number, hit = _find(known, key)
        number[~hit] = len(known) + np.unique(key[~hit], return_inverse=True)[1]
        return number


def _numbered(sentences: Sequence[str], known: Mapping[str, int]) -> tuple[Integers, Integers, dict[str, int]]:
    """All words of the sentences as numbers [T], the sentences' lengths [S], and the numbers of the known and all new words."""
    split = [sentence.split() for sentence in sentences]
    lengths_S = np.fromiter(map(len, split), np.int64, len(split))
    words: defaultdict[str, int] = defaultdict(None, known)
    words.default_factory = words.__len__  # a new word takes the next number
    tokens_T = np.fromiter(map(words.__getitem__, chain.from_iterable(split)), np.int64, int(lengths_S.sum()))
    return tokens_T, lengths_S, dict(words)


def _orders(tokens_T: Integers, lengths_S: Integers, number: Callable[[int, Integers], Integers]) -> Iterator[Entries]:
    """The n-grams of each order. `number` gives the numbers of the n-grams of an order (from 2 on) from their keys; words have
    theirs."""
    row_T = np.repeat(np.arange(len(lengths_S)), lengths_S)
    left_T = np.repeat(np.cumsum(lengths_S), lengths_S) - np.arange(len(tokens_T))  # words from here to the sentence's end
    start, gram = np.arange(len(tokens_T)), tokens_T
    yield _entries(row_T, gram)
    for order in range(2, ORDERS + 1):
        fits = left_T[start] >= order
        start = start[fits]
        gram = number(order, gram[fits] << _BITS | tokens_T[start + order - 1])
        yield _entries(row_T[start], gram)


def _entries(row: Integers, gram: Integers) -> Entries:
    key = np.sort(row << _BITS | gram)
    first = np.flatnonzero(np.concatenate([np.ones(min(len(key), 1), bool), key[1:] != key[:-1]]))
    return Entries(key[first] >> _BITS, key[first] & _LOW, np.diff(np.append(first, len(key))))


def _distinct(key: Integers) -> Integers:
    key = np.sort(key)
    return key[np.concatenate([np.ones(min(len(key), 1), bool), key[1:] != key[:-1]])]


def _find(sorted_keys: Integers, keys: Integers) -> tuple[Integers, Flags]:
    """Where each of `keys` is in `sorted_keys`, and whether it is there at all."""
    if not len(sorted_keys):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return place, sorted_keys[place] == keys
