"""COCO: Karpathy's split with restval, official files; what is missing is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tiny_data import karpathy, write_image

from datamodules.coco import COCO
from datamodules.errors import InputError
from datamodules.files import steps
from datamodules.files.download import Remote
from datamodules.image_text import ImageTextDataModule, Limits


def counts(data: ImageTextDataModule) -> dict[str, int]:
    return {split: len(data.records(split)) for split in data.splits()}


def coco_root(root: Path) -> Path:
    content = karpathy({"train": 4, "restval": 3, "val": 2, "test": 2}, folder="val2014")
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "dataset_coco.json").write_text(json.dumps(content))
    (root / "train2014").mkdir()
    for image in content["images"]:
        write_image(root / "val2014" / image["filename"], image["imgid"])
    return root


def test_coco_trains_on_restval_unless_told_not_to(tmp_path: Path) -> None:
    root = coco_root(tmp_path / "coco")
    assert counts(COCO(str(root))) == {"train": 7, "val": 2, "test": 2}
    assert counts(COCO(str(root), restval=False)) == {"train": 4, "restval": 3, "val": 2, "test": 2}
    (root / "annotations" / "dataset_coco.json").rename(root / "dataset_coco.json")
    assert counts(COCO(str(root))) == {"train": 7, "val": 2, "test": 2}


def official(path: Path, ids: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in ids]
    captions = [{"id": 10 * number + k, "image_id": number, "caption": f"a dog {k}"} for number in ids for k in range(2)]
    path.write_text(json.dumps({"images": images, "annotations": captions}))


def test_coco_official_files_by_year_or_joined(tmp_path: Path) -> None:
    official(tmp_path / "annotations" / "captions_train2017.json", [1, 2, 3])
    official(tmp_path / "annotations" / "captions_val2017.json", [4, 5])
    for number in range(1, 6):
        write_image(tmp_path / ("train2017" if number < 4 else "val2017") / f"{number}.jpg", number)
        write_image(tmp_path / "all" / f"{number}.jpg", number)
    assert counts(COCO(str(tmp_path), captions="official", year="2017")) == {"train": 3, "val": 2}
    files = {"test": ["annotations/captions_val2017.json", "annotations/captions_train2017.json"]}
    joined = COCO(str(tmp_path), captions="official", files=files, image_dir="all")
    assert [record.image_id for record in joined.records("test")] == ["4", "5", "1", "2", "3"]
    assert joined.records("test")[0].path == tmp_path / "all" / "4.jpg"
    twice = COCO(str(tmp_path), captions="official", files={"test": files["test"][:1] * 2}, image_dir="all")
    with pytest.raises(InputError, match="repeats image 4 of split test"):
        twice.records("test")
    with pytest.raises(InputError, match='captions to "official"'):
        COCO(str(tmp_path), files=files)


def test_missing_coco_files_name_their_source(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"dataset_coco\.json: from https://cs\.stanford.*\n.*\n.*val2014: from http://images"
    ) as caught:
        COCO(str(tmp_path)).prepare_data()
    assert "Set download to true" in str(caught.value)
    with pytest.raises(InputError, match=r"own\.json: put it there yourself"):
        COCO(str(tmp_path), captions="official", files={"test": ["own.json"]}).prepare_data()


def test_karpathys_split_with_the_images_of_2017(tmp_path: Path) -> None:
    """They are those of 2014 under their numbers; which of the two folders has one, the folders say."""
    content = karpathy({"train": 2, "restval": 1, "val": 1, "test": 1}, folder="val2014")
    for image in content["images"]:
        image["filename"] = f"COCO_val2014_{image['cocoid']:012d}.jpg"
        folder = "val2017" if image["split"] in ("test", "restval") else "train2017"
        write_image(tmp_path / folder / f"{image['cocoid']:012d}.jpg", image["imgid"])
    (tmp_path / "dataset_coco.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match='The images of 2017 are there: set year to "2017"'):
        counts(COCO(str(tmp_path)))
    data = COCO(str(tmp_path), year="2017")
    assert counts(data) == {"train": 3, "val": 1, "test": 1}
    assert data.records("test")[0].path == tmp_path / "val2017" / "000000005004.jpg"
    assert [record.path.parent.name for record in data.records("train") if record.path] == ["train2017"] * 2 + ["val2017"]


def own_positives(root: Path, name: str, captions_of: dict[int, list[int]], images_of: dict[int, list[int]]) -> None:
    root.mkdir(exist_ok=True)
    for kind, content in (("image_to_caption", captions_of), ("caption_to_image", images_of)):
        (root / f"{name}_{kind}.json").write_text(json.dumps(content))


def test_further_right_answers_of_the_test_split_are_rows_of_it(tmp_path: Path) -> None:
    """Images 5009 and 5010 are the test split; image i has 1 + i % 5 captions, numbered on."""
    root = coco_root(tmp_path / "coco")
    records = COCO(str(root)).records("test")
    captions = [caption.caption_id for record in records for caption in record.captions]
    assert [record.image_id for record in records] == ["5009", "5010"]
    assert len(captions) == 6
    first, last = int(captions[0]), int(captions[-1])
    own_positives(root / "positives", "eccv", {5010: [last, first]}, {first: [5009, 5010], last: [5010]})
    data = COCO(str(root), positives={"eccv": "positives"})
    found = data.split_positives("test")["eccv"]
    assert [rows.tolist() for rows in (found.i2t_image_P, found.i2t_text_P)] == [[1, 1], [5, 0]]
    assert [rows.tolist() for rows in (found.t2i_text_P, found.t2i_image_P)] == [[0, 0, 5], [0, 1, 1]]
    assert data.split_positives("val") == COCO(str(root)).split_positives("test") == {}

    before = data.fingerprint()
    assert before != COCO(str(root)).fingerprint()
    own_positives(root / "positives", "eccv", {5010: [last]}, {first: [5009]})
    assert COCO(str(root), positives={"eccv": "positives"}).fingerprint() != before
    own_positives(root / "positives", "eccv", {5010: [last, first]}, {first: [5009, 5010], last: [5010]})
    cut = COCO(str(root), positives={"eccv": "positives"}, limits=Limits(test=1))
    with pytest.raises(InputError, match=r"image_to_caption.json: none of its queries .* in coco test\[:1\]; raise limits.test"):
        cut.split_positives("test")
    own_positives(root / "positives", "eccv", {5009: [last, first]}, {first: [5009, 5010], last: [5010]})
    rows = cut.split_positives("test")["eccv"]
    assert [each.tolist() for each in (rows.i2t_image_P, rows.i2t_text_P, rows.t2i_text_P, rows.t2i_image_P)] == [[0]] * 4


def test_right_answers_of_another_split_or_without_ids_are_refused(tmp_path: Path) -> None:
    root = coco_root(tmp_path / "coco")
    own_positives(root / "positives", "eccv", {5010: [999]}, {1: [5010]})
    data = COCO(str(root), positives={"eccv": "positives"})
    with pytest.raises(InputError, match=r"eccv_image_to_caption\.json: 1 ids are not in coco test \(first: 999\)"):
        data.split_positives("test")
    (own,) = (caption.caption_id for caption in data.records("test")[1].captions)
    own_positives(root / "positives", "eccv", {5010: [own]}, {own: [5010], 1: [5010]})
    with pytest.raises(InputError, match=r"caption_to_image\.json: 1 ids are not in coco test \(first: 1\)"):
        data.split_positives("test")  # a query of another split, though its answer is here
    own_positives(root / "positives", "eccv", {5010: []}, {1: [5010]})
    with pytest.raises(InputError, match="query '5010' has no right answer"):
        data.split_positives("test")
    with pytest.raises(InputError, match=r"cxc_image_to_caption\.json: from https://raw\.githubusercontent\.com/naver-ai/eccv"):
        COCO(str(root), positives={"cxc": "positives"}).prepare_data()
    with pytest.raises(InputError, match=r"elsewhere/cxc_caption_to_image\.json: put it there yourself"):
        COCO(str(root), positives={"cxc": "elsewhere"}).prepare_data()
    with pytest.raises(InputError, match="BEiT-3's index files do not have: set captions to karpathy"):
        COCO(str(root), captions="beit3_index", positives={"eccv": "positives"})


def test_a_few_answers_that_the_split_lacks_are_said_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = coco_root(tmp_path / "coco")
    (own,) = (caption.caption_id for caption in COCO(str(root)).records("test")[1].captions)
    own_positives(root / "positives", "eccv", {5010: [999, own]}, {own: [5010]})
    data = COCO(str(root), positives={"eccv": "positives"})
    monkeypatch.setattr("datamodules.loading.positives._FEW", 0.5)
    monkeypatch.setattr(logging.getLogger("crosslight"), "propagate", True)
    assert data.split_positives("test")["eccv"].i2t_text_P.tolist() == [5]
    assert "1 right answers are not in coco test and left out (first: 999)" in caplog.text


def test_right_answers_are_fetched_like_the_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, asked = coco_root(tmp_path / "coco"), []

    def fetched(remote: Remote, folder: Path) -> Path:
        asked.append((remote.url, remote.size))
        own_positives(folder, "eccv", {1: [2]}, {2: [1]})
        return folder / remote.name

    monkeypatch.setattr(steps, "fetch", fetched)
    write_image(root / "train2014" / "0.jpg", 0)
    COCO(str(root), positives={"eccv": "positives"}, download=True, mirror="https://here").prepare_data()
    assert asked == [("https://here/eccv_image_to_caption.json", 168_731)]  # the second was there by then
