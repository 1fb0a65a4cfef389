"""The JSON readers, and what they say about damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_data import karpathy

from datamodules.errors import InputError
from datamodules.formats.coco_captions import parse_coco_captions, read_coco_captions
from datamodules.formats.karpathy import parse_karpathy, read_karpathy


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_karpathy_keeps_every_sentence_and_the_file_order(tmp_path: Path) -> None:
    content = karpathy({"train": 2, "restval": 1, "val": 3})
    splits = read_karpathy(write(tmp_path / "dataset.json", content), tmp_path / "images")
    assert {split: len(records) for split, records in splits.items()} == {"train": 2, "restval": 1, "val": 3}
    second = splits["train"][1]
    assert second.image_id == "1001"
    assert second.path == tmp_path / "images" / "1001.jpg"
    expected = [(str(sentence["sentid"]), sentence["raw"]) for sentence in content["images"][1]["sentences"]]
    assert [(caption.caption_id, caption.text) for caption in second.captions] == expected
    assert sum(len(r.captions) for records in splits.values() for r in records) == 1 + 2 + 3 + 4 + 5 + 1


def test_karpathy_of_coco_uses_its_folder_and_ids(tmp_path: Path) -> None:
    splits = read_karpathy(write(tmp_path / "dataset.json", karpathy({"test": 1}, folder="val2014")), tmp_path)
    assert splits["test"][0].path == tmp_path / "val2014" / "1000.jpg"
    assert splits["test"][0].image_id == "5000"


def test_karpathy_names_duplicates_and_empty_entries(tmp_path: Path) -> None:
    content = karpathy({"train": 4})
    content["images"][1]["sentences"][0]["sentid"] = 0
    content["images"][2]["imgid"] = 0
    content["images"][3]["filename"] = "1000.jpg"
    content["images"].append({"filename": "empty.jpg", "imgid": 99, "split": "val", "sentences": []})
    path = write(tmp_path / "dataset.json", content)
    problems = [(problem.kind, problem.text) for problem in parse_karpathy(path, tmp_path).problems]
    assert problems == [
        ("duplicated id", "images[1] (1001.jpg) repeats sentid 0"),
        ("duplicated id", "images[2] (1002.jpg) repeats imgid 0"),
        ("duplicated id", "images[3] (1000.jpg) of train repeats image 1000 of train"),
        ("image without captions", "image empty (empty.jpg)"),
    ]
    with pytest.raises(InputError, match=r"4 problem\(s\).*entries:\n.*repeats sentid 0\n.*\n.*\n  and 1 more"):
        read_karpathy(path, tmp_path)


def test_truncated_json_names_file_and_expectation(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(karpathy({"train": 3}))[:-40])
    with pytest.raises(
        InputError, match=r"dataset\.json is not valid JSON .*Karpathy split file.*not copied or downloaded completely"
    ):
        read_karpathy(path, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the top level is a JSON list, not an object"),
        ({"annotations": []}, "has no 'images'"),
        ({"images": [3]}, r"images\[0\] is a JSON number"),
        ({"images": [{"filename": "a.jpg", "imgid": 0, "sentences": []}]}, r"images\[0\]: has no 'split'"),
        ({"images": [{"filename": 7, "imgid": 0, "split": "train"}]}, r"'filename' is a JSON number, not a string"),
        (
            {"images": [{"filename": "a.jpg", "imgid": 0, "split": "train", "sentences": [{"sentid": 0}]}]},
            r"images\[0\]\.sentences\[0\]: has no 'raw'",
        ),
    ],
)
def test_json_of_another_format_names_place_and_key(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_karpathy(write(tmp_path / "d.json", content), tmp_path)
    assert "d.json" in str(caught.value)
    assert "expected a Karpathy split file" in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json does not exist"):
        read_karpathy(tmp_path / "absent.json", tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xd8\xff\xe0 no json")
    with pytest.raises(InputError, match=r"binary\.json is not a text file"):
        read_coco_captions(tmp_path / "binary.json", tmp_path)


def coco(images: list[tuple[int, str]], captions: list[tuple[int, int, str]]) -> dict[str, Any]:
    return {
        "images": [{"id": identity, "file_name": name} for identity, name in images],
        "annotations": [{"id": identity, "image_id": image, "caption": text} for identity, image, text in captions],
    }


def test_official_captions(tmp_path: Path) -> None:
    content = coco([(7, "7.jpg"), (3, "3.jpg")], [(1, 3, "a cat"), (2, 7, "a dog"), (3, 3, "the cat ")])
    records = read_coco_captions(write(tmp_path / "captions_val2017.json", content), tmp_path / "val2017")
    assert [record.image_id for record in records] == ["7", "3"]
    assert [caption.text for caption in records[1].captions] == ["a cat", "the cat "]
    assert records[0].path == tmp_path / "val2017" / "7.jpg"


def test_official_captions_name_every_problem(tmp_path: Path) -> None:
    content = coco(
        [(7, "7.jpg"), (7, "again.jpg"), (8, "8.jpg")],
        [(1, 7, "a dog"), (1, 7, "twice"), (2, 99, "no image"), (3, 7, "  ")],
    )
    path = write(tmp_path / "captions.json", content)
    parsed = parse_coco_captions(path, tmp_path)
    assert [(problem.kind, problem.text) for problem in parsed.all_problems()] == [
        ("duplicated id", "images[1] (again.jpg) repeats image id 7"),
        ("duplicated id", "annotations[1] repeats caption id 1"),
        ("caption without image", "caption 2 names image 99, which images[] does not list"),
        ("image without captions", "image 8 (8.jpg)"),
        ("empty caption", "caption 3 of image 7"),
    ]
    with pytest.raises(InputError, match=r"captions\.json has 5 problem"):
        read_coco_captions(path, tmp_path)
