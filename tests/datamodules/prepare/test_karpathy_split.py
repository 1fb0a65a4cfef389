"""Karpathy's split file from a copy, read again by the data sets' own readers; and alternatives fetched from a server here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from local_server import Server, server
from split_copies import YEREVANN, lavis, nlphuji, parquet

from datamodules.errors import InputError
from datamodules.files.download import Remote
from datamodules.prepare import alternatives
from datamodules.prepare.data_sets import open_source
from datamodules.prepare.karpathy_split import write_karpathy
from datamodules.sources.coco import COCOSource

__all__ = ["server"]  # the fixture


def test_a_copy_becomes_the_file_that_coco_reads(tmp_path: Path) -> None:
    files = [parquet(tmp_path / f"{row['split']}.parquet", [row]) for row in YEREVANN]
    root = tmp_path / "coco"
    assert write_karpathy("coco", root, files) == {"restval": 1, "test": 1}
    source = COCOSource(str(root))
    source.only_annotations = True
    splits = source.parse().valid()
    assert [(each.image_id, [caption.caption_id for caption in each.captions]) for each in splits["test"]] == [
        ("391895", ["770337", "771687"])
    ]
    assert splits["train"][0].path == root / "val2014" / "COCO_val2014_000000000042.jpg"
    with pytest.raises(InputError, match="is there already; --overwrite"):
        write_karpathy("coco", root, files)
    with pytest.raises(InputError, match=r"COCO_val2014_000000391895.jpg and 0 more images come twice"):
        write_karpathy("coco", root, [files[0], files[0]], overwrite=True)
    with pytest.raises(InputError, match="visual_genome has no split by Karpathy"):
        write_karpathy("visual_genome", root, files)


def test_images_in_a_copy_go_where_the_data_set_has_them(tmp_path: Path) -> None:
    root = tmp_path / "flickr30k"
    (root / "flickr30k-images").mkdir(parents=True)
    (root / "flickr30k-images" / "1.jpg").write_bytes(b"mine")
    rows = [{"image": {"bytes": f"of {number}".encode(), "path": None}, "caption": ["a dog"], "sentids": [str(number)],
             "split": "val", "img_id": str(number), "filename": f"{number}.jpg"} for number in (1, 2)]  # fmt: skip
    assert write_karpathy("flickr30k", root, [parquet(tmp_path / "0.parquet", rows)], images=True) == {"val": 2}
    found = {path.name: path.read_bytes() for path in (root / "flickr30k-images").iterdir()}
    assert found == {"1.jpg": b"mine", "2.jpg": b"of 2"}
    assert len(open_source("flickr30k", root).parse().valid()["val"]) == 2


def test_an_alternative_is_fetched_converted_and_brings_the_photographs(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr("flickr30k-images/1000092795.jpg", b"\xff\xd8\xff")
    server.files["/annotations.csv"] = nlphuji(tmp_path / "a.csv").read_bytes()
    server.files["/images.zip"] = buffer.getvalue()
    known = alternatives.ALTERNATIVES["flickr30k"]["nlphuji"]
    here = replace(known, files=(Remote(f"{server.url}/annotations.csv"),), images=Remote(f"{server.url}/images.zip"))
    monkeypatch.setitem(alternatives.ALTERNATIVES["flickr30k"], "nlphuji", here)
    root = tmp_path / "flickr30k"
    assert alternatives.take_alternative("flickr30k", "nlphuji", root) == {"train": 1}
    assert open_source("flickr30k", root).parse().valid()["train"][0].path == root / "flickr30k-images" / "1000092795.jpg"
    asked = len(server.requests)
    assert alternatives.take_alternative("flickr30k", "nlphuji", root) == {}
    assert len(server.requests) == asked


def test_a_file_with_another_sum_is_no_alternative(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/coco_karpathy_train.json"] = lavis(tmp_path / "a_train.json", []).read_bytes()
    remote = replace(alternatives.ALTERNATIVES["coco"]["lavis"].files[0], url=f"{server.url}/coco_karpathy_train.json")
    here = replace(alternatives.ALTERNATIVES["coco"]["lavis"], files=(remote,))
    monkeypatch.setitem(alternatives.ALTERNATIVES["coco"], "lavis", here)
    with pytest.raises(InputError, match=r"MD5 checksum .*, expected aa31ac474cf6250ebb81d18348a07ed8"):
        alternatives.take_alternative("coco", "lavis", tmp_path / "coco")
    with pytest.raises(InputError, match="--from kaggle: coco is also to be had from yerevann and lavis"):
        alternatives.alternative("coco", "kaggle")
    with pytest.raises(InputError, match="nocaps has no other place"):
        alternatives.alternative("nocaps", "x")
    assert json.loads((tmp_path / "a_train.json").read_text()) == []
