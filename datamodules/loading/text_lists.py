"""Texts of no data set, as a network reads them: what a person types."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

from datamodules.errors import InputError
from datamodules.loading.collate import text_batch
from datamodules.loading.tokens import TextWarning, Tokenizer
from datamodules.records import Caption, TextBatch

_REMARKS = 5  # so many texts are named that are not read as they stand


def require_texts(texts: Iterable[str]) -> list[str]:
    """Texts as a list.

    Raises:
        InputError: There is none, it is one text, whose letters would be read as texts, or something in it is none.
    """
    if isinstance(texts, str):
        raise InputError(f"{texts[:40]!r} is one text: give a list, [{texts[:40]!r}].")
    found = list(texts) if isinstance(texts, Iterable) else [texts]
    if not found:
        raise InputError("there are no texts to read; give at least one.")
    if odd := [text for text in found if not isinstance(text, str)]:
        raise InputError(f"{odd[0]!r} is no text: give a list of texts.")
    return found


def read_text_list(texts: Iterable[str], tokenizer: Tokenizer, batch_size: int = 256) -> Iterator[TextBatch]:
    """Texts in their order, a batch at a time. What the tokenizer cannot read of them, words that it does not know and the end of
    long texts, is said in a `TextWarning`; of many texts the first few are named.

    Args:
        texts: The texts.
        tokenizer: Of the network.
        batch_size: Texts at once.

    Raises:
        InputError: There is no text, or the batch size is out of range.
    """
    texts = require_texts(texts)
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: give at least 1.")
    remarks = tokenizer.remarks(texts)
    for remark in remarks[:_REMARKS]:
        warnings.warn(remark, TextWarning, stacklevel=2)
    if (more := len(remarks) - _REMARKS) > 0:
        warnings.warn(f"{more:,} more of {len(texts):,} texts are not read as they stand", TextWarning, stacklevel=2)
    for first in range(0, len(texts), batch_size):
        rows = range(first, min(first + batch_size, len(texts)))
        yield text_batch([Caption(str(row), texts[row]) for row in rows], rows, rows, tokenizer)
