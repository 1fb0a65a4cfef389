"""UNITER's text databases, read and written as released: lz4 frames of msgpack in LMDB, four JSON files beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lz4.frame  # type: ignore[import-untyped]
import msgpack  # type: ignore[import-untyped]

from datamodules.errors import InputError, shown
from datamodules.files.atomic import whole_folder
from datamodules.files.json_file import read_json
from datamodules.files.origins import note_origins
from datamodules.formats.uniter.lmdb_file import environment_of, open_for_writing, put_value

ORIGINS = "made_of.json"  # in a text database that was made here


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The word pieces of a text database, as its meta.json names them; the defaults are those of bert-base-cased, the released.

    Args:
        tokenizer: its name, for messages.
        unk: id of the unknown piece.
        cls: id that begins a sequence.
        sep: id that ends one.
        mask: id of a masked piece.
        first_word: the first id that is a word piece and not special ("!").
        size: one more than the last id.
    """

    tokenizer: str = "bert-base-cased"
    unk: int = 100
    cls: int = 101
    sep: int = 102
    mask: int = 103
    first_word: int = 106
    size: int = 28996


@dataclass(frozen=True, slots=True)
class TextEntry:
    """One text: ids of its word pieces without [CLS] and [SEP], the image it describes, and its words where they are stored."""

    text_id: str
    input_ids: tuple[int, ...]
    image_name: str
    text: str | None


def word_pieces_of(text: str, tokenize_word: Callable[[str], Iterable[int]]) -> list[list[int]]:
    """The ids of every word of a text, as UNITER's prepro.py makes them: split at white space, each word by itself (a word of
    characters that the tokenizer drops gives none)."""
    return [list(tokenize_word(word)) for word in text.strip().split()]


class TextDatabase:
    """Texts by id. Opened read-only once a process, usable after a fork, pickled as its arguments.

    Attributes: `text_ids` that are kept, in file order; `lengths` of all in word pieces without special ones; `image_names`
    {text: image} and `image_texts` {image: texts}, both of all texts, also of those not kept; `vocabulary`.

    Args:
        path: the database's folder (released: txt_db/itm_flickr30k_train.db and its like).
        max_pieces: leave out longer texts (released: 60 for training, none for evaluation; nothing is cut).
        expected: the network's vocabulary.

    Raises:
        InputError: a file is missing, damaged, or contradicts another; the tokenizer is not the expected one.
    """

    def __init__(self, path: Path, max_pieces: int | None = None, expected: Vocabulary | None = None) -> None:
        self.path = Path(path)
        self._arguments = (path, max_pieces, expected)
        if not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder; expected a text database of UNITER there.")
        self._environment = environment_of(self.path, "the LMDB file of a text database")
        self.vocabulary = _read_vocabulary(self.path / "meta.json")
        if expected is not None:
            _compare(self.vocabulary, expected, self.path)
        self.lengths: dict[str, int] = self._object("id2len.json", int, "{text id: number of word pieces}")
        self.image_names: dict[str, str] = self._object("txt2img.json", str, "{text id: image name}")
        self.image_texts: dict[str, list[str]] = self._object("img2txts.json", list, "{image name: text ids}")
        self._check_maps()
        self.text_ids = [identity for identity, length in self.lengths.items() if max_pieces is None or length <= max_pieces]

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), self._arguments

    def _object(self, name: str, kind: type, expected: str) -> dict[str, Any]:
        content = read_json(self.path / name, expected)
        if not isinstance(content, dict):
            raise InputError(f"{self.path / name} does not hold a JSON object; expected {expected}.")
        for key, value in content.items():
            parts = value if isinstance(value, list) else []
            if type(value) is not kind or not all(type(part) is str for part in parts):
                what = f"{key}: {shown(value)} does not fit"
                raise InputError(f"{self.path / name}: {what}; expected {expected}, as image-text retrieval has them.")
        return content

    def _check_maps(self) -> None:
        for identity in self.lengths:
            if identity not in self.image_names:
                raise InputError(
                    f"{self.path}: text {identity} of id2len.json is not in txt2img.json; they are of different databases."
                )
        for image, identities in self.image_texts.items():
            for identity in identities:
                if self.image_names.get(identity) != image:
                    raise InputError(
                        f"{self.path}: img2txts.json gives text {identity} to image {image} and txt2img.json to "
                        f"{self.image_names.get(identity)}; they are of different databases."
                    )
        if sum(map(len, self.image_texts.values())) != len(self.image_names):
            raise InputError(
                f"{self.path}: txt2img.json has {len(self.image_names):,} texts and img2txts.json "
                f"{sum(map(len, self.image_texts.values())):,}; they are of different databases."
            )

    def read(self, text_id: str) -> TextEntry:
        """A text.

        Raises:
            InputError: there is no such text, or its value is damaged or not what id2len.json and meta.json say.
        """
        place = f"{self.path}: text {text_id}"
        value = self._environment.get(text_id.encode())
        if value is None or text_id not in self.lengths:
            where = "its id2len.json" if value is not None else "data.mdb"
            raise InputError(
                f"{self.path} has no text {text_id!r} in {where}; it has {len(self.lengths):,}, the first is "
                f"{next(iter(self.lengths), None)!r}. Ids are those of the same folder's txt2img.json."
            )
        try:
            record = msgpack.unpackb(lz4.frame.decompress(value), raw=False)
        except Exception as error:  # lz4 and msgpack have each their own errors for damaged bytes
            raise InputError(f"{place}: its value is not an lz4 frame of msgpack ({error}); fetch or build it again.") from error
        ids = record.get("input_ids") if isinstance(record, dict) else None
        if not isinstance(ids, list) or not all(type(piece) is int for piece in ids):
            raise InputError(f"{place} has no 'input_ids' that are a list of integers; this is not a text database of UNITER.")
        if len(ids) != self.lengths[text_id]:
            raise InputError(
                f"{place} has {len(ids)} word pieces and id2len.json says {self.lengths[text_id]}: it is of another database."
            )
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary.size:
            raise InputError(
                f"{place} has word piece {max(ids)} and meta.json speaks of a vocabulary of {self.vocabulary.size} "
                f"({self.vocabulary.tokenizer}): it is of another database."
            )
        text = record.get("sentence")
        return TextEntry(text_id, tuple(ids), self.image_names[text_id], text if isinstance(text, str) else None)


def _read_vocabulary(file: Path) -> Vocabulary:
    meta = read_json(file, "the word pieces of a text database: UNK, CLS, SEP, MASK, v_range")
    numbers: list[Any] = [meta.get(key) for key in ("UNK", "CLS", "SEP", "MASK")] if isinstance(meta, dict) else []
    words = meta.get("v_range") if isinstance(meta, dict) else None
    numbers += words if isinstance(words, list) else []
    if len(numbers) != 6 or not all(type(number) is int for number in numbers):
        raise InputError(
            f"{file} lacks one of UNK, CLS, SEP, MASK (integers) and v_range (two integers); fetch or build it again."
        )
    return Vocabulary(str(meta.get("tokenizer", "unknown")), *numbers)


def _compare(found: Vocabulary, expected: Vocabulary, path: Path) -> None:
    # Not by name: the same tokenizer has one as a model and another as a folder.
    for what in ("cls", "sep", "unk", "mask", "size"):
        if getattr(found, what) != getattr(expected, what):
            raise InputError(
                f"{path} was made with the word pieces of {found.tokenizer!r} ({what} {getattr(found, what)}) and the network "
                f"has those of {expected.tokenizer!r} ({what} {getattr(expected, what)}): build the text database again for it."
            )


class TextDatabaseWriter:
    """Writes a text database, whole or not at all: it gets its name when it is closed without an error.

    Args:
        path: the folder to make.
        tokenize_word: the ids of one word's pieces, without special ones.
        vocabulary: what those ids belong to.
        of: the files that the texts come from.

    Raises:
        InputError: the folder exists.
        OSError: here and in all that writes, the disk is full or refuses; nothing is left then.
    """

    def __init__(
        self,
        path: Path,
        tokenize_word: Callable[[str], Sequence[int]],
        vocabulary: Vocabulary | None = None,
        of: Sequence[Path] = (),
    ) -> None:
        self.path, self._tokenize_word, self._of = Path(path), tokenize_word, of
        self._vocabulary = vocabulary or Vocabulary()
        if self.path.exists():
            raise InputError(f"{self.path} exists; remove it, or give the text database another name.")
        self._whole = whole_folder(self.path)
        self._partial = self._whole.__enter__()
        try:
            self._environment = open_for_writing(self._partial)
        except BaseException:
            self._whole.__exit__(*sys.exc_info())
            raise
        self._pending: dict[bytes, bytes | None] = {}
        self._lengths: dict[str, int] = {}
        self._image_names: dict[str, str] = {}

    def add(self, text_id: str, image_name: str, text: str) -> None:
        """Tokenizes and writes a text about an image.

        Raises:
            InputError: the id was used, the text has no word pieces, or one of them is outside of the vocabulary.
        """
        ids = [piece for word in word_pieces_of(text, self._tokenize_word) for piece in word]
        if text_id in self._lengths:
            raise InputError(f"{self.path}: text id {text_id!r} appears twice; ids are unique in a database.")
        if not 1 <= len(text_id.encode()) <= 511:
            raise InputError(f"{self.path}: text id {text_id!r} does not have 1 to 511 bytes.")
        if not ids or not 0 <= min(ids) <= max(ids) < self._vocabulary.size:
            raise InputError(
                f"{self.path}: text {text_id!r} ({text!r}) has the word pieces {ids}; expected at least one, each below "
                f"{self._vocabulary.size} ({self._vocabulary.tokenizer})."
            )
        record = {"id": text_id, "input_ids": ids, "img_fname": image_name, "sentence": text}
        self._pending[text_id.encode()] = packed_text(record)
        self._lengths[text_id], self._image_names[text_id] = len(ids), image_name
        if len(self._pending) >= 1000:
            put_value(self._environment, self._pending)
            self._pending = {}

    def close(self) -> None:
        """Writes what is left and the four JSON files, and gives the folder its name."""
        try:
            put_value(self._environment, self._pending)
            self._environment.close()
            self._write_tables()
        except BaseException:
            self._give_up(*sys.exc_info())
            raise
        self._whole.__exit__(None, None, None)

    def _give_up(self, *error: Any) -> None:
        self._environment.close()
        self._whole.__exit__(*error)

    def _write_tables(self) -> None:
        image_texts: dict[str, list[str]] = {}
        for identity, image in self._image_names.items():
            image_texts.setdefault(image, []).append(identity)
        words = self._vocabulary
        meta = {
            "tokenizer": words.tokenizer,
            "UNK": words.unk,
            "CLS": words.cls,
            "SEP": words.sep,
            "MASK": words.mask,
            "v_range": [words.first_word, words.size],
        }
        files = {"meta": meta, "id2len": self._lengths, "txt2img": self._image_names, "img2txts": image_texts}
        for name, content in files.items():
            (self._partial / f"{name}.json").write_text(json.dumps(content))
        if self._of:
            note_origins(self._partial / ORIGINS, [self._partial / "data.mdb"], self._of)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._give_up(kind, error, trace)


def packed_text(record: Mapping[str, object]) -> bytes:
    """A text's value: an lz4 frame of msgpack."""
    packed: bytes = lz4.frame.compress(msgpack.packb(dict(record), use_bin_type=True))
    return packed
