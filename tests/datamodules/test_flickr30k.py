"""Flickr30k: both splits; what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_data import karpathy, write_image

from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.flickr30k import Flickr30k
from datamodules.image_text import ImageTextDataModule


def counts(data: ImageTextDataModule) -> dict[str, int]:
    return {split: len(data.records(split)) for split in data.splits()}


def flickr30k_root(folder: Path) -> Path:
    content = karpathy({"train": 6, "val": 2, "test": 2})
    folder.mkdir(exist_ok=True)
    (folder / "dataset_flickr30k.json").write_text(json.dumps(content))
    for image in content["images"]:
        write_image(folder / "flickr30k-images" / image["filename"], image["imgid"])
    lists = folder / "flickr30k_entities"
    lists.mkdir()
    (lists / "train.txt").write_text("1009\n1000\n1001\n")
    (lists / "val.txt").write_text("1002\n")
    (lists / "test.txt").write_text("1003\n1004")
    return folder


def test_flickr30k_splits(tmp_path: Path) -> None:
    root = flickr30k_root(tmp_path)
    assert counts(Flickr30k(str(root))) == {"train": 6, "val": 2, "test": 2}
    entities = Flickr30k(str(root), split="entities")
    assert [record.image_id for record in entities.records("train")] == ["1009", "1000", "1001"]
    assert counts(entities) == {"train": 3, "val": 1, "test": 2}
    assert entities.fingerprint() != Flickr30k(str(root)).fingerprint()
    (root / "flickr30k_entities" / "val.txt").write_text("1002\n77\n")
    with pytest.raises(InputError, match=r"1 images of .* are not in .*, first '77'; .*results_20130124\.token \(it is"):
        Flickr30k(str(root), split="entities").records("val")
    tokens = root / "results_20130124.token"
    tokens.write_text("1002.jpg#0\tof another\n78.jpg#0\tTwo dogs .\n")
    with pytest.raises(InputError, match=r"1 of them neither in .*results_20130124\.token, first '77'"):
        Flickr30k(str(root), split="entities").records("val")
    tokens.write_text("77.jpg#0\tTwo dogs .\n77.jpg#1\tA # dog\n1002.jpg#0\tof another\n")
    write_image(root / "flickr30k-images" / "77.jpg", 1)
    beyond = Flickr30k(str(root), split="entities").records("val")[1]
    assert (beyond.image_id, [caption.text for caption in beyond.captions]) == ("77", ["Two dogs .", "A # dog"])
    assert [caption.caption_id for caption in beyond.captions] == ["77#0", "77#1"]
    tokens.write_text("77.jpg Two dogs .\n")
    with pytest.raises(InputError, match=r"results_20130124\.token, line 1: '77\.jpg Two dogs \.'; expected Flickr30k's"):
        Flickr30k(str(root), split="entities").records("val")


def test_what_needs_a_form_is_named_file_by_file(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Flickr30k(str(tmp_path), split="entities").prepare_data()
    for part in (
        "dataset_flickr30k.json: from https://cs.stanford",
        "flickr30k-images.tar.gz",
        "flickr30k_entities",
        "form",
        "data get",
    ):
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"images: Flickr8k_Dataset\.zip"):
        Flickr8k(str(tmp_path)).prepare_data()
