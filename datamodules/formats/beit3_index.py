"""Reader and writer of BEiT-3's index files for retrieval: {coco_retrieval,flickr30k}.{train,val,test}.jsonl.

One JSON object a line is one image-text pair: `image_path` (relative to the data root), `text_segment` (ids of BEiT-3's
tokeniser without begin and end token) and `image_id` (running number of the image in its file).
Official file: unilm/beit3/datasets.py, RetrievalDataset and _make_retrieval_coco_karpathy_dataset_index.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from datamodules.errors import InputError
from datamodules.formats import karpathy
from datamodules.formats.parsing import Entry, Parsed, read_json
from datamodules.records import Caption, ImageRecord
from datamodules.tokens import Tokeniser

IndexKind = Literal["coco", "flickr30k"]
EXPECTED = 'a BEiT-3 index ({"image_path": "...", "text_segment": [ids], "image_id": 0} on each line)'

_SPLITS = ("train", "val", "test")
_NAMES: dict[IndexKind, str] = {"coco": "coco_retrieval.{}.jsonl", "flickr30k": "flickr30k.{}.jsonl"}
_TOGETHER = 4096  # captions tokenised at once


def index_files(kind: IndexKind) -> dict[str, list[str]]:
    """The official file names of each split."""
    return {split: [_NAMES[kind].format(split)] for split in _SPLITS}


def how_to_write(kind: IndexKind, root: Path) -> str:
    """What an error about a missing index file advises."""
    return f"write it from Karpathy's split with `crosslight data index {kind} {root} --spm beit3.spm`"


# ------------------------------------------------------------------------------------------------------------ reading


def parse_index(path: Path, image_root: Path, split: str = "all") -> Parsed:
    """The file's images with their captions as one split named `split`, in the order of their first lines, and its problems.

    `image_id` of a record is the image's path in the file, since the file's own numbers start at 0 in every split. Captions have
    `token_ids` and the text "".

    Raises:
        InputError: the file is missing, cut short, empty, or not of this format; names the line.
    """
    parsed = Parsed(path)
    image_root = image_root.absolute()
    path_of: dict[str, str] = {}
    id_of: dict[str, str] = {}
    captions: dict[str, list[Caption]] = {}
    same: dict[int, int] = {}  # one object for an id wherever it occurs: COCO's captions have seven million tokens
    for number, line in enumerate(_lines(path), 1):
        pair = Entry(_json(line, path, number), path, f"line {number}", EXPECTED)
        image_path, ids, image_id = pair.text("image_path"), pair.items("text_segment"), pair.identity("image_id")
        if any(type(token) is not int or token < 0 for token in ids):
            raise InputError(f"{path}: line {number}: 'text_segment' is not a list of token ids from 0; expected {EXPECTED}.")
        if not ids:
            parsed.add("empty caption", f"line {number} has no token for {image_path}")
        if path_of.setdefault(image_id, image_path) != image_path:
            parsed.add("duplicated id", f"line {number} gives {image_path} the image_id {image_id} of {path_of[image_id]}")
        if id_of.setdefault(image_path, image_id) != image_id:
            parsed.add("duplicated id", f"line {number} gives {image_path} image_id {image_id}, it had {id_of[image_path]}")
        of_image = captions.setdefault(image_path, [])
        of_image.append(Caption(f"{image_path}#{len(of_image)}", "", token_ids=tuple(map(same.setdefault, ids, ids))))
    if not captions:
        raise InputError(f"{path} holds no image-text pair; expected {EXPECTED}.")
    parsed.splits[split] = [ImageRecord(name, image_root / name, tuple(texts)) for name, texts in captions.items()]
    return parsed


def read_index(path: Path, image_root: Path) -> list[ImageRecord]:
    """The images of an index file with their captions (see `parse_index`).

    Raises:
        InputError: the file is missing, cut short, empty, not of this format, or has captions without tokens or image ids that
            contradict each other.
    """
    return parse_index(path, image_root).valid()["all"]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            yield from lines
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected {EXPECTED} there (`crosslight data index` writes it).") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected {EXPECTED}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; expected {EXPECTED}.") from error


def _json(line: str, path: Path, number: int) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: line {number} is not valid JSON ({error.msg} at column {error.colno}); expected {EXPECTED}. A file that "
            "ends too early was not copied completely: fetch or write it again."
        ) from error


# ------------------------------------------------------------------------------------------------------------ writing


def index_lines(annotations: Path, kind: IndexKind, tokeniser: Tokeniser) -> dict[str, list[str]]:
    """The official index of each split (train with restval) from Karpathy's file, a string with line end for each pair.

    Raises:
        InputError: the file is missing, not Karpathy's, names an image twice, or has no train, val and test images.
    """
    images = Entry(read_json(annotations, karpathy.EXPECTED), annotations, "the top level", karpathy.EXPECTED).items("images")
    number_of: dict[str, dict[str, int]] = {split: {} for split in _SPLITS}
    pairs: dict[str, list[tuple[str, str]]] = {split: [] for split in _SPLITS}
    for row, value in enumerate(images):
        image = Entry(value, annotations, f"images[{row}]", karpathy.EXPECTED)
        split = image.text("split")
        split = "train" if kind == "coco" and split == "restval" else split
        if split not in _SPLITS:
            continue
        folder = image.text("filepath") if kind == "coco" else "flickr30k-images"
        path = f"{folder}/{image.text('filename')}"
        if path in number_of[split]:
            raise InputError(f"{annotations}: images[{row}] repeats {path}; remove one of the two.")
        number_of[split][path] = len(number_of[split])
        for position, sentence in enumerate(image.items("sentences")):
            place = f"images[{row}].sentences[{position}]"
            pairs[split].append((path, Entry(sentence, annotations, place, karpathy.EXPECTED).text("raw")))
    if lacking := [split for split in _SPLITS if not pairs[split]]:
        raise InputError(f"{annotations} has no captions of {', '.join(lacking)}; expected {karpathy.EXPECTED}.")
    lines: dict[str, list[str]] = {}
    for split, of_split in pairs.items():
        lines[split] = []
        for first in range(0, len(of_split), _TOGETHER):
            some = of_split[first : first + _TOGETHER]
            for (path, _), ids in zip(some, tokeniser.ids([raw for _, raw in some]), strict=True):
                pair = {"image_path": path, "text_segment": ids, "image_id": number_of[split][path]}
                lines[split].append(json.dumps(pair) + "\n")
    return lines


def write_index(
    annotations: Path, kind: IndexKind, folder: Path, tokeniser: Tokeniser, overwrite: bool = False
) -> dict[Path, int]:
    """Write the official index files to a folder; the pairs in each.

    Raises:
        InputError: as `index_lines`; or a file is there already and may not be overwritten, or cannot be written.
    """
    targets = {split: folder / names[0] for split, names in index_files(kind).items()}
    there = [str(path) for path in targets.values() if path.exists()]
    if there and not overwrite:
        raise InputError(f"{', '.join(there)} exist(s) already; give --overwrite to replace.")
    lines = index_lines(annotations, kind, tokeniser)
    for split, path in targets.items():
        part = path.with_name(path.name + ".part")
        try:
            part.write_text("".join(lines[split]), encoding="utf-8", newline="\n")
            part.replace(path)  # whole or not at all
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}).") from error
    return {path: len(lines[split]) for split, path in targets.items()}
