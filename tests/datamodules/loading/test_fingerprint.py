"""The fingerprint of a data set: that of regions is tested in test_regions.py."""

from __future__ import annotations

from pathlib import Path

from tiny_data import write_flickr8k, write_image

from datamodules.flickr8k import Flickr8k
from datamodules.image_text import Limits


def test_fingerprint_is_stable_and_sees_changes(tmp_path: Path) -> None:
    first, second = write_flickr8k(tmp_path / "a"), write_flickr8k(tmp_path / "b")
    fingerprint = Flickr8k(str(first)).fingerprint()
    assert len(fingerprint) == 16
    assert Flickr8k(str(second), batch_size=7).fingerprint() == fingerprint
    assert Flickr8k(str(first), limits=Limits(test=1)).fingerprint() != fingerprint
    write_image(second / "images" / "1000.jpg", 1, (90, 90))
    changed = Flickr8k(str(second)).fingerprint()
    assert changed != fingerprint
    annotations = second / "dataset_flickr8k.json"
    annotations.write_text(annotations.read_text().replace("dog", "cow"))
    assert Flickr8k(str(second)).fingerprint() not in (fingerprint, changed)
