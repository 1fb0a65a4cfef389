"""Writes the index files of the official BEiT-3 code: captions as token ids, one line an image and caption."""

from __future__ import annotations

import json
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.json_file import read_json
from datamodules.files.origins import note_origins
from datamodules.formats import karpathy
from datamodules.formats.beit3_index import SPLITS, TOGETHER, IndexKind, index_files, origins_note
from datamodules.formats.parsing import Entry
from datamodules.loading.tokens import Tokenizer


def index_lines(annotations: Path, kind: IndexKind, tokenizer: Tokenizer) -> dict[str, list[str]]:
    """The official index of each split (train with restval) from Karpathy's file, a string with line end for each pair.

    Raises:
        InputError: the file is missing, not Karpathy's, names an image twice, or has no train, val and test images.
    """
    images = Entry(read_json(annotations, karpathy.EXPECTED), annotations, "the top level", karpathy.EXPECTED).items("images")
    number_of: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    pairs: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for row, value in enumerate(images):
        image = Entry(value, annotations, f"images[{row}]", karpathy.EXPECTED)
        split = image.text("split")
        split = "train" if kind == "coco" and split == "restval" else split
        if split not in SPLITS:
            continue
        folder = image.file("filepath") if kind == "coco" else "flickr30k-images"
        path = f"{folder}/{image.file('filename')}"
        if any(path in known for known in number_of.values()):
            raise InputError(f"{annotations}: images[{row}] repeats {path}; remove one of the two.")
        number_of[split][path] = len(number_of[split])
        for position, sentence in enumerate(image.items("sentences")):
            place = f"images[{row}].sentences[{position}]"
            pairs[split].append((path, Entry(sentence, annotations, place, karpathy.EXPECTED).text("raw")))
    if lacking := [split for split in SPLITS if not pairs[split]]:
        raise InputError(f"{annotations} has no captions of {', '.join(lacking)}; expected {karpathy.EXPECTED}.")
    lines: dict[str, list[str]] = {}
    for split, of_split in pairs.items():
        lines[split] = []
        for first in range(0, len(of_split), TOGETHER):
            some = of_split[first : first + TOGETHER]
            for (path, _), ids in zip(some, tokenizer.ids([raw for _, raw in some]), strict=True):
                pair = {"image_path": path, "text_segment": ids, "image_id": number_of[split][path]}
                lines[split].append(json.dumps(pair) + "\n")
    return lines


def write_index(
    annotations: Path, kind: IndexKind, folder: Path, tokenizer: Tokenizer, overwrite: bool = False
) -> dict[Path, int]:
    """Write the official index files to a folder; the pairs in each.

    Raises:
        InputError: as `index_lines`; or a file is there already and may not be overwritten, or cannot be written.
    """
    targets = {split: folder / names[0] for split, names in index_files(kind).items()}
    there = [str(path) for path in targets.values() if path.exists()]
    if there and not overwrite:
        raise InputError(f"{', '.join(there)} exist(s) already; give --overwrite to replace.")
    lines = index_lines(annotations, kind, tokenizer)
    for split, path in targets.items():
        try:
            write_atomically(path, "".join(lines[split]))
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}).") from error
    note_origins(origins_note(kind, folder), targets.values(), [annotations])
    return {path: len(lines[split]) for split, path in targets.items()}
