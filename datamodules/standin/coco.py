"""A stand-in for COCO: 123,287 images, Karpathy's and the official caption files, UNITER's databases, an extractor's database."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from datamodules.files.atomic import whole_file
from datamodules.standin.amounts import begin_share, generator, part_of
from datamodules.standin.flickr30k import flickr_numbers, write_held_out
from datamodules.standin.karpathy import Captioned, counted, write_karpathy
from datamodules.standin.pictures import size_of, write_pictures
from datamodules.standin.regions import RELEASED, write_image_database, write_text_database
from datamodules.standin.words import sentences

SPLITS = (("train", 82_783, 414_113), ("restval", 30_504, 152_634), ("val", 5_000, 25_010), ("test", 5_000, 25_010))
"""Name, images and captions, as Karpathy's file has them."""
_LARGEST_ID = 581_929
_EXTRACTED = 1024
"""Feature width of `crosslight data regions --backbone fasterrcnn`."""


def write_coco(root: Path, share: float = 1.0) -> None:
    """Everything that full-scale runs read of COCO.

    Args:
        root: Its folder.
        share: How much of it.

    Raises:
        InputError: `root` holds something else.
    """
    begin_share(root, "coco", share)
    images = coco_images(share)
    write_karpathy(root / "annotations" / "dataset_coco.json", "coco", images)
    folders = {name: [image for image in images if image.folder == name] for name in ("train2014", "val2014")}
    for folder, its_images in folders.items():
        write_pictures(root / folder, [image.file for image in its_images])
        _write_official(root / "annotations" / f"captions_{folder}.json", its_images)
        write_image_database(root / "img_db" / f"coco_{folder}", [region_name(image) for image in its_images], *RELEASED)
    for split, _, _ in SPLITS:
        texts = (
            (str(identity), region_name(image), text)
            for image in images
            if image.split == split
            for identity, text in image.captions
        )
        write_text_database(root / "txt_db" / f"itm_coco_{split}.db", texts)
    stems = [f"{Path(image.file).stem}.npz" for folder in folders.values() for image in folder]
    write_image_database(root / "img_db" / "frcnn", stems, _EXTRACTED)
    write_held_out(root / "held_out", share)


@lru_cache(maxsize=1)
def coco_images(share: float) -> tuple[Captioned, ...]:
    """All images, in Karpathy's order of splits."""
    parts = [(split, part_of(images, share), captions / images) for split, images, captions in SPLITS]
    images = counted([(split, count, round(count * mean)) for split, count, mean in parts])
    random = generator("coco")
    numbers = random.permutation(_LARGEST_ID)[: len(images)] + 1
    identities = random.permutation(sum(count for _, count in images) + 200_000) + 1
    texts = sentences(random, sum(count for _, count in images))
    # Some of COCO's photographs are Flickr30k's, too.
    elsewhere = random.integers(10**9, 10**10, len(images))
    elsewhere[: len(images) // 200 + 1] = random.choice(flickr_numbers(share), len(images) // 200 + 1, replace=False)
    found, at = [], 0
    of_folder = {"train2014": 0, "val2014": 0}
    for place, (split, count) in enumerate(images):
        folder = "train2014" if split == "train" else "val2014"
        captions = tuple((int(identities[row]), texts[row]) for row in range(at, at + count))
        at += count
        file = f"COCO_{folder}_{numbers[place]:012d}.jpg"
        size = size_of(of_folder[folder])
        of_folder[folder] += 1
        found.append(Captioned(int(numbers[place]), file, split, captions, folder, *size, int(elsewhere[place])))
    return tuple(found)


def region_name(image: Captioned) -> str:
    """In UNITER's databases."""
    return f"coco_{image.folder}_{image.number:012d}.npz"


def _write_official(path: Path, images: Sequence[Captioned]) -> None:
    if path.exists():
        return
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in images:
        address = f"http://farm1.staticflickr.com/1/{image.flickr}_0123456789_z.jpg"
        listed.append(
            {
                "license": 1, "file_name": image.file, "coco_url": f"http://images.cocodataset.org/{image.folder}/{image.file}",
                "height": image.height, "width": image.width, "date_captured": "2013-11-14 17:02:52", "flickr_url": address,
                "id": image.number,
            }
        )  # fmt: skip
        annotations += [{"image_id": image.number, "id": identity, "caption": text} for identity, text in image.captions]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        content = {"info": {"description": "stand-in"}, "images": listed, "licenses": [], "annotations": annotations}
        part.write_text(json.dumps(content))
