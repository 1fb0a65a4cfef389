"""Caption results: what is written is what is read, and everything that would give a wrong score is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from datamodules.formats.caption_results import parse_caption_results, single_spaced, write_caption_results


def written(path: Path, entries: Any) -> Path:
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def test_written_captions_are_read_again_and_have_cocos_ids(tmp_path: Path) -> None:
    captions = {"42": "A dog.", "0": "Ein Hüttchen \U0001f3e0", "007": "A cat", "1000092795": "Two men"}
    path = tmp_path / "new" / "results.json"
    write_caption_results(path, captions, ["0", "42", "1000092795", "007"])
    assert [(entry["image_id"], entry["caption"]) for entry in json.loads(path.read_text("utf-8"))] == [
        (0, "Ein Hüttchen \U0001f3e0"),
        (42, "A dog."),
        (1000092795, "Two men"),
        ("007", "A cat"),  # not the number 7
    ]
    results = parse_caption_results(path, list(captions))
    assert results.valid() == captions
    assert list(results.captions) == ["0", "42", "1000092795", "007"]
    assert not results.odd_white_space
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


ODD = ["a\rb", "a\nb", "a\x0bb", "a\u2028b", "a\x85b", "a\u00a0b", "a  b", "a\tb", "a\x1cb"]


@pytest.mark.parametrize("text", ODD)
def test_odd_white_space_is_one_space_in_both_directions(tmp_path: Path, text: str) -> None:
    # What coco-caption's tokenizer would take for another caption, and anything that str.splitlines does.
    assert single_spaced(f" {text}\n") == "a b"
    results = parse_caption_results(written(tmp_path / "r.json", [{"image_id": 1, "caption": text}]))
    assert results.valid() == {"1": "a b"}
    assert results.odd_white_space == ["1"]
    write_caption_results(tmp_path / "w.json", {"1": text}, ["1"])
    assert json.loads((tmp_path / "w.json").read_text("utf-8"))[0]["caption"].splitlines() == ["a b"]


def test_space_at_the_ends_is_not_odd(tmp_path: Path) -> None:
    results = parse_caption_results(written(tmp_path / "r.json", [{"image_id": 1, "caption": " a dog\n"}]))
    assert (results.valid(), results.odd_white_space) == ({"1": "a dog"}, [])


def test_every_problem_is_collected(tmp_path: Path) -> None:
    entries = [
        {"image_id": 1, "caption": "a dog"},
        {"image_id": "1", "caption": "another"},
        {"image_id": 9, "caption": "unknown"},
        {"image_id": 2, "caption": " \u2028"},
    ]
    results = parse_caption_results(written(tmp_path / "r.json", entries), ["1", "2", "3", "4"])
    assert [(problem.kind, problem.text) for problem in results.problems] == [
        ("duplicated id", "[1] is another caption of image 1"),
        ("caption without image", "[2] names image 9, which the references do not have"),
        ("empty caption", "[3], image 2"),
        ("image without captions", "image 3 of the references"),
        ("image without captions", "image 4 of the references"),
    ]
    assert results.captions == {"1": "a dog", "2": ""}
    with pytest.raises(InputError, match=r"r\.json has 5 problem\(s\).*\n.*\n.*\n.*empty caption: .*\n  and 2 more"):
        results.valid()
    with pytest.raises(InputError, match=r"has 4 problem\(s\)"):
        results.valid(empty=True)


def test_empty_captions_only_where_allowed(tmp_path: Path) -> None:
    write_caption_results(tmp_path / "r.json", {"1": "", "2": "a"}, ["1", "2"])
    results = parse_caption_results(tmp_path / "r.json", ["1", "2"])
    assert results.valid(empty=True) == {"1": "", "2": "a"}
    with pytest.raises(InputError, match=r"empty caption: \[0\], image 1"):
        results.valid()


def test_without_references_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    results = parse_caption_results(written(tmp_path / "r.json", [{"image_id": "any", "caption": "a"}]))
    assert results.valid() == {"any": "a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image_id": 1}', "the top level is not a list"),
        ('[{"image_id": 1}]', r"\[0\]: has no 'caption'"),
        ('[{"caption": "a"}]', r"\[0\]: has no 'image_id'"),
        ('[{"image_id": 1.5, "caption": "a"}]', "'image_id' is a JSON number, not an integer or a string"),
        ('[{"image_id": true, "caption": "a"}]', "'image_id' is a JSON boolean"),
        ('[{"image_id": 1, "caption": ["a"]}]', "'caption' is a JSON list, not a string"),
        ('["a"]', r"\[0\] is a JSON string, not an object"),
        ('[{"image_id": 1, "capt', "not valid JSON"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(InputError, match=message):
        parse_caption_results(tmp_path / "r.json")


def test_nothing_is_written_but_the_whole_split(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("older")
    with pytest.raises(InputError, match=r"r\.json was not written: 2 images have no caption \(first: 2\); caption every"):
        write_caption_results(path, {"1": "a"}, ["1", "2", "3"])
    with pytest.raises(InputError, match=r"1 images have .* and 1 captions are of images that the split has not \(first: 5\)"):
        write_caption_results(path, {"1": "a", "5": "b"}, ["1", "2"])
    with pytest.raises(InputError, match="1 image ids of the split are repeated"):
        write_caption_results(path, {"1": "a"}, ["1", "1"])
    assert path.read_text() == "older"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"r\.json cannot be written"):
        write_caption_results(tmp_path / "file" / "r.json", {"1": "a"}, ["1"])
