"""Small copies of Karpathy's split, with the columns and keys that the published ones have."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

# yerevann/coco-karpathy: a row an image.
YEREVANN = [
    {"filepath": "val2014", "sentids": [770337, 771687], "filename": "COCO_val2014_000000391895.jpg", "imgid": 0,
     "split": "test", "sentences": ["A man with a red helmet.", "Man riding a bike."], "cocoid": 391895,
     "url": "http://images.cocodataset.org/val2014/COCO_val2014_000000391895.jpg"},
    {"filepath": "val2014", "sentids": [7], "filename": "COCO_val2014_000000000042.jpg", "imgid": 1, "split": "restval",
     "sentences": ["Shoes."], "cocoid": 42, "url": "http://images.cocodataset.org/val2014/COCO_val2014_000000000042.jpg"},
]  # fmt: skip


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def nlphuji(path: Path, **changes: str) -> Path:
    """flickr_annotations_30k.csv: lists are JSON in their cells."""
    row = {"raw": json.dumps(['Two "young" guys, smiling.', "Two men."]), "sentids": "[0, 1]", "split": "train",
           "filename": "1000092795.jpg", "img_id": "0"} | changes  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    return path


def lavis(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path
