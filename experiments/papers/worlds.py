"""The embedded worlds that miniature runs read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.papers.schema import Style

if TYPE_CHECKING:
    from datamodules.miniworld.captioned import NoCapsCounts


@dataclass(frozen=True)
class World:
    """Arguments of `write_world`.

    Args:
        scenes: Images of the COCO and Flickr30k parts together.
        splits: Shares of the parts and of their splits.
        nocaps: Images of each domain in NoCaps' val; None = `NoCapsCounts.of` the scenes.
    """

    scenes: int
    splits: dict[str, float] = field(hash=False)
    nocaps: int | None = None

    def counts(self) -> NoCapsCounts | None:
        from datamodules.miniworld.captioned import NoCapsCounts

        return None if self.nocaps is None else NoCapsCounts((self.nocaps, self.nocaps, self.nocaps), (2, 2, 2))


# What is adapted to: COCO 1,200 + 160 / 128 / 512 images, Flickr30k 1,360 / 128 / 512.
_DATA = World(
    scenes=4000,
    splits={
        "coco": 0.5, "coco_train": 0.6, "coco_restval": 0.08, "coco_val": 0.064, "flickr_train": 0.68, "flickr_val": 0.064,
    },
    nocaps=160,
)  # fmt: skip
WORLDS: dict[Style, World] = {
    "source": _DATA,
    "target": _DATA,
    # What the shipped weights were pre-trained on: 38,500 / 500 / 500 images in the Flickr30k part.
    "web": World(
        scenes=40_000,
        splits={
            "coco": 0.0125, "coco_train": 0.6, "coco_restval": 0.1, "coco_val": 0.1, "flickr_train": 0.9746835,
            "flickr_val": 0.0126582,
        },
    ),
}  # fmt: skip


def world_folder(root: Path, style: str) -> Path:
    return root.absolute() / "worlds" / style


def world_arguments(style: Style) -> dict[str, Any]:
    """What decides the contents of the world that recipes of this style read."""
    return asdict(WORLDS[style])


def write_miniature_world(folder: Path, style: Style) -> Path:
    """The embedded world that recipes of this style read, rendered into `folder` unless it is there. Returns the folder.

    Raises:
        InputError: `folder` holds something else, or the disk is full.
    """
    from datamodules.miniworld.write import Splits, write_world

    world = WORLDS[style]
    return write_world(folder, scenes=world.scenes, seed=0, style=style, splits=Splits(**world.splits), nocaps=world.counts())
