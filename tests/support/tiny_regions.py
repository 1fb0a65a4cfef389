"""Tiny image-text data sets whose images are UNITER databases of region features."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tiny_data import WORDS, karpathy

from datamodules.formats.uniter.image_writer import ImageDatabaseWriter
from datamodules.formats.uniter.layout import Layout
from datamodules.formats.uniter.text_database import TextDatabaseWriter, Vocabulary
from datamodules.inputs import Inputs, RegionInput, TextInput
from datamodules.loading.region_files import RegionFiles

WIDTH = 6
LAYOUT = Layout(max_bb=9, min_bb=2)
VOCABULARY = Vocabulary("tiny words", unk=1, cls=2, sep=3, mask=1, first_word=4, size=4 + len(WORDS))
SPLITS = {"train": 12, "val": 5, "test": 3}


def word_ids(word: str) -> list[int]:
    """As the tokenizer of conftest.py."""
    return [4 + WORDS.index(word) if word in WORDS else 1]


def region_values(seed: int, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """features [R, D] that fp16 holds, boxes [R, 4], falling confidences above the threshold; R is 3 to 9."""
    source = np.random.default_rng(seed)
    count = int(source.integers(3, 10))
    corners = np.sort(source.integers(0, 65, (count, 2, 2)), axis=1).reshape(count, 4) / 64
    confidences = np.sort(source.integers(32, 65, count))[::-1] / 64
    return source.normal(size=(count, width)).astype(np.float16).astype(np.float32), corners, confidences


def write_images(path: Path, names: dict[str, int], width: int = WIDTH, layout: Layout = LAYOUT) -> None:
    """An image database; `names` gives each image's seed."""
    with ImageDatabaseWriter(path, layout) as writer:
        for name, seed in names.items():
            writer.add(name, *region_values(seed, width))


def write_root(
    root: Path,
    splits: dict[str, int] | None = None,
    name_of: Callable[[int], str] = "flickr30k_{:012d}.npz".format,
    vocabulary: Vocabulary = VOCABULARY,
) -> Path:
    """Flickr30k without a photograph: dataset_flickr30k.json, img_db/flickr30k and txt_db/itm_flickr30k_SPLIT.db. Image i is
    1000 + i, of seed i, and has 1 + i % 5 captions."""
    content = karpathy(splits or SPLITS)
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_flickr30k.json").write_text(json.dumps(content))
    write_images(root / "img_db" / "flickr30k", {name_of(1000 + image["imgid"]): image["imgid"] for image in content["images"]})
    for split in splits or SPLITS:
        with TextDatabaseWriter(root / "txt_db" / f"itm_flickr30k_{split}.db", word_ids, vocabulary) as writer:
            for image in content["images"]:
                for sentence in image["sentences"] if image["split"] == split else ():
                    writer.add(str(sentence["sentid"]), name_of(1000 + image["imgid"]), sentence["raw"])
    return root


def region_files(texts: bool = True, **options: object) -> RegionFiles:
    text_db = {split: [f"txt_db/itm_flickr30k_{split}.db"] for split in SPLITS} if texts else None
    return RegionFiles(**{"image_db": "img_db/flickr30k", "max_bb": 9, "min_bb": 2, "text_db": text_db, **options})  # type: ignore[arg-type]


def region_inputs(tokenizer: Path | None = None, width: int = WIDTH, max_tokens: int = 64) -> Inputs:
    """What a network of regions wants."""
    spec = TextInput(None if tokenizer is None else str(tokenizer), max_tokens, VOCABULARY.size)
    return Inputs(text=spec, regions=RegionInput(width))
