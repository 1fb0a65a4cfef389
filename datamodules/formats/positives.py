"""Reader of right answers beyond a data set's own captions: the two files of each set that the package eccv_caption ships.

NAME_image_to_caption.json, NAME_caption_to_image.json: an object from an id of a query to a list of ids of its right answers. Ids
are COCO's, of images and of annotations (Karpathy's `cocoid` and `sentid`). eccv is ECCV Caption, cxc Crisscrossed Captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.json_file import read_json
from datamodules.formats.parsing import Entry

EXPECTED = "an object from the id of a query to the list of the ids of its right answers"


@dataclass(frozen=True)
class PositiveIds:
    """Right answers by id.

    Args:
        captions_of: Of each image query.
        images_of: Of each caption query.
    """

    captions_of: Mapping[str, tuple[str, ...]]
    images_of: Mapping[str, tuple[str, ...]]


def positive_files(folder: Path, name: str) -> tuple[Path, Path]:
    """Captions of images, images of captions."""
    return folder / f"{name}_image_to_caption.json", folder / f"{name}_caption_to_image.json"


def read_positives(folder: Path, name: str) -> PositiveIds:
    """Both files of a set.

    Raises:
        InputError: A file is missing, damaged or of another format, or a query has no answer, or one twice.
    """
    return PositiveIds(*(_read(path) for path in positive_files(folder, name)))


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    top = Entry(read_json(path, EXPECTED), path, "the top level", EXPECTED)
    found = {}
    for query in top.value:
        answers = top.items(query)
        for answer in answers:
            if isinstance(answer, bool) or not isinstance(answer, (int, str)):
                raise InputError(f"{path}: query {query!r}: {answer!r} is no id; expected {EXPECTED}.")
        ids = tuple(map(str, answers))
        if not ids or len(set(ids)) != len(ids):
            what = "has no right answer" if not ids else "has a right answer twice"
            raise InputError(f"{path}: query {query!r} {what}; correct it, or take it out.")
        found[query] = ids
    if not found:
        raise InputError(f"{path} has no query; expected {EXPECTED}.")
    return found
