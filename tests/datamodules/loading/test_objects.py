"""Which regions of an image show which objects of a caption; the loader of pairs is tested with its data set."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from datamodules.formats.flickr_entities import Annotation
from datamodules.loading.objects import annotated_regions, overlapping_regions, patches_under
from datamodules.records import Box


def test_annotated_boxes_as_the_visual_sequence() -> None:
    boxes = (Box(0, 151, 108, 500), Box(50, 200, 300, 400), Box(1, 1, 2, 2))
    annotation = Annotation(375, 500, boxes, (("18", "19"), ("20",), ("20",)))
    shown = annotated_regions(annotation, ["20", "18", "19", "23"])
    assert shown.tolist() == [[False, True, True], [True, False, False], [True, False, False], [False] * 3]
    bare = replace(annotation, boxes=(), box_chains=())
    assert annotated_regions(bare, ["20"]).shape == (1, 0)


def naive_iou(a: Box, b: Box) -> float:
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    common = max(0.0, width) * max(0.0, height)
    return common / ((a.right - a.left) * (a.bottom - a.top) + (b.right - b.left) * (b.bottom - b.top) - common)


def naive_regions(regions: list[Box], objects: list[list[Box]], threshold: float) -> list[list[bool]]:
    rows = []
    for boxes in objects:
        best = [max(naive_iou(region, box) for box in boxes) for region in regions]
        row = [value >= threshold for value in best]
        if not any(row) and max(best) > 0:
            row[best.index(max(best))] = True
        rows.append(row)
    return rows


def test_overlapping_regions_equal_the_plain_loop() -> None:
    source = random.Random(3)

    def box() -> Box:
        left, top = source.uniform(0, 300), source.uniform(0, 400)
        return Box(left, top, left + source.uniform(5, 200), top + source.uniform(5, 200))

    size, alone, several = (500, 600), 0, 0
    for _ in range(40):
        objects = [[box() for _ in range(source.randint(1, 3))] for _ in range(source.randint(1, 5))]
        near = [Box(b.left - 3, b.top, b.right, b.bottom + 9) for boxes in objects for b in boxes if source.random() < 0.4]
        regions = [box() for _ in range(source.randint(1, 6))] + near
        fractions = torch.tensor(
            [(b.left / 500, b.top / 600, b.right / 500, b.bottom / 600) for b in regions], dtype=torch.float64
        )
        found = overlapping_regions(fractions, objects, size)
        assert found.tolist() == naive_regions(regions, objects, 0.5)
        assert overlapping_regions(fractions.float(), objects, size, 0.1).tolist() == naive_regions(regions, objects, 0.1)
        best = torch.tensor([[max(naive_iou(r, b) for b in boxes) for r in regions] for boxes in objects]).amax(1)
        alone += int((best < 0.5).sum())
        several += int((found.sum(1) > 1).sum())
    assert alone > 10  # both rules were met
    assert several > 3


def test_half_is_enough_and_nothing_is_not() -> None:
    regions = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.25, 0.5], [0.5, 0.5, 1.0, 1.0]])
    found = overlapping_regions(regions, [[Box(0, 0, 4, 4)], [Box(0, 6, 1, 8)], []], (8, 8))
    assert found.tolist() == [[True, True, False], [False] * 3, [False] * 3]


def naive_patches(boxes: list[Box], covered: Box, rows: int, columns: int) -> list[bool]:
    """By counting a hundred points of each patch."""
    height, width = (covered.bottom - covered.top) / rows, (covered.right - covered.left) / columns
    shares = []
    for row in range(rows):
        for column in range(columns):
            points = [
                (covered.left + (column + (i + 0.5) / 10) * width, covered.top + (row + (j + 0.5) / 10) * height)
                for i in range(10)
                for j in range(10)
            ]
            inside = [sum(b.left <= x < b.right and b.top <= y < b.bottom for x, y in points) / 100 for b in boxes]
            shares.append(max(inside, default=0.0))
    shown = [share >= 0.5 for share in shares]
    if not any(shown) and max(shares) > 0:
        shown[shares.index(max(shares))] = True
    return shown


def test_patches_under_boxes_equal_counted_points() -> None:
    covered = Box(40, 0, 240, 160)  # a crop: 4 x 5 patches of 40 pixels
    objects = [
        [Box(40, 0, 120, 80)],  # four patches, exactly
        [Box(60, 0, 100, 36)],  # 45 % of each of two: neither is half, the first is as good as the other
        [Box(130, 90, 146, 98)],  # a small one
        [Box(0, 0, 64, 160), Box(200, 120, 240, 160)],  # reaches out of what is seen; a second box
        [Box(0, 0, 30, 160)],  # wholly outside
    ]
    found = patches_under(objects, covered, 4, 5)
    assert found.tolist() == [naive_patches(boxes, covered, 4, 5) for boxes in objects]
    assert found.sum(1).tolist() == [4, 1, 1, 5, 0]
