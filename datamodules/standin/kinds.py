"""Which data sets there are stand-ins for, by the name of their folder below CROSSLIGHT_DATA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from datamodules.standin.coco import write_coco
from datamodules.standin.flickr30k import write_flickr30k
from datamodules.standin.nocaps import write_nocaps
from datamodules.standin.visual_genome import write_visual_genome

WRITERS: Mapping[str, Callable[[Path, float], None]] = {
    "coco": write_coco,
    "flickr30k": write_flickr30k,
    "nocaps": write_nocaps,
    "visual_genome": write_visual_genome,
}
BYTES: Mapping[str, int] = {"coco": 640_000_000, "flickr30k": 430_000_000, "nocaps": 20_000_000, "visual_genome": 900_000_000}
"""Of a whole one on the disk, about: measured."""
