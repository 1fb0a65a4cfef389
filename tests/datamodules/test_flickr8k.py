"""Flickr8k: Karpathy's split."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.image_text import ImageTextDataModule


def counts(data: ImageTextDataModule) -> dict[str, int]:
    return {split: len(data.records(split)) for split in data.splits()}


def test_flickr8k(flickr8k_root: Path) -> None:
    data = Flickr8k(str(flickr8k_root))
    assert counts(data) == {"train": 13, "val": 5, "test": 3}
    assert data.describe()["splits"]["val"] == {"images": 5, "captions": 4 + 5 + 1 + 2 + 3}
    with pytest.raises(InputError, match=r"flickr8k has no split 'restval': .*dataset_flickr8k\.json .*train \(13 images\)"):
        data.records("restval")
