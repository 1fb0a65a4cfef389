"""A world's Visual Genome and NoCaps: true to its scenes, read by the real data modules."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from datamodules.miniworld.captioned import NoCapsCounts, genome_id, write_nocaps, write_visual_genome
from datamodules.miniworld.captions import vocabulary
from datamodules.miniworld.images import WorldImage, read_scenes
from datamodules.miniworld.scenes import NOVEL_KINDS, SEEN_KINDS
from datamodules.miniworld.write import write_world
from datamodules.nocaps import NoCaps
from datamodules.visual_genome import VisualGenome

SIZE = 48
COUNTS = NoCapsCounts((2, 3, 2), (1, 2, 1))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[WorldImage]]:
    root = tmp_path_factory.mktemp("world") / "small"
    write_world(root, scenes=40, seed=6, style="source", image_size=SIZE, workers=1)
    return root, list(read_scenes(root))


@pytest.fixture(scope="module")
def world(images: tuple[Path, list[WorldImage]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[WorldImage]]:
    """Root and NoCaps' images, written here, whatever `write_world` writes."""
    root = tmp_path_factory.mktemp("captioned")
    for part in ("coco", "flickr30k"):
        (root / part).symlink_to(images[0] / part)
    write_visual_genome(root, images[1])
    return root, write_nocaps(root, seed=6, style="source", image_size=SIZE, counts=COUNTS)


def test_regions_are_those_of_the_scenes_and_evaluation_images_stay_out(
    images: tuple[Path, list[WorldImage]], world: tuple[Path, list[WorldImage]]
) -> None:
    root = world[0]
    data = VisualGenome(str(root / "visual_genome"), min_words=1)
    records = {record.image_id: record for record in data.records("train")}
    expected = {str(genome_id(image)): image for image in images[1] if image.split in ("train", "restval")}
    assert list(records) == list(expected)
    caption_ids: list[str] = []
    for image_id, image in expected.items():
        record = records[image_id]
        assert [caption.text for caption in record.captions] == [region.text for region in image.regions]
        assert record.path is not None
        assert record.path.read_bytes() == (root / image.file).read_bytes()
        caption_ids += [caption.caption_id for caption in record.captions]
    assert len(set(caption_ids)) == len(caption_ids)
    held_out = Counter(image.part for image in images[1] if image.split in ("val", "test"))
    assert data.counts is not None
    assert list(data.counts.excluded.values()) == [held_out["coco"], held_out["flickr30k"], 0, 0]
    assert min(held_out.values()) > 0
    assert len(data.records("train")) < len(VisualGenome(str(root / "visual_genome"), held_out=None).records("train"))


def test_boxes_of_regions_are_inside_the_picture(world: tuple[Path, list[WorldImage]]) -> None:
    root = world[0]
    for entry in json.loads((root / "visual_genome" / "region_descriptions.json").read_text()):
        for region in entry["regions"]:
            assert 0 <= region["x"] < region["x"] + region["width"] <= SIZE
            assert 0 <= region["y"] < region["y"] + region["height"] <= SIZE


def test_nocaps_has_the_domains_it_says(world: tuple[Path, list[WorldImage]]) -> None:
    root = world[0]
    by_file = {Path(image.file).name: image for image in world[1]}
    val = NoCaps(str(root / "nocaps")).records("test")
    assert Counter(record.domain for record in val) == {"in-domain": 2, "near-domain": 3, "out-domain": 2}
    words = set(vocabulary())
    for record in val:
        assert record.path is not None
        image = by_file[record.path.name]
        kinds = {thing.kind for thing in image.scene.objects}
        novel, seen = bool(kinds & set(NOVEL_KINDS)), bool(kinds & set(SEEN_KINDS))
        assert (novel, seen) == {"in": (False, True), "near": (True, True), "out": (True, False)}[image.scene.domain]
        assert record.domain == f"{image.scene.domain}-domain"
        assert [caption.text for caption in record.captions] == [caption.text for caption in image.captions]
        assert {word for caption in record.captions for word in re.findall(r"\w+", caption.text.lower())} <= words
        with Image.open(record.path) as picture:
            assert picture.size == (SIZE, SIZE)
    assert [record.domain for record in val] != sorted(str(record.domain) for record in val)  # mixed
    test = NoCaps(str(root / "nocaps"), split="test").records("test")
    assert [record.captions for record in test] == [()] * 4
    assert len({record.path for record in (*val, *test)}) == 11


def test_nocaps_depends_on_seed_and_style_alone(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("a", "b", "other")]
    for root, seed in zip(roots, (3, 3, 4), strict=True):
        write_nocaps(root, seed=seed, style="target", image_size=32, counts=NoCapsCounts((1, 1, 1), (1, 0, 0)))
    files = [
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in roots
    ]
    assert files[0] == files[1]
    assert files[0] != files[2]
    assert len(files[0]) == 4 + 2 + 2


def test_a_world_has_some_of_each_domain() -> None:
    assert NoCapsCounts.of(20) == NoCapsCounts((1, 2, 1), (1, 1, 1))
    assert NoCapsCounts.of(2000) == NoCapsCounts((25, 50, 25), (5, 5, 5))
