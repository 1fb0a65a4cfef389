"""From captions to padded token ids, with the tokenizer that the network names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.errors import InputError, shown
from datamodules.files.hub import without_waiting
from datamodules.files.locks import ThreadLock
from datamodules.files.releases import RELEASE, TOKENIZER, tokenizer_file
from datamodules.formats.beit3_index import BEIT3_IDS
from datamodules.formats.problems import is_sound
from datamodules.inputs import PROMPT, TextInput, TextTokenizer
from datamodules.records import FileIds

_UNUSED = re.compile(r"\[unused\d+\]")  # BERT's vocabularies have such pieces, which no text gives
_SENTENCEPIECE = (".spm", ".model")
_TOGETHER = 10_000  # texts that are looked through at once

# A call tells the Rust tokenizer behind it how to cut and pad before it encodes. Of two threads each could get the other's way.
_turns = ThreadLock()


class TextWarning(UserWarning):
    """Of a text that a network does not read as it stands."""


class Tokenizer:
    """A Hugging Face tokenizer, by hub name or local folder, BEiT-3's sentencepiece file, or the network's own object; puts texts
    into the prompt, cuts and pads as `TextInput` says.

    Args:
        spec: What the network names. Without a tokenizer, captions have to be token ids.
        file_ids: What the captions' token ids are of, where they have any.

    Raises:
        InputError: the folder, file or hub name gives no tokenizer, or one with more ids than the network has; there is no
            tokenizer and no `file_ids`, or no room for a word.
    """

    def __init__(self, spec: TextInput, file_ids: FileIds = BEIT3_IDS) -> None:
        self.max_tokens = spec.max_tokens
        self.prompt = spec.prompt
        self.padding = spec.padding
        self._least = spec.max_tokens if spec.padding == "max_length" else 0
        self.file_ids = file_ids
        self._tokenizer: Any = None  # of Hugging Face
        self._own: TextTokenizer | None = None
        if spec.tokenizer is None:
            if file_ids.size is None:
                raise InputError(
                    "the network names no tokenizer, so captions have to come as token ids from text databases: set "
                    "regions.text_db of the data, or the network's tokenizer."
                )
            self.name = file_ids.maker
        elif isinstance(spec.tokenizer, TextTokenizer):
            self._own, self.name = spec.tokenizer, spec.tokenizer.name
        else:
            self._load(spec.tokenizer)
        if spec.vocabulary is not None and self.vocabulary_size > spec.vocabulary:
            raise InputError(
                f"tokenizer {self.name} has {self.vocabulary_size:,} ids, the network's token table {spec.vocabulary:,} rows; "
                "give the tokenizer that the network was trained with (or, without weights, set its vocab_size)."
            )
        if self.room < 1:
            raise InputError(f"max_tokens is {self.max_tokens}, which leaves no room for a word beside special tokens: raise it.")

    def _load(self, name: str) -> None:
        # Tokenizing happens in data workers, one batch each: the Rust threads would only fight with them, and after a fork
        # they print a warning. A user's own setting stays.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.name = os.path.expanduser(name)
        if self.name.endswith(_SENTENCEPIECE) and not Path(self.name).is_dir():
            self._tokenizer = _from_sentencepiece(tokenizer_file(self.name))
        else:
            self._tokenizer = _from_hugging_face(self.name)
        self._tokenizer.padding_side = "right"
        take_text_as_text(self._tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens included (64,002 for beit3.spm)."""
        if self._own is not None:
            return self._own.vocabulary_size
        if self._tokenizer is None:
            assert self.file_ids.size is not None
            return self.file_ids.size
        return len(self._tokenizer)

    @property
    def room(self) -> int:
        """Tokens of a text that are kept: those beyond are cut, and special ones put around the rest."""
        if self._own is not None:
            return self.max_tokens - self._own.special
        return self.max_tokens - (2 if self._tokenizer is None else self._tokenizer.num_special_tokens_to_add())

    def as_read(self, text: str) -> str:
        """The text in the prompt."""
        return self.prompt.replace(PROMPT, text)

    @property
    def mask_id(self) -> int:
        """id of a hidden word.

        Raises:
            InputError: there is none.
        """
        found = self.file_ids.mask if self._tokenizer is None else self._tokenizer.mask_token_id
        if found is None or self._own is not None:
            raise InputError(
                f"tokenizer {self.name} has no token for a hidden word ([MASK]), which the guessing of words needs: give BERT's "
                "tokenizer, or leave that task out (pretraining.tasks of the data, objectives of the model)."
            )
        return int(found)

    @cached_property
    def word_ids(self) -> npt.NDArray[np.int64]:
        """All ids that stand for a piece of a word: neither special nor unused. (bert-base-cased: 106 to 28,995, as released.)"""
        if self._tokenizer is None:
            return np.arange(self.file_ids.first_word or 0, self.vocabulary_size)
        special = set(self._tokenizer.all_special_ids)
        pieces = self._tokenizer.convert_ids_to_tokens(list(range(self.vocabulary_size)))
        words = [i for i, piece in enumerate(pieces) if i not in special and piece and not _UNUSED.fullmatch(piece)]
        return np.array(words, dtype=np.int64)

    def require_mask(self) -> None:
        """See that words can be hidden.

        Raises:
            InputError: the tokenizer has no token for a hidden word, or no words.
        """
        if self.mask_id < 0 or not len(self.word_ids):
            raise InputError(f"tokenizer {self.name} has no words: give BERT's tokenizer.")

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (int64) and mask (bool, True = real token), both [B, T], T the longest of the batch, or `max_tokens`."""
        texts = list(map(self.as_read, texts))
        if self._own is not None:
            with self._sound(texts):
                return _padded(self._own.rows(texts, self.max_tokens), 0, self._least)
        encoded = self._encoded(
            texts, padding=self.padding, truncation=True, max_length=self.max_tokens, return_tensors="pt",
            return_attention_mask=True,
        )  # fmt: skip
        return encoded["input_ids"].to(torch.int64), encoded["attention_mask"].to(torch.bool)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """All ids of each text in the prompt, without special tokens, however many."""
        return self._ids(list(map(self.as_read, texts)))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self._own is not None:
            with self._sound(texts):
                return self._own.ids(texts)
        return self._encoded(texts, add_special_tokens=False, verbose=False)["input_ids"]  # it warns of long ones

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id as the vocabulary writes it, such as ##ing; without a tokenizer its number."""
        if self._own is not None:
            return self._own.pieces(ids)
        return list(map(str, ids)) if self._tokenizer is None else self._tokenizer.convert_ids_to_tokens(list(ids))

    @property
    def _unknown(self) -> int | None:
        """The id of words that the vocabulary lacks, where there is one."""
        return self._own.unknown if self._own is not None else getattr(self._tokenizer, "unk_token_id", None)

    def remarks(self, texts: Sequence[str]) -> list[str]:
        """What the network does not read as it stands, a line each: words that the vocabulary lacks, the end of long texts."""
        lines = []
        for text, ids in zip(texts, self.ids(texts), strict=True):
            with _turns:
                kept = (self._own or self._tokenizer).decode(ids[: self.room])
            if self._unknown in ids:
                lines.append(f"{shown(text)}: the model does not know all of its words, and reads {shown(kept)}")
            elif len(ids) > self.room:
                lines.append(f"{shown(text)}: longer than the {self.max_tokens} tokens of the model, which reads {shown(kept)}")
        return lines

    def unknown_words(self, texts: Iterable[str]) -> dict[str, int]:
        """Words that the vocabulary lacks and how often they come, the most frequent first. Words are what stands between spaces:
        each is looked at once, however long the texts are."""
        if self._unknown is None:
            return {}
        words, texts = Counter[str](), iter(texts) if self.prompt == PROMPT else map(self.as_read, texts)
        while some := list(islice(texts, _TOGETHER)):
            words.update("\n".join(some).split())  # many at once: millions of phrases then take seconds
        known = zip(words.most_common(), self._ids([word for word, _ in words.most_common()]) if words else (), strict=True)
        return {word: count for (word, count), ids in known if self._unknown in ids}

    def _encoded(self, texts: Sequence[str], **options: Any) -> Any:
        self.require_tokenizer()
        with self._sound(texts):
            return self._tokenizer(list(texts), **options)

    @contextmanager
    def _sound(self, texts: Sequence[str]) -> Iterator[None]:
        """One thread at a time has a tokenizer read; and what that makes of half a character is an `InputError`."""
        try:
            with _turns:
                yield
        except (TypeError, UnicodeError):
            if (broken := next((text for text in texts if not is_sound(text)), None)) is None:
                raise
            raise InputError(f"the text {shown(broken)} has half a character (a surrogate), which no tokenizer takes.") from None

    def require_tokenizer(self) -> None:
        """See that captions can be text.

        Raises:
            InputError: the network names no tokenizer.
        """
        if self._tokenizer is None and self._own is None:
            raise InputError(
                f"captions are text, but the network names no tokenizer and takes only the ids of {self.name}: set the network's "
                "tokenizer."
            )

    def from_ids(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """What `__call__` gives for the texts that have these `ids()`: with begin and end token, cut and padded.

        Official: `_get_text_segment` of unilm/beit3/datasets.py.
        """
        special = self.file_ids
        rows = [[special.begin, *some[: self.max_tokens - 2], special.end] for some in ids]
        return _padded(rows, special.padding, self._least)

    def require_ids(self, largest: int) -> None:
        """See that the ids in the files, up to this one, are this tokenizer's.

        Raises:
            InputError: the network's tokenizer is another one, or texts go into a prompt.
        """
        remedy = "captions: karpathy" if self.file_ids == BEIT3_IDS else "regions.text_db: null"
        if self.prompt != PROMPT:
            raise InputError(
                f"the captions are token ids of {self.file_ids.maker}, which cannot be put into the prompt {self.prompt!r}. Read "
                f"the captions as text ({remedy}), or set model.prompt to null."
            )
        if self._own is not None:
            raise InputError(
                f"the captions are token ids of {self.file_ids.maker}, but the network's tokenizer is {self.name}. Read the "
                f"captions as text ({remedy})."
            )
        if self._tokenizer is None:
            return  # the files are all that there is, and their readers have looked at every id
        its, theirs = self._tokenizer, self.file_ids
        begin = its.bos_token_id if its.bos_token_id is not None else its.cls_token_id
        end = its.eos_token_id if its.eos_token_id is not None else its.sep_token_id
        special = [begin, its.pad_token_id, end, its.unk_token_id]
        expected = [theirs.begin, theirs.padding, theirs.end, theirs.unknown]
        other_size = theirs.size is not None and theirs.size != self.vocabulary_size
        if special != expected or largest >= self.vocabulary_size or other_size:
            size = "" if theirs.size is None else f" of {theirs.size:,}"
            raise InputError(
                f"the captions are token ids of {theirs.maker} (up to {largest}{size}), but the network's tokenizer {self.name} "
                f"has {self.vocabulary_size:,} ids, and begin, padding, end, unknown at {special} (theirs: {expected}). "
                f"Use a network with that tokenizer, or read the captions as text ({remedy})."
            )


def _padded(rows: Sequence[Sequence[int]], padding: int, least: int) -> tuple[Tensor, Tensor]:
    """Ids (int64) and mask (bool, True = real token), both [B, T], T the longest, and at least `least`."""
    longest = max(least, *map(len, rows))
    tokens_BT = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows], dtype=torch.int64)
    return tokens_BT, torch.arange(longest) < torch.tensor([[len(row)] for row in rows])


def take_text_as_text(tokenizer: Any) -> None:
    """From now on "[SEP]", "</s>" or "<|endoftext|>" in a text are these letters and no control token: the tokenizer puts its
    control tokens around a text, and a caption cannot.

    Args:
        tokenizer: A Hugging Face tokenizer; texts without such letters keep their ids.
    """
    from tokenizers import Regex, pre_tokenizers

    tokenizer.split_special_tokens = True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    # A unigram model (sentencepiece's) has its control tokens among its pieces, and would find them in the text all the same.
    control = [token for token in tokenizer.all_special_tokens if len(token) > 1]
    last = "|".join(f"(?<={re.escape(token[:-1])}){re.escape(token[-1])}" for token in control)
    own = [] if backend.pre_tokenizer is None else [backend.pre_tokenizer]
    if control:
        backend.pre_tokenizer = pre_tokenizers.Sequence([*own, pre_tokenizers.Split(Regex(last), "merged_with_next")])


def _from_sentencepiece(path: Path) -> Any:
    """BEiT-3's tokenizer from its sentencepiece file: <s> 0, <pad> 1, </s> 2, <unk> 3, then piece i has id i + 1.

    It equals `XLMRobertaTokenizer("beit3.spm")` of transformers 4, which unilm/beit3/utils.py makes.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from transformers import XLMRobertaTokenizer

    remedy = f"give BEiT-3's file, {RELEASE}/{TOKENIZER}"
    try:
        content = path.read_bytes()
        sentencepiece.SentencePieceProcessor().LoadFromSerializedProto(content)
    except OSError as error:
        raise InputError(f"sentencepiece file {path} cannot be read ({error.strerror}); {remedy}.") from error
    except RuntimeError as error:
        raise InputError(f"{path} is not a sentencepiece file, or is cut short ({error}); {remedy}.") from error
    generated: Any = sentencepiece_model_pb2  # protobuf's classes are made at run time
    model = generated.ModelProto.FromString(content)
    # transformers takes any model and would give one that is laid out in another way wrong ids without a word.
    first = [piece.piece for piece in model.pieces[:3]]
    if first != ["<unk>", "<s>", "</s>"] or model.trainer_spec.model_type != model.trainer_spec.UNIGRAM:
        raise InputError(f"{path} is not a unigram model whose first pieces are <unk>, <s>, </s>, as BEiT-3's are; {remedy}.")
    # transformers 5 wants a folder that holds the file under this name. A folder of this process alone, gone at once.
    with TemporaryDirectory(prefix="crosslight-tokenizer-") as folder:
        (Path(folder) / "sentencepiece.bpe.model").write_bytes(content)
        return XLMRobertaTokenizer.from_pretrained(folder)


def _from_hugging_face(name: str) -> Any:
    from transformers import AutoTokenizer  # seconds of import, only needed here

    looks_local = name.startswith((".", os.sep)) or Path(name).exists()
    if looks_local and not Path(name).is_dir():
        raise InputError(
            f"tokenizer folder {name} does not exist; give a folder with tokenizer.json, a Hugging Face name, or BEiT-3's "
            "sentencepiece file (.spm)."
        )
    without_waiting(name)
    try:
        # without this it asks whether code of the folder may be run, and takes a "y" of any pipe
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except Exception as error:  # of the library and of those below it: a damaged file can raise anything
        first_line = str(error).strip().partition("\n")[0]
        if "trust_remote_code" in str(error):
            first_line = "it brings code of its own, which is never run here"
        remedy = (
            "it should hold tokenizer.json and tokenizer_config.json"
            if looks_local
            else "check the name, or download it once on a connected machine (`hf download NAME --local-dir FOLDER`) and "
            "give that folder instead (HF_HUB_OFFLINE is set)"
            if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
            else "check the name and the network, or give a local folder with the tokenizer's files"
        )
        raise InputError(f"no tokenizer at {name}: {first_line}. Remedy: {remedy}.") from error
    if tokenizer.pad_token is None:
        # GPT-2's has none. Which id pads does not matter where the mask is False.
        if tokenizer.eos_token is None:
            raise InputError(f"tokenizer {name} has neither a padding nor an end token; it cannot pad a batch.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
