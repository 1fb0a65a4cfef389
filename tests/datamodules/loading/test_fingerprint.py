"""The fingerprint of a data set: that of regions is tested in test_regions.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tiny_data import write_flickr8k, write_image
from tiny_regions import region_files, region_inputs, write_root

from datamodules.flickr8k import Flickr8k
from datamodules.flickr30k import Flickr30k
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
    os.utime(first / "images" / "1001.jpg", (1, 1))
    shutil.move(first, tmp_path / "elsewhere")
    assert Flickr8k(str(tmp_path / "elsewhere")).fingerprint() == fingerprint
    annotations = second / "dataset_flickr8k.json"
    annotations.write_text(annotations.read_text().replace("dog", "cow"))
    assert Flickr8k(str(second)).fingerprint() not in (fingerprint, changed)


def test_an_image_replaced_by_one_of_its_size_and_times(tmp_path: Path) -> None:
    root = write_flickr8k(tmp_path / "a")
    data = Flickr8k(str(root))
    before, of_train, of_val = data.fingerprint(), data.image_fingerprint("train"), data.image_fingerprint("val")
    path = root / "images" / "1003.jpg"
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Flickr8k(str(root)).fingerprint() != before
    assert data.fingerprint() != before  # and of one that has asked before
    assert (data.image_fingerprint("train") != of_train, data.image_fingerprint("val") == of_val) == (True, True)
    path.unlink()
    assert data.fingerprint() != before


def test_images_are_known_by_their_content_wherever_they_are(tmp_path: Path) -> None:
    root = write_flickr8k(tmp_path / "a")
    shutil.copytree(root, tmp_path / "b")
    first, second = Flickr8k(str(root)), Flickr8k(str(tmp_path / "b"), limits=Limits(train=2))
    assert first.image_contents("train")[:2] == second.image_contents("train")
    assert len(second.image_contents("train")) == 2
    assert not set(first.image_contents("train")) & set(first.image_contents("test"))
    regions = Flickr30k(str(write_root(tmp_path / "c")), regions=region_files())
    regions.connect(region_inputs())
    assert regions.image_contents("train") == []


def test_databases_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    """Features, or texts, of the same size."""
    root = write_root(tmp_path / "a")
    data = Flickr30k(str(root), regions=region_files())
    data.connect(region_inputs())
    before = data.fingerprint()
    shutil.copytree(root, tmp_path / "b")
    moved = Flickr30k(str(tmp_path / "b"), regions=region_files())
    moved.connect(region_inputs())
    assert moved.fingerprint() == before
    seen = {before}
    for file in ("img_db/flickr30k/feat_th0.2_max9_min2/data.mdb", "txt_db/itm_flickr30k_test.db/data.mdb"):
        content = bytearray((root / file).read_bytes())
        content[-5] ^= 1
        (root / file).write_bytes(content)
        seen.add(data.fingerprint())
    assert len(seen) == 3
