"""COCO: Karpathy's split with restval, official files; what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_data import karpathy, write_image

from datamodules.coco import COCO
from datamodules.errors import InputError
from datamodules.image_text import ImageTextDataModule


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
