"""A world's region descriptions in Visual Genome's files, and new scenes of all three domains in those of NoCaps.

<root>/visual_genome/image_data.json, region_descriptions.json       every image of the COCO and Flickr30k parts
<root>/visual_genome/VG_100K/<id>.jpg, VG_100K_2/<id>.jpg             the same files (hard links where the disk has them)
<root>/visual_genome/held_out/dataset_{coco,flickr30k,flickr8k}.json  the world's Karpathy files: what must stay out of training
<root>/visual_genome/held_out/{validation,test}-images-with-rotation.csv    Open Images' lists with the images of NoCaps
<root>/nocaps/nocaps_val_4500_captions.json, nocaps_test_image_info.json, val/<id>.jpg, test/<id>.jpg

As in the real ones, Visual Genome holds images that COCO and Flickr30k evaluate on. NoCaps' own images are nowhere else; "near"
and "out" show kinds of things that no caption of the other parts names.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args

from datamodules.miniworld.captions import describe, region_descriptions
from datamodules.miniworld.images import WorldImage
from datamodules.miniworld.render import render
from datamodules.miniworld.scenes import Domain, Style, sample_scene

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_FIRST_NOCAPS = 10_000_000  # scenes of NoCaps are none of the other parts', however large those are
_FIRST_FLICKR = 5_000_000_000  # Flickr ids of NoCaps' images


# ----------------------------------------------------------------------------------------------------------- Visual Genome


def genome_id(image: WorldImage) -> int:
    """An image's id in Visual Genome."""
    return 2_000_000 + image.scene.index


def write_visual_genome(root: Path, images: Sequence[WorldImage]) -> None:
    """`root/visual_genome` but for NoCaps' lists, of images that lie under `root` already, with the Karpathy files of both parts.

    An image is in VG_100K if its number is even, else in VG_100K_2.
    """
    folder = root / "visual_genome"
    for name in ("VG_100K", "VG_100K_2", "held_out"):
        (folder / name).mkdir(parents=True)
    image_data: list[dict[str, Any]] = []
    descriptions: list[dict[str, Any]] = []
    region_id = 0
    for image in images:
        number, size = genome_id(image), image.scene.image_size
        place = f"{'VG_100K_2' if number % 2 else 'VG_100K'}/{number}.jpg"
        _link(root / image.file, folder / place)
        image_data.append(
            {
                "width": size,
                "height": size,
                "url": f"https://example.org/{place}",
                "image_id": number,
                "coco_id": int(image.image_id) if image.part == "coco" else None,
                "flickr_id": int(image.image_id) if image.part == "flickr30k" else None,
            }
        )
        regions = []
        for region in image.regions:
            region_id += 1
            box = region.box
            left, top, right, bottom = round(box.left), round(box.top), round(box.right), round(box.bottom)
            regions.append(
                {
                    "region_id": region_id,
                    "width": right - left,
                    "height": bottom - top,
                    "image_id": number,
                    "phrase": region.text,
                    "y": top,
                    "x": left,
                }
            )
        descriptions.append({"regions": regions, "id": number})
    _write_json(folder / "image_data.json", image_data)
    _write_json(folder / "region_descriptions.json", descriptions)
    _link(root / "coco" / "annotations" / "dataset_coco.json", folder / "held_out" / "dataset_coco.json")
    for name in ("dataset_flickr30k.json", "dataset_flickr8k.json"):  # Flickr8k's images are Flickr30k's
        _link(root / "flickr30k" / "dataset_flickr30k.json", folder / "held_out" / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


# ------------------------------------------------------------------------------------------------------------------ NoCaps


@dataclass(frozen=True, slots=True)
class NoCapsCounts:
    """Images of each domain in NoCaps' two splits; the real val has 648 in, 2,938 near, 914 out."""

    val: tuple[int, int, int] = (8, 16, 8)
    test: tuple[int, int, int] = (2, 2, 2)

    @classmethod
    def of(cls, scenes: int) -> NoCapsCounts:
        """For a world of so many other scenes: about six images for a hundred of those, at least one of each domain and split."""
        of_val, of_test = max(1, scenes // 80), max(1, scenes // 400)
        return cls((of_val, 2 * of_val, of_val), (of_test, of_test, of_test))


class Run(Protocol):
    """`map`, or that of several processes."""

    def __call__(self, function: Callable[[_In], _Out], items: Iterable[_In], /) -> Iterator[_Out]: ...


def write_nocaps(
    root: Path, *, seed: int, style: Style, image_size: int, counts: NoCapsCounts = NoCapsCounts(), run: Run = map
) -> list[WorldImage]:
    """`root/nocaps`, and the lists of its images in `root/visual_genome/held_out`. Returns all its images, those of test with the
    captions that their file keeps back.

    Images of the domains are mixed. Scenes have five captions, not ten. `run` renders.
    """
    folder, lists = root / "nocaps", root / "visual_genome" / "held_out"
    lists.mkdir(parents=True, exist_ok=True)
    images: list[WorldImage] = []
    work = partial(_render_one, root=root, seed=seed, style=style, image_size=image_size)
    for split, of_domains in (("val", counts.val), ("test", counts.test)):
        (folder / split).mkdir(parents=True)
        domains = [domain for domain, count in zip(get_args(Domain), of_domains, strict=True) for _ in range(count)]
        # A fixed mixture without a generator: sorted by a hash, as Open Images' ids are.
        order = sorted((_open_images_id(f"{seed} {style} {split} {row}"), domain) for row, domain in enumerate(domains))
        places = [
            _Place(_FIRST_NOCAPS + len(images) + number, split, number, f"nocaps/{split}/{identity}.jpg", domain)
            for number, (identity, domain) in enumerate(order)
        ]
        mine = list(run(work, places))
        _write_split(folder, split, mine)
        _write_list(lists, split, mine, _FIRST_FLICKR + len(images))
        images += mine
    return images


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one scene of NoCaps goes."""

    index: int
    split: str
    number: int
    file: str
    domain: Domain


def _render_one(place: _Place, root: Path, seed: int, style: Style, image_size: int) -> WorldImage:
    scene = sample_scene(seed, style, place.index, image_size=image_size, domain=place.domain)
    render(scene).save(root / place.file, quality=90, subsampling=0)
    return WorldImage("nocaps", place.split, str(place.number), place.file, scene, describe(scene), region_descriptions(scene))


def _open_images_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _write_split(folder: Path, split: str, images: Sequence[WorldImage]) -> None:
    entries = []
    for image in images:
        name = Path(image.file).name
        entry: dict[str, Any] = {
            "id": int(image.image_id),
            "open_images_id": Path(name).stem,
            "file_name": name,
            "height": image.scene.image_size,
            "width": image.scene.image_size,
            "coco_url": "",
            "license": 0,
            "date_captured": "2018-11-06 11:04:33",
        }
        entries.append({**entry, "domain": f"{image.scene.domain}-domain"} if split == "val" else entry)
    content: dict[str, Any] = {
        "licenses": [],
        "info": {"description": f"crosslight's embedded world, NoCaps' {split}", "version": "0.1", "year": 2018},
        "images": entries,
    }
    if split == "val":
        texts = [(image.image_id, caption.text) for image in images for caption in image.captions]
        content["annotations"] = [
            {"image_id": int(image_id), "id": number, "caption": text} for number, (image_id, text) in enumerate(texts)
        ]
    _write_json(folder / ("nocaps_val_4500_captions.json" if split == "val" else "nocaps_test_image_info.json"), content)


def _write_list(folder: Path, split: str, images: Sequence[WorldImage], first: int) -> None:
    name = {"val": "validation", "test": "test"}[split]
    with (folder / f"{name}-images-with-rotation.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ImageID", "Subset", "OriginalURL", "OriginalLandingURL", "License", "Author", "Title"])
        for number, image in enumerate(images, start=first):
            identity = Path(image.file).stem
            page = f"https://www.flickr.com/photos/crosslight/{number}"
            file_url = f"https://c1.staticflickr.com/5/4129/{number}_{identity[:10]}_o.jpg"
            rows.writerow([identity, name, file_url, page, "", "", ""])


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")
