"""UNITER's text databases from Karpathy's split files. The released code has none for retrieval; the rules are those of its
prepro.py: a caption is split at white space and tokenized word by word, special tokens are not stored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import track

from datamodules.errors import InputError
from datamodules.formats.karpathy import read_karpathy
from datamodules.formats.uniter.text_database import TextDatabaseWriter, Vocabulary
from datamodules.loading.tokens import Tokenizer
from datamodules.records import ImageRecord

Names = Literal["released", "stem"]

_NUMBERED = re.compile(r"(?:COCO_(?P<coco>train2014|val2014|test2015)_)?(?P<number>[0-9]{1,12})")


def region_name(image: Path, names: Names = "released") -> str:
    """The key of an image in its image database.

    "released" is the naming of UNITER's files: flickr30k_000000036979.npz of 36979.jpg, coco_val2014_000000000042.npz of
    COCO_val2014_000000000042.jpg. "stem" is the file's own name with .npz.

    Raises:
        InputError: "released", and the file is named neither as COCO's nor as Flickr30k's are.
    """
    if names == "stem":
        return f"{image.stem}.npz"
    found = _NUMBERED.fullmatch(image.stem)
    if found is None:
        raise InputError(
            f"image {image.name} has no name in UNITER's image databases: those are of COCO_val2014_000000000042.jpg and "
            "36979.jpg and their like. Name regions by the image's own name (names: stem)."
        )
    prefix = f"coco_{found['coco']}" if found["coco"] else "flickr30k"
    return f"{prefix}_{int(found['number']):012d}.npz"


def write_text_databases(
    annotations: Path, kind: str, tokenizer: Tokenizer, out: Path, names: Names = "released"
) -> dict[Path, int]:
    """Writes `out/itm_KIND_SPLIT.db` for every split of a Karpathy file ("restval" has its own, as released), each whole or not
    at all, with progress. Text ids are the file's `sentid`.

    Args:
        annotations: Karpathy's file.
        kind: "coco", "flickr30k", ...: what the databases are called.
        tokenizer: of the network that will read them; of BERT's kind.
        out: folder of the databases; made when missing.
        names: what images are called in the image database, see `region_name`.

    Returns:
        Each database with its number of texts.

    Raises:
        InputError: the file is not a Karpathy file, a database is there already, the tokenizer lacks BERT's special tokens, or a
            caption gives no word pieces.
    """
    vocabulary = _vocabulary(tokenizer)
    splits = read_karpathy(annotations, annotations.parent)
    paths = {split: out / f"itm_{kind}_{split}.db" for split in splits}
    there = [str(path) for path in paths.values() if path.exists()]
    if there:
        raise InputError(f"{', '.join(there)} exist(s) already; remove what is to be built again, or give another --out.")
    named = {split: [region_name(record.path, names) for record in records if record.path] for split, records in splits.items()}
    written = {}
    for split, records in splits.items():
        written[paths[split]] = _write(paths[split], records, named[split], tokenizer, vocabulary, annotations)
    return written


def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    its = tokenizer._tokenizer
    special = {name: getattr(its, f"{name}_token_id") for name in ("unk", "cls", "sep", "mask")}
    missing = [name for name, number in special.items() if number is None]
    if missing:
        raise InputError(
            f"tokenizer {tokenizer.name} has no {', '.join(missing)} token; text databases hold the word pieces of a tokenizer "
            "like BERT's, such as bert-base-cased."
        )
    # UNITER's prepro.py takes "!" for the first word: in BERT's vocabularies all that comes before is special or unused.
    exclamation = its.convert_tokens_to_ids("!")
    first_word = max(special.values()) + 1 if exclamation in (None, special["unk"]) else exclamation
    return Vocabulary(tokenizer.name, **special, first_word=first_word, size=tokenizer.vocabulary_size)


def _write(
    path: Path,
    records: Sequence[ImageRecord],
    names: Sequence[str],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    annotations: Path,
) -> int:
    known: dict[str, list[int]] = {}  # captions repeat their words

    def pieces(word: str) -> list[int]:
        if word not in known:
            known[word] = tokenizer.ids([word])[0]
        return known[word]

    texts = 0
    console = Console(stderr=True)
    hidden = not console.is_terminal
    pairs = zip(names, records, strict=True)
    with TextDatabaseWriter(path, pieces, vocabulary, [annotations]) as writer:
        for name, record in track(pairs, path.name, len(records), console=console, transient=True, disable=hidden):
            for caption in record.captions:
                writer.add(caption.caption_id, name, caption.text)
                texts += 1
    return texts
