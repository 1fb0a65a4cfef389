"""The images of a world as its scenes say them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.miniworld.captions import RegionDescription
from datamodules.miniworld.scenes import Scene
from datamodules.records import Box, Caption, Phrase


@dataclass(frozen=True, slots=True)
class WorldImage:
    """One line of `scenes.jsonl`.

    `part` is "coco" or "flickr30k", `image_id` the id in that part's own files, `file` is relative to the world's root.
    """

    part: str
    split: str
    image_id: str
    file: str
    scene: Scene
    captions: tuple[Caption, ...]
    regions: tuple[RegionDescription, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WorldImage:
        """The inverse of `to_dict`."""
        captions = tuple(
            Caption(
                entry["caption_id"],
                entry["text"],
                tuple(Phrase(**{**phrase, "boxes": tuple(Box(**box) for box in phrase["boxes"])}) for phrase in entry["phrases"]),
            )
            for entry in values["captions"]
        )
        regions = tuple(
            RegionDescription(entry["text"], Box(**entry["box"]), tuple(entry["objects"])) for entry in values["regions"]
        )
        return cls(**{**values, "scene": Scene.from_dict(values["scene"]), "captions": captions, "regions": regions})


def read_scenes(root: Path) -> Iterator[WorldImage]:
    """Every image of a written world, in the order of its scenes."""
    path = Path(root) / "scenes.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: no such file; write a world there first (`crosslight world`).")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield WorldImage.from_dict(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}, line {number}: not a scene ({error}); delete {root} and render it again.") from error
