"""The rules that every data set obeys, in a run and in `data check` alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.formats.parsing import Parsed
from datamodules.formats.problems import broken_rules
from datamodules.image_text import ImageTextDataModule
from datamodules.prepare.check import check
from datamodules.records import Caption, ImageRecord


def record(name: str, *texts: str) -> ImageRecord:
    captions = tuple(Caption(f"{name}#{place}", text) for place, text in enumerate(texts or ("a dog",)))
    return ImageRecord(name, Path(f"/data/{name}.jpg"), captions)


A, B, C = record("a"), record("b"), record("c", "one", "two")
BROKEN: dict[str, tuple[dict[str, list[ImageRecord]], list[tuple[str, str]]]] = {
    "sound": ({"train": [A, B], "val": [C]}, []),
    "in two splits": ({"train": [A, B], "test": [C, A]}, [("image in several splits", "image a is in train, test")]),
    "twice in a split": ({"test": [A, B, A, A]}, [("duplicated id", "image a is 3 times in test")]),
    "both": (
        {"train": [A], "val": [B, B], "test": [A, A]},
        [
            ("duplicated id", "image b is 2 times in val"),
            ("image in several splits", "image a is in train, test"),
            ("duplicated id", "image a is 2 times in test"),
        ],
    ),
    "one file": (
        {"train": [A, replace(B, path=A.path)]},
        [("shared image file", "images a and b are the same file, /data/a.jpg")],
    ),
    "captions": (
        {"train": [A, replace(B, captions=A.captions)]},
        [("duplicated id", "caption a#0 of image b is twice in train")],
    ),
    "the same caption id in another split": ({"train": [A], "test": [replace(B, captions=A.captions)]}, []),
    "no words": ({"train": [record("a", " \t\u200b"), B]}, [("empty caption", "caption a#0 of image a")]),
    "token ids": ({"train": [replace(A, captions=(Caption("1", "", token_ids=(5,)),))]}, []),
    "no token": (
        {"train": [replace(A, captions=(Caption("1", "", token_ids=()),))]},
        [("empty caption", "caption 1 of image a")],
    ),
    "half a character": (
        {"train": [record("a", "a red cube \ud83d"), record("ü", "é")]},
        [("broken text", "caption a#0 of image a has half a character (a surrogate)")],
    ),
    "half a character in an id": (
        {"train": [record("\ud83d")]},
        [("broken text", "the id of image \ud83d is no sound Unicode")],
    ),
}


class Own(ImageTextDataModule):
    """Of a user: gives what it is given."""

    name = "own"

    def __init__(self, splits: dict[str, list[ImageRecord]]) -> None:
        super().__init__("/data", ".", num_workers=0)
        self.given = splits

    def parse(self) -> Parsed:
        return Parsed(Path("/data/own.csv"), self.given)

    def require_files(self) -> None: ...

    def annotation_files(self) -> list[Path]:
        return []


@pytest.mark.parametrize("splits, expected", BROKEN.values(), ids=BROKEN)  # noqa: PT006
def test_a_run_and_a_check_find_the_same(splits: dict[str, list[ImageRecord]], expected: list[tuple[str, str]]) -> None:
    assert list(broken_rules(splits)) == expected
    data = Own(splits)
    report = check(data, workers=1, progress=False)
    "\n".join(report.lines()).encode()  # can be printed
    found = [(problem.kind, problem.text) for problem in report.problems]
    assert [problem for problem in found if problem[0] != "missing image"] == expected
    if not expected:
        assert data.splits() == {split: len(records) for split, records in splits.items()}
        return
    with pytest.raises(InputError, match=rf"/data/own\.csv has {len(expected)} problem") as caught:
        data.splits()
    assert f"{expected[0][0]}: " in str(caught.value)
    str(caught.value).encode()  # can be printed
    with pytest.raises(InputError, match="problem"):
        data.every_image()
