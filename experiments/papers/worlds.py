"""The embedded worlds that miniature runs read."""

from __future__ import annotations

from pathlib import Path

from experiments.papers.schema import Style


def world_folder(root: Path, style: str) -> Path:
    return root.absolute() / "worlds" / style


# The embedded world of the miniature scale: COCO 640 / 64 / 96 images, Flickr30k 640 / 64 / 96.
SCENES = 1600
SPLITS = {"coco": 0.5, "coco_train": 0.7, "coco_restval": 0.1, "coco_val": 0.08, "flickr_train": 0.8, "flickr_val": 0.08}


def write_miniature_world(folder: Path, style: Style) -> Path:
    """The embedded world that recipes of this style read, rendered into `folder` unless it is there. Returns the folder.

    Raises:
        InputError: `folder` holds something else, or the disk is full.
    """
    from datamodules.miniworld.write import Splits, write_world

    return write_world(folder, scenes=SCENES, seed=0, style=style, splits=Splits(**SPLITS))
