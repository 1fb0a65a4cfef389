"""What can be wrong with a data set, and the rules that all of them obey, own ones too: a run and `crosslight data check` refuse
the same.

What only a reader sees (a row that repeats an id, a caption without its image) the reader says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from datamodules.records import ImageRecord

ProblemKind = Literal[
    "missing image",
    "unreadable image",
    "duplicated id",
    "shared image file",
    "caption without image",
    "image without captions",
    "empty caption",
    "broken text",
    "image in several splits",
    "unreadable annotation",
    "unknown split",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `where` names the file, `text` says what (with the key or id)."""

    kind: ProblemKind
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.text}"


def broken_rules(splits: Mapping[str, Sequence[ImageRecord]]) -> Iterator[tuple[ProblemKind, str]]:
    """What breaks a rule, as kind and text: an image is once in its data set, and so is its file; a caption's id is once in its
    split; its text has words, and is sound Unicode.

    Captions that are made when they are asked for (`ImageRecord.captions` that is no tuple or list) are not looked at.
    """
    first_split: dict[str, str] = {}
    repeated: dict[str, list[str]] = defaultdict(list)
    id_of_file: dict[str, str] = {}
    for split, records in splits.items():
        caption_ids: set[str] = set()
        for record in records:
            image_id = record.image_id
            if image_id in first_split:
                repeated[image_id].append(split)
                continue
            first_split[image_id] = split
            if not is_sound(image_id):
                yield "broken text", f"the id of image {image_id} is no sound Unicode"
            if record.path is not None and (other := id_of_file.setdefault(str(record.path), image_id)) != image_id:
                yield "shared image file", f"images {other} and {image_id} are the same file, {record.path}"
            for caption in record.captions if isinstance(record.captions, (tuple, list)) else ():
                if caption.caption_id in caption_ids:
                    yield "duplicated id", f"caption {caption.caption_id} of image {image_id} is twice in {split}"
                caption_ids.add(caption.caption_id)
                if not caption.token_ids and not has_words(caption.text):
                    yield "empty caption", f"caption {caption.caption_id} of image {image_id}"
                if not is_sound(caption.text):
                    yield "broken text", f"caption {caption.caption_id} of image {image_id} has half a character (a surrogate)"
    for image_id, others in repeated.items():
        first = first_split[image_id]
        if places := [split for split in dict.fromkeys(others) if split != first]:
            yield "image in several splits", f"image {image_id} is in {', '.join([first, *places])}"
        for split in dict.fromkeys([first, *others]):
            if (count := others.count(split) + (split == first)) > 1:
                yield "duplicated id", f"image {image_id} is {count} times in {split}"


def has_words(text: str) -> bool:
    """Whether there is anything to read in a text."""
    return any(sign.isprintable() and not sign.isspace() for sign in text)


def is_sound(text: str) -> bool:
    """Whether a text can be written: JSON's escapes can name half of a pair of surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
