"""The embedded world: small rendered scenes with captions, written to disk in the formats of the real data sets.

`sample_scene` invents a scene, `render` paints it, `describe` writes its five captions, `region_descriptions` names its parts,
`write_world` puts a whole world on disk, where the readers of `datamodules.formats` find it as they find COCO and Flickr30k.

Two dialects share the same semantics: `style="source"` (daylight, plain words) and `style="target"` (muted inks on paper,
other synonyms, other sentences), so that a model pre-trained on one has something to adapt to in the other.

Domains follow NoCaps: "in" shows only the `SEEN_KINDS`, "out" only the `NOVEL_KINDS`, "near" at least one of each. The COCO and
Flickr30k parts of a world are all "in".
"""

from __future__ import annotations

from datamodules.miniworld.captions import RegionDescription, describe, region_descriptions, vocabulary
from datamodules.miniworld.images import WorldImage, read_scenes
from datamodules.miniworld.render import render
from datamodules.miniworld.scenes import (
    NOVEL_KINDS,
    SEEN_KINDS,
    Domain,
    Light,
    Relation,
    Scene,
    SceneObject,
    Style,
    sample_scene,
)
from datamodules.miniworld.write import Splits, write_tokenizer, write_world

__all__ = [
    "NOVEL_KINDS",
    "SEEN_KINDS",
    "Domain",
    "Light",
    "RegionDescription",
    "Relation",
    "Scene",
    "SceneObject",
    "Splits",
    "Style",
    "WorldImage",
    "describe",
    "read_scenes",
    "region_descriptions",
    "render",
    "sample_scene",
    "vocabulary",
    "write_tokenizer",
    "write_world",
]
