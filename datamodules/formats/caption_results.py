"""Captions that a model wrote, in coco-caption's results format, which EvalAI's captioning challenges (COCO, NoCaps) take too.

One JSON list of {"image_id", "caption"}, one entry an image, for every image of the split. Ids that are whole numbers are written
as such, as COCO's references have them: coco-caption compares 42 and "42" as different. An image that is known by its file alone
has the number in the names of COCO's files as its id, elsewhere the file's name without folder and ending (`image_id_of`).
Source: https://cocodataset.org/#format-results, https://github.com/tylin/coco-caption
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.json_file import read_json
from datamodules.formats.parsing import Entry
from datamodules.formats.problems import Problem, ProblemKind, is_sound

EXPECTED = "caption results (a list of {image_id, caption})"

_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})")  # of COCO's 2014 and 2017 files
_ODD = re.compile(r"[^\S ]|  |^ | $")  # white space other than single spaces between words


@dataclass(slots=True)
class CaptionResults:
    """The captions of a results file by image id, in the file's order, and its problems.

    White space of every kind is made single spaces: coco-caption's tokenizer takes a line for a caption, so that one with "\\r",
    "\\x0b" or U+2028 in it would shift all that follow. `odd_white_space` lists the images where that changed more than the ends.
    """

    path: Path
    captions: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    odd_white_space: list[str] = field(default_factory=list)

    def add(self, kind: ProblemKind, text: str) -> None:
        self.problems.append(Problem(kind, str(self.path), text))

    def valid(self, empty: bool = False) -> dict[str, str]:
        """The captions by image id.

        Args:
            empty: Whether captions may be empty: BLEU, ROUGE, CIDEr and METEOR count them as 0.

        Raises:
            InputError: there are problems; the message shows the first three.
        """
        problems = [problem for problem in self.problems if not (empty and problem.kind == "empty caption")]
        if problems:
            shown = "\n  ".join(f"{problem.kind}: {problem.text}" for problem in problems[:3])
            more = len(problems) - 3
            rest = f"\n  and {more:,} more" if more > 0 else ""
            raise InputError(
                f"{self.path} has {len(problems):,} problem(s); there must be one caption for each image of the references, and "
                f"no other:\n  {shown}{rest}"
            )
        return self.captions


def image_id_of(stem: str) -> str:
    """The id of an image of which only the file's name is known (here without its ending)."""
    number = _COCO_NAME.fullmatch(stem)
    return str(int(number[1])) if number else stem


def parse_caption_results(path: Path, image_ids: Collection[str] | None = None) -> CaptionResults:
    """A results file. `image_ids` are those of the references: each must have exactly one caption; None leaves that unseen.

    Of several captions of an image the first is kept.

    Raises:
        InputError: the file is missing, cut short, or not of this format.
    """
    results = CaptionResults(path)
    content = read_json(path, EXPECTED)
    if not isinstance(content, list):
        raise InputError(f"{path}: the top level is not a list; expected {EXPECTED}.")
    expected = None if image_ids is None else set(image_ids)
    for row, value in enumerate(content):
        entry = Entry(value, path, f"[{row}]", EXPECTED)
        image_id, text = entry.identity("image_id"), entry.text("caption")
        if image_id in results.captions:
            results.add("duplicated id", f"[{row}] is another caption of image {image_id}")
            continue
        if expected is not None and image_id not in expected:
            results.add("caption without image", f"[{row}] names image {image_id}, which the references do not have")
            continue
        if not text.strip():
            results.add("empty caption", f"[{row}], image {image_id}")
        if not is_sound(text + image_id):
            results.add("broken text", f"[{row}], image {image_id}, has half a character (a surrogate)")
        if _ODD.search(text.strip()):
            results.odd_white_space.append(image_id)
        results.captions[image_id] = single_spaced(text)
    for image_id in dict.fromkeys(image_ids or ()):
        if image_id not in results.captions:
            results.add("image without captions", f"image {image_id} of the references")
    return results


def write_caption_results(path: Path, captions: Mapping[str, str], image_ids: Collection[str]) -> None:
    """Write a results file in the order of `image_ids`, all at once: a reader never finds half of it.

    White space becomes single spaces; empty captions are written as they are.

    Args:
        path: The file; an older one is replaced.
        captions: By image id.
        image_ids: Of the split.

    Raises:
        InputError: images without a caption, or captions of other images; the file cannot be written.
    """
    missing = [image_id for image_id in image_ids if image_id not in captions]
    known = set(image_ids)
    unknown = [image_id for image_id in captions if image_id not in known]
    if len(known) < len(image_ids):
        raise InputError(f"{path} was not written: {len(image_ids) - len(known):,} image ids of the split are repeated.")
    if missing or unknown:
        what = [
            f"{len(some):,} {name} (first: {some[0]})"
            for some, name in ((missing, "images have no caption"), (unknown, "captions are of images that the split has not"))
            if some
        ]
        raise InputError(f"{path} was not written: {' and '.join(what)}; caption every image of the split.")
    entries = [{"image_id": _as_number(image_id), "caption": single_spaced(captions[image_id])} for image_id in image_ids]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json_text(entries, indent=0))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}).") from error


def json_text(value: Any, indent: int | None = None) -> str:
    """As JSON that can be encoded: as it is but for halves of characters (surrogates), which are written as escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def single_spaced(text: str) -> str:
    """Words with single spaces between them, whatever white space or line breaks there were."""
    return " ".join(text.split())


def _as_number(image_id: str) -> int | str:
    """As JSON references have it: "0012" is not the id 12."""
    return int(image_id) if re.fullmatch(r"0|-?[1-9][0-9]*", image_id) else image_id
