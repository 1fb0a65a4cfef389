"""The embedded world: small rendered scenes with captions, written to disk in the formats of the real data sets.

`sample_scene` (scenes.py) invents a scene, `render` (render.py) paints it, `describe` (captions.py) writes its five captions,
`region_descriptions` names its parts, `write_world` (write.py) puts a whole world on disk, where the readers of
`datamodules.formats` find it as they find COCO and Flickr30k.

Two dialects share the same semantics: `style="source"` (daylight, plain words) and `style="target"` (muted inks on paper,
other synonyms, other sentences), so that a model pre-trained on one has something to adapt to in the other.

Domains follow NoCaps: "in" shows only the `SEEN_KINDS`, "out" only the `NOVEL_KINDS`, "near" at least one of each. The COCO and
Flickr30k parts of a world are all "in".
"""
