"""Karpathy's split as others have it: small files with the columns that the published ones have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from split_copies import YEREVANN, lavis, nlphuji, parquet

from datamodules.errors import InputError
from datamodules.formats.karpathy_copies import read_copy

KARPATHY = [
    {"filename": "COCO_val2014_000000391895.jpg", "imgid": 0, "split": "test", "sentids": [770337, 771687],
     "sentences": [{"raw": "A man with a red helmet.", "sentid": 770337, "imgid": 0},
                   {"raw": "Man riding a bike.", "sentid": 771687, "imgid": 0}],
     "filepath": "val2014", "cocoid": 391895},
    {"filename": "COCO_val2014_000000000042.jpg", "imgid": 1, "split": "restval", "sentids": [7],
     "sentences": [{"raw": "Shoes.", "sentid": 7, "imgid": 1}], "filepath": "val2014", "cocoid": 42},
]  # fmt: skip


def test_yerevanns_parquet(tmp_path: Path) -> None:
    assert read_copy(parquet(tmp_path / "test.parquet", YEREVANN)) == KARPATHY


FLICKR = {"filename": "1000092795.jpg", "imgid": 0, "split": "train", "sentids": [0, 1],
          "sentences": [{"raw": 'Two "young" guys, smiling.', "sentid": 0, "imgid": 0},
                        {"raw": "Two men.", "sentid": 1, "imgid": 0}]}  # fmt: skip


def test_nlphujis_csv_and_what_the_hub_made_of_it(tmp_path: Path) -> None:
    assert read_copy(nlphuji(tmp_path / "a.csv")) == [FLICKR]
    row = {"image": {"bytes": b"jpeg", "path": "x"}, "caption": ['Two "young" guys, smiling.', "Two men."],
           "sentids": ["0", "1"], "split": "train", "img_id": "0", "filename": "1000092795.jpg"}  # fmt: skip
    images: dict[str, bytes] = {}
    file = parquet(tmp_path / "0000.parquet", [row])
    assert read_copy(file, images.__setitem__) == [FLICKR]
    assert images == {"1000092795.jpg": b"jpeg"}
    assert read_copy(file) == [FLICKR]


def test_laviss_lists(tmp_path: Path) -> None:
    """A row a caption in train, a row an image elsewhere; ids that are not there are not those of COCO's captions."""
    name = "val2014/COCO_val2014_000000522418.jpg"
    rows = [{"caption": "A woman.", "image": name, "image_id": "coco_522418"},
            {"caption": "A cake.", "image": name, "image_id": "coco_522418"}]  # fmt: skip
    (image,) = read_copy(lavis(tmp_path / "coco_karpathy_train.json", rows))
    assert image == {
        "filename": "COCO_val2014_000000522418.jpg", "imgid": "train-0", "split": "restval", "filepath": "val2014",
        "cocoid": 522418,
        "sentences": [{"raw": "A woman.", "sentid": "COCO_val2014_000000522418#0", "imgid": "train-0"},
                      {"raw": "A cake.", "sentid": "COCO_val2014_000000522418#1", "imgid": "train-0"}],
    }  # fmt: skip
    row = {"image": "flickr30k-images/1007129816.jpg", "caption": ["The man.", "A hat."]}
    (image,) = read_copy(lavis(tmp_path / "flickr30k_test.json", [row]))
    assert (image["filename"], image["split"], len(image["sentences"])) == ("1007129816.jpg", "test", 2)
    assert "cocoid" not in image


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: nlphuji(folder / "a.csv", sentids="[0]"), r"line 2 has 2 captions and 1 sentids"),
        (lambda folder: nlphuji(folder / "a.csv", raw="two men"), r"line 2: 'raw' is 'two men', no JSON list"),
        (lambda folder: nlphuji(folder / "a.csv", split="dev"), r"split is 'dev', not one of train, restval"),
        (lambda folder: nlphuji(folder / "a.csv", filename="../a.jpg"), r"'filename' is '../a.jpg', which names no file inside"),
        (lambda folder: parquet(folder / "a.parquet", [{"sentences": ["a"], "filename": "a"}]), r"lacks filepath, imgid"),
        (lambda folder: parquet(folder / "a.parquet", [{"text": "a"}]), r"has the columns 'text' and lacks filename"),
        (lambda folder: lavis(folder / "mine.json", []), r"its name says no split"),
        (lambda folder: lavis(folder / "coco_karpathy_val.json", [{"image": "val2014/a.jpg"}]), r"\[0\]: has no 'caption'"),
        (lambda folder: folder / "a.zip", r"no .parquet, .csv or .json file"),
    ],
)
def test_what_is_of_no_such_layout_is_named(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_copy(make(tmp_path))
