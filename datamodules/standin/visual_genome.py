"""A stand-in for Visual Genome: 108,077 images, half of them COCO's, 5.4 million phrases, and the lists of what stays out."""

from __future__ import annotations

import json
from pathlib import Path

from datamodules.files.atomic import whole_file, write_atomically
from datamodules.standin.amounts import begin_share, generator, part_of
from datamodules.standin.coco import coco_images
from datamodules.standin.flickr30k import write_held_out
from datamodules.standin.karpathy import write_karpathy
from datamodules.standin.pictures import size_of, write_pictures
from datamodules.standin.regions import write_image_database
from datamodules.standin.words import sentences

IMAGES, OF_COCO, IN_FIRST_FOLDER, PHRASES = 108_077, 51_208, 64_346, 5_408_689
_OPEN_IMAGES = {"validation": 41_620, "test": 125_436}
_DISTINCT_PHRASES = 200_000
_EXTRACTED = 1024
_LARGEST_ID = 2_417_997


def write_visual_genome(root: Path, share: float = 1.0) -> None:
    """Everything that full-scale runs read of Visual Genome.

    Args:
        root: Its folder.
        share: How much of it.

    Raises:
        InputError: `root` holds something else.
    """
    begin_share(root, "visual_genome", share)
    random = generator("visual genome")
    count, of_coco = part_of(IMAGES, share), part_of(OF_COCO, share, least=1)
    numbers = (random.permutation(_LARGEST_ID)[:count] + 1).tolist()
    first = part_of(IN_FIRST_FOLDER, share, least=1)
    folders = {number: "VG_100K" if place < first else "VG_100K_2" for place, number in enumerate(numbers)}
    coco = random.permutation([image.number for image in coco_images(share)])[:of_coco].tolist()
    _write_image_data(root / "image_data.json", numbers, folders, coco)
    _write_regions(root / "region_descriptions.json", numbers, part_of(PHRASES, share))
    for folder in ("VG_100K", "VG_100K_2"):
        write_pictures(root / folder, [f"{number}.jpg" for number in numbers if folders[number] == folder])
    write_image_database(root / "img_db" / "frcnn", [f"{number}.npz" for number in numbers], _EXTRACTED)
    write_karpathy(root / "held_out" / "dataset_coco.json", "coco", coco_images(share))
    write_held_out(root / "held_out", share)
    for split, listed in _OPEN_IMAGES.items():
        _write_open_images(root / "held_out" / f"{split}-images-with-rotation.csv", split, part_of(listed, share))


def _write_image_data(path: Path, numbers: list[int], folders: dict[int, str], coco: list[int]) -> None:
    if path.exists():
        return
    random = generator("visual genome's flickr")
    entries = []
    for place, number in enumerate(numbers):
        width, height = size_of(place)
        known = place < len(coco)
        entries.append(
            {
                "width": width, "height": height, "url": f"https://cs.stanford.edu/people/rak248/{folders[number]}/{number}.jpg",
                "image_id": number, "coco_id": coco[place] if known else None,
                "flickr_id": int(random.integers(10**9, 10**10)) if known else None,
            }
        )  # fmt: skip
    write_atomically(path, json.dumps(entries))


def _write_regions(path: Path, numbers: list[int], phrases: int) -> None:
    """700 MB: written image by image."""
    if path.exists():
        return
    random = generator("phrases")
    texts = [json.dumps(text) for text in sentences(random, min(_DISTINCT_PHRASES, phrases), mean=5.3, least=2, most=15)]
    each, more = divmod(phrases, len(numbers))
    row = 0
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        for place, number in enumerate(numbers):
            count = each + (place < more)
            drawn = random.integers(0, len(texts), count).tolist()
            corners = random.integers(0, 300, (count, 4)).tolist()
            regions = ", ".join(
                f'{{"region_id": {row + at + 1}, "width": {20 + box[2]}, "height": {20 + box[3]}, "image_id": {number}, '
                f'"phrase": {texts[text]}, "y": {box[0]}, "x": {box[1]}}}'
                for at, (text, box) in enumerate(zip(drawn, corners, strict=True))
            )
            file.write(f'{"[" if place == 0 else ", "}{{"regions": [{regions}], "id": {number}}}')
            row += count
        file.write("]")


def _write_open_images(path: Path, split: str, count: int) -> None:
    if path.exists():
        return
    random = generator("open images", split)
    head = "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(f"{head}Thumbnail300KURL,Rotation\n")
        numbers, names = random.integers(10**9, 10**10, count).tolist(), random.bytes(8 * count).hex("/", 8).split("/")
        for flickr, identity in zip(numbers, names, strict=True):
            page = f"https://www.flickr.com/photos/someone/{flickr}"
            file.write(f"{identity},{split},https://c1.staticflickr.com/1/2/{flickr}_0123456789_o.jpg,{page},,,,,1,x,,0.0\n")
