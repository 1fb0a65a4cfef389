"""The words of a caption, each with the tokens that make it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lightning_modules.networks.language_model import LanguageModel


@dataclass(frozen=True)
class Word:
    """A word of a caption or the punctuation beside it: `start:end` are characters of the caption (`LanguageModel.decode`),
    `tokens` the rows of its tokens."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]


def split_words(language: LanguageModel, ids: Sequence[int]) -> tuple[str, tuple[Word, ...]]:
    """A caption's text and its words with their tokens.

    Which characters a token writes is seen by decoding a token more each time, so this needs nothing of a kind of tokenizer. A
    token that writes none yet (half of a character, a space) goes with what follows it. Special tokens are of no word. Without a
    tokenizer every token is a word, its id.
    """
    if language.text_input.tokenizer is None:
        pieces = [str(token) for token in ids]
        text, starts = " ".join(pieces), np.cumsum([0] + [len(piece) + 1 for piece in pieces]).tolist()
        return text, tuple(
            Word(piece, start, start + len(piece), (row,)) for row, (piece, start) in enumerate(zip(pieces, starts, strict=False))
        )
    tokenizer = language.hf_tokenizer

    def decode(number: int) -> str:
        return tokenizer.decode(list(ids[:number]), skip_special_tokens=True) if number else ""

    whole, special = decode(len(ids)), set(tokenizer.all_special_ids)
    ends = [_common(decode(number), whole) for number in range(len(ids) + 1)]
    spans = [_up_to_text(whole, start, end) for start, end in pairwise(ends)]
    text = " ".join(whole.split())
    words, at, place = [], 0, 0
    for piece in (piece for run in whole.split() for piece in _without_punctuation(run)):
        at = whole.index(piece, at)
        place = text.index(piece, place)
        rows = (row for row, (start, end) in enumerate(spans) if ids[row] not in special and start < at + len(piece) and end > at)
        words.append(Word(piece, place, place + len(piece), tuple(rows)))
        at, place = at + len(piece), place + len(piece)
    return text, tuple(words)


def _common(prefix: str, whole: str) -> int:
    """Length of what two texts begin with."""
    for at, (one, other) in enumerate(zip(prefix, whole, strict=False)):
        if one != other:
            return at
    return min(len(prefix), len(whole))


def _up_to_text(whole: str, start: int, end: int) -> tuple[int, int]:
    """A token's characters, or if those are only white space or none, all up to the first that is not."""
    while end < len(whole) and not whole[start:end].strip():
        end += 1
    return start, end


def _without_punctuation(run: str) -> list[str]:
    """Punctuation before and behind a word as pieces of their own: "(dog." -> "(", "dog", "."; "T-shirt" stays whole."""
    outside = [unicodedata.category(character)[0] in "PS" for character in run]
    if all(outside):
        return [run]
    first, last = outside.index(False), len(run) - outside[::-1].index(False)
    return [piece for piece in (run[:first], run[first:last], run[last:]) if piece]
