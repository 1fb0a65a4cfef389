"""What ties words to places in a world: region features, text databases and Flickr30k Entities, through the real writers.

Regions are the objects of a scene, as boxes of whole pixels, and nothing else: what a perfect detector would find. They come in
the order in which the captions first mention them (objects that no caption mentions last, the least hidden first), which is the
order of the boxes in Entities' annotation. The image databases have the layout "all", the only one that keeps that order
whatever the confidences are: with it, box k of an annotation is region k, and ISDa's reading "gt" is exact.

Legend: R regions of one image, D feature width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from datamodules.formats.flickr_entities import write_entities
from datamodules.formats.uniter.image_writer import ImageDatabaseWriter
from datamodules.formats.uniter.layout import Layout
from datamodules.formats.uniter.text_database import TextDatabaseWriter, Vocabulary
from datamodules.miniworld.images import WorldImage
from datamodules.miniworld.scenes import Scene, SceneObject
from datamodules.records import Box, Caption, Phrase

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CROP = 6
"""Side of the small picture that a region's features are."""
FEATURE_WIDTH = 3 * CROP * CROP


@dataclass(frozen=True, slots=True)
class SceneRegions:
    """The regions of one picture.

    `features_RD` are the pixels of the region's crop, shrunk to 6 x 6 with antialiasing, rows of RGB in -1..1: real pixels, no
    label. `boxes` in whole pixels. `confidences_R` is the part of the object that nothing hides (`SceneObject.visible`).
    """

    features_RD: npt.NDArray[np.float32]
    boxes: tuple[Box, ...]
    confidences_R: npt.NDArray[np.float32]


def scene_regions(scene: Scene, captions: Sequence[Caption], picture: Image.Image) -> SceneRegions:
    """The regions of a scene, of which there is always at least one. Captions are those of `describe`."""
    things = _by_mention(scene, captions)
    boxes = tuple(_whole_pixels(thing.box) for thing in things)
    features = [np.asarray(_crop(picture, box), np.float32).reshape(-1) / 127.5 - 1.0 for box in boxes]
    confidences = np.array([thing.visible for thing in things], np.float32)
    return SceneRegions(np.stack(features), boxes, confidences)


def _by_mention(scene: Scene, captions: Sequence[Caption]) -> list[SceneObject]:
    mentioned = [int(number) for caption in captions for phrase in caption.phrases for number in _objects(phrase)]
    rest = sorted(scene.objects, key=lambda thing: -thing.visible)
    return [scene.objects[number] for number in dict.fromkeys([*mentioned, *(thing.id for thing in rest)])]


def _objects(phrase: Phrase) -> list[str]:
    """Ids of the objects that a phrase of `describe` speaks of; surroundings are none."""
    return phrase.chain.split("+") if phrase.boxes else []


def _whole_pixels(box: Box) -> Box:
    return Box(math.floor(box.left), math.floor(box.top), math.ceil(box.right), math.ceil(box.bottom))


def _crop(picture: Image.Image, box: Box) -> Image.Image:
    return picture.resize((CROP, CROP), Image.Resampling.BILINEAR, box=(box.left, box.top, box.right, box.bottom))


# ----------------------------------------------------------------------------------------------------------- databases


def region_name(image: WorldImage) -> str:
    """An image's key in its image database, in the released naming: coco_train2014_000000000001.npz."""
    prefix = "flickr30k" if image.part == "flickr30k" else f"coco_{Path(image.file).parent.name}"
    return f"{prefix}_{int(image.image_id):012d}.npz"


def write_image_databases(root: Path, images: Sequence[tuple[WorldImage, SceneRegions]]) -> None:
    """`root/PART/img_db/{coco_train2014,coco_val2014,flickr30k}`, for the images of all parts."""
    by_folder: dict[Path, list[tuple[WorldImage, SceneRegions]]] = {}
    for image, regions in images:
        folder = root / image.part / "img_db" / region_name(image).rpartition("_")[0]
        by_folder.setdefault(folder, []).append((image, regions))
    for folder, its_images in by_folder.items():
        # One commit: a commit waits for the disk, and half a world is never kept.
        with ImageDatabaseWriter(folder, Layout("all"), commit_every=len(its_images)) as writer:
            for image, regions in its_images:
                size = image.scene.image_size
                boxes = [(box.left / size, box.top / size, box.right / size, box.bottom / size) for box in regions.boxes]
                writer.add(region_name(image), regions.features_RD, boxes, regions.confidences_R)
        _remove_lock(writer.folder)


def write_text_databases(
    folder: Path, kind: str, texts: Iterable[tuple[str, str, str, str]], tokenizer: Tokenizer, name: str
) -> None:
    """`folder/itm_KIND_SPLIT.db`, with the world's own word pieces.

    Args:
        folder: made when missing.
        kind: "coco" or "flickr30k".
        texts: split, text id, the image's name in the image database, and the words of every caption.
        tokenizer: of `write_tokenizer`.
        name: its name.
    """
    ids = tokenizer.get_vocab()
    special = {word: ids[f"[{word.upper()}]"] for word in ("unk", "cls", "sep", "mask")}
    vocabulary = Vocabulary(name, **special, first_word=max(special.values()) + 1, size=len(ids))
    known: dict[str, list[int]] = {}  # the world has few words, and says them often

    def pieces(word: str) -> list[int]:
        if word not in known:
            known[word] = tokenizer.encode(word, add_special_tokens=False).ids
        return known[word]

    by_split: dict[str, list[tuple[str, str, str]]] = {}
    for split, *text in texts:
        by_split.setdefault(split, []).append((text[0], text[1], text[2]))
    for split, its_texts in by_split.items():
        with TextDatabaseWriter(folder / f"itm_{kind}_{split}.db", pieces, vocabulary) as writer:
            for text_id, image_name, words in its_texts:
                writer.add(text_id, image_name, words)
        _remove_lock(writer.path)


def _remove_lock(folder: Path) -> None:
    """LMDB's lock file names the process that wrote; readers do without, and a world has the same bytes wherever it is made."""
    (folder / "lock.mdb").unlink()


# ------------------------------------------------------------------------------------------------ Flickr30k Entities


def write_entities_files(root: Path, images: Iterable[WorldImage]) -> None:
    """`root/Sentences/ID.txt` and `root/Annotations/ID.xml`."""
    for image in images:
        captions, scenes = entities_captions(image.captions)
        size = image.scene.image_size
        write_entities(root, image.image_id, (size, size), captions, scenes)


def entities_captions(captions: Sequence[Caption]) -> tuple[list[Caption], set[str]]:
    """Captions of `describe` as Entities has them, and the chains that stand for the whole scene.

    Words and punctuation are set apart by spaces; chains are numbers from 1 in the order of first mention (0 means "not
    visual" there); boxes are of whole pixels.
    """
    chains = {
        chain: str(number)
        for number, chain in enumerate(dict.fromkeys(phrase.chain for c in captions for phrase in c.phrases), start=1)
    }
    scenes = {chains[phrase.chain] for caption in captions for phrase in caption.phrases if not phrase.boxes}
    found = []
    for caption in captions:
        words = list(re.finditer(r"\w+|[^\w\s]", caption.text))
        starts, position = {}, 0  # of each word: where it was -> where it is
        for word in words:
            starts[word.start()] = position
            position += len(word[0]) + 1
        text = " ".join(word[0] for word in words)
        phrases = []
        for phrase in caption.phrases:
            start = starts[phrase.start]  # a phrase is words with single spaces between them: its length stays
            boxes = tuple(_whole_pixels(box) for box in phrase.boxes)
            end = start + phrase.end - phrase.start
            phrases.append(replace(phrase, start=start, end=end, chain=chains[phrase.chain], boxes=boxes))
        found.append(replace(caption, text=text, phrases=tuple(phrases)))
    return found, scenes
