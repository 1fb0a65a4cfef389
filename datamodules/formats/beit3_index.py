"""Reader and writer of BEiT-3's index files for retrieval: {coco_retrieval,flickr30k}.{train,val,test}.jsonl.

One JSON object a line is one image-text pair: `image_path` (relative to the data root), `text_segment` (ids of BEiT-3's
tokenizer without begin and end token) and `image_id` (running number of the image in its file).
Official file: unilm/beit3/datasets.py, RetrievalDataset and _make_retrieval_coco_karpathy_dataset_index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from datamodules.errors import InputError, shown
from datamodules.files.json_file import DECODER, why
from datamodules.files.origins import require_current
from datamodules.files.text import open_text
from datamodules.formats.parsing import Entry, Parsed
from datamodules.records import Caption, FileIds, ImageRecord

IndexKind = Literal["coco", "flickr30k"]
EXPECTED = 'a BEiT-3 index ({"image_path": "...", "text_segment": [ids], "image_id": 0} on each line)'

SPLITS = ("train", "val", "test")
_NAMES: dict[IndexKind, str] = {"coco": "coco_retrieval.{}.jsonl", "flickr30k": "flickr30k.{}.jsonl"}
TOGETHER = 4096  # captions tokenized at once
_MOST_IDS = 1 << 31  # of any vocabulary
BEIT3_IDS = FileIds("BEiT-3's tokenizer", 0, 1, 2, 3)
"""What the captions of an index are, and those of any data set without text databases: nothing else holds ids."""


def index_files(kind: IndexKind) -> dict[str, list[str]]:
    """The official file names of each split."""
    return {split: [_NAMES[kind].format(split)] for split in SPLITS}


def require_current_index(kind: IndexKind, folder: Path, files: Iterable[Path], annotations: Path) -> None:
    """See that index files that were made here were made of Karpathy's file as it is now, if it is there.

    Raises:
        InputError: they were made of another.
    """
    remedy = f"To build them again: {how_to_write(kind, folder)} --overwrite."
    require_current(origins_note(kind, folder), files, [annotations], remedy)


def origins_note(kind: IndexKind, folder: Path) -> Path:
    """The note of what the index files in a folder were made of."""
    return folder / _NAMES[kind].format("made_of").replace(".jsonl", ".json")


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
        if any(type(token) is not int or not 0 <= token < _MOST_IDS for token in ids):
            raise InputError(f"{path}: line {number}: 'text_segment' is not a list of token ids from 0; expected {EXPECTED}.")
        if path_of.setdefault(image_id, image_path) != image_path:
            parsed.add("duplicated id", f"line {number} gives {image_path} the image_id {image_id} of {path_of[image_id]}")
        if id_of.setdefault(image_path, image_id) != image_id:
            parsed.add("duplicated id", f"line {number} gives {image_path} image_id {image_id}, it had {id_of[image_path]}")
        if image_path not in captions:
            captions[pair.file("image_path")] = []
        of_image = captions[image_path]
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
    if not path.exists() and not path.is_symlink():
        raise InputError(f"{path} does not exist; expected {EXPECTED} there (`crosslight data index` writes it).")
    with open_text(path, EXPECTED) as lines:
        yield from lines


def _json(line: str, path: Path, number: int) -> object:
    try:
        return DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: line {number} is not valid JSON ({why(error)}): {shown(line.strip(), 60)}; expected {EXPECTED}. Where it "
            "ends too early the file was not copied completely."
        ) from None
