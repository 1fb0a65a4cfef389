"""The images of a world as its scenes say them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.json_file import DECODER, why
from datamodules.files.text import open_text
from datamodules.formats.typed import read_typed
from datamodules.miniworld.captions import RegionDescription
from datamodules.miniworld.scenes import Scene
from datamodules.records import Caption


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

    def to_json(self) -> str:
        """One line; `read_scenes` reads it back."""
        return json.dumps(self, default=_fields, check_circular=False)

    def outline(self) -> WorldImage:
        """Without objects and phrases, which the files about all images do without: to send them from one process to another
        takes as long as to write them."""
        captions = tuple(Caption(caption.caption_id, caption.text) for caption in self.captions)
        return replace(self, scene=replace(self.scene, objects=(), relations=()), captions=captions)


def _fields(record: Any) -> dict[str, Any]:
    # `asdict` also copies all that is in them, which takes longer than to write a world's texts
    return {name: getattr(record, name) for name in record.__slots__}


def read_scenes(root: Path) -> Iterator[WorldImage]:
    """Every image of a written world, in the order of its scenes."""
    with open_text(Path(root) / "scenes.jsonl", "the scenes of a world, which `crosslight world` writes") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{root}/scenes.jsonl, line {number}"
            try:
                content = DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not a scene ({why(error)}); delete {root} and render it again.") from None
            yield read_typed(WorldImage, content, where)
