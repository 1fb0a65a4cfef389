"""Tokenizers of the sizes of the published ones. They know the words of `datamodules.standin.words`, have the published special
tokens at their places, and are filled up with pieces that no text of a stand-in has."""

from __future__ import annotations

import io
import itertools
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.standin.word_pieces import WordPieces
from datamodules.standin.words import words

Vocabulary = Literal["gpt2", "neox", "smollm2", "opt", "clip", "bert_cased", "bert_uncased", "siglip", "gemma"]
_KNOWN = 6000
_END = "<|endoftext|>"


def write_tokenizer(folder: Path, kind: Vocabulary, longest: int | None = None) -> None:
    """tokenizer.json and tokenizer_config.json in a folder that is there.

    Args:
        folder: Of a model.
        kind: Whose sizes and special tokens.
        longest: Tokens of the longest text, as its configuration says.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer, special = _made(kind)
    limit = {} if longest is None else {"model_max_length": longest}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **limit).save_pretrained(str(folder))


def _made(kind: Vocabulary) -> tuple[Any, dict[str, str]]:
    if kind == "gpt2":
        return _byte_pairs(50_257, [], [_END]), dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END)
    if kind == "neox":
        return _byte_pairs(50_277, [_END, "<|padding|>"], []), dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END)
    if kind == "smollm2":
        return _byte_pairs(49_152, [_END], []), dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END)
    if kind == "opt":
        ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>") | {"pad_token": "<pad>"}
        return _byte_pairs(50_265, ["<s>", "<pad>", "</s>", "<unk>"], [], "</s> $A"), ends
    if kind == "clip":
        return _clip(), {"bos_token": "<|startoftext|>", "eos_token": _END, "pad_token": _END, "unk_token": _END}
    if kind == "siglip":
        ends = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
        return _unigram(32_000, ["<pad>", "</s>", "<unk>"], 2, "$A </s>"), ends
    if kind == "gemma":
        ends = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
        return _unigram(256_000, ["<pad>", "<eos>", "<bos>", "<unk>"], 3, "$A <eos>"), ends
    cased = kind == "bert_cased"
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return _bert(WordPieces() if cased else WordPieces(30_522, 999), lower=not cased), names


def _letters(length: int) -> Iterator[str]:
    return ("".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=length))


def _pairs(start: str, end: str) -> Iterator[tuple[str, str]]:
    """What is joined, in order: our words letter by letter, then letters to pieces of two, three, four.

    Args:
        start: Before the first letter of a word.
        end: Behind the last.
    """
    for word in reversed(words(_KNOWN)):  # the long ones first: else their ends, which are words, are joined first
        letters = [*word[:-1], word[-1] + end]
        letters = [start, *letters] if start else letters
        for place in range(1, len(letters)):
            yield "".join(letters[:place]), letters[place]
    for length in itertools.count(2):
        for piece in _letters(length):
            yield piece[:-1], piece[-1]


def _merged(alphabet: Sequence[str], count: int, start: str = "", end: str = "") -> tuple[list[str], list[tuple[str, str]]]:
    """So many joined pieces, and how each is joined."""
    known = set(alphabet)
    pieces: list[str] = []
    merges: list[tuple[str, str]] = []
    for left, right in _pairs(start, end):
        if len(pieces) == count:
            break
        if left + right not in known:
            known.add(left + right)
            pieces.append(left + right)
            merges.append((left, right))
    return pieces, merges


def _byte_pairs(size: int, first: list[str], last: list[str], template: str | None = None) -> Any:
    """GPT-2's kind: bytes, and pairs of pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = _merged(alphabet, size - len(alphabet) - len(first) - len(last), start="Ġ")
    ids = {piece: number for number, piece in enumerate((*first, *alphabet, *pieces, *last))}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _finished(tokenizer, ids, [*first, *last], template)


def _clip() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    special = ["<|startoftext|>", _END]
    pieces, merges = _merged(alphabet, 49_408 - len(alphabet) - len(special), end="</w>")
    ids = {piece: number for number, piece in enumerate((*alphabet, *pieces, *special))}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _finished(tokenizer, ids, special, f"<|startoftext|> $A {_END}")


def _unigram(size: int, special: list[str], unknown: int, template: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    rows = [(piece, 0.0) for piece in special]
    rows += [(piece, score) for piece, score in itertools.islice(_scored(), size - len(special))]
    tokenizer = Tokenizer(models.Unigram(rows, unk_id=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _finished(tokenizer, {piece: number for number, (piece, _) in enumerate(rows)}, special, template)


def _scored() -> Iterator[tuple[str, float]]:
    """Pieces of a unigram model: our words are likely, letters and other pieces are not."""
    yield "▁", -12.0
    yield from ((character, -12.0) for character in string.printable.strip())
    yield from ((f"▁{word}", -8.0) for word in words(_KNOWN))
    for length in itertools.count(2):
        yield from ((piece, -20.0) for piece in _letters(length))


def _bert(pieces: WordPieces, lower: bool) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    ids = {piece: number for number, piece in enumerate(pieces.vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _finished(tokenizer, ids, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS] $A [SEP]")


def _finished(tokenizer: Any, ids: dict[str, int], special: list[str], template: str | None) -> Any:
    from tokenizers import AddedToken, processors

    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    if template is not None:
        around = [(token, ids[token]) for token in template.split() if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return tokenizer


# ------------------------------------------------------------------------------------------------------- sentencepiece


def write_sentencepiece(path: Path, size: int = 64_000) -> None:
    """BEiT-3's file: a unigram model that begins with <unk>, <s>, </s>. One that is there stays.

    Raises:
        InputError: `size` is smaller than what the library must have.
    """
    if path.exists():
        return
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    written = io.BytesIO()
    known = words(_KNOWN)
    sentencepiece.SentencePieceTrainer.train(  # for its settings and the way it normalizes; its pieces are few
        sentence_iterator=iter([" ".join(known[start : start + 10]) for start in range(0, 2000, 10)]), model_writer=written,
        model_type="unigram", vocab_size=120, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    generated: Any = sentencepiece_model_pb2
    model = generated.ModelProto.FromString(written.getvalue())
    there = {piece.piece for piece in model.pieces}
    if size < len(there):
        raise InputError(f"{path}: a sentencepiece file has at least {len(there)} pieces; {size} were asked for.")
    fresh = (row for row in _scored() if row[0] not in there)
    for piece, score in itertools.islice(fresh, size - len(there)):
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.vocab_size = size
    write_atomically(path, model.SerializeToString())
