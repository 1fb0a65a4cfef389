"""A stand-in for Flickr30k with Flickr30k Entities: 31,783 photographs, of which Karpathy's file has 31,014; and the files that
say which photographs of Flickr are evaluated on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.files.atomic import staging_folder, whole_file, write_atomically
from datamodules.formats.flickr_entities import write_entities
from datamodules.records import Box, Caption, Phrase
from datamodules.standin.amounts import begin_share, generator, part_of
from datamodules.standin.karpathy import Captioned, counted, write_karpathy
from datamodules.standin.pictures import size_of, write_pictures
from datamodules.standin.regions import RELEASED, write_image_database, write_text_database
from datamodules.standin.words import sentences

SPLITS = (("train", 29_000), ("val", 1_014), ("test", 1_000))
"""Of Karpathy's file, which lacks 769 photographs."""
_BEYOND = 769
_FLICKR8K = (("train", 6_000), ("val", 1_000), ("test", 1_000))
_CAPTIONS = 5
_CATEGORIES = ("people", "clothing", "bodyparts", "scene", "other")
_EXTRACTED = 1024


def write_flickr30k(root: Path, share: float = 1.0) -> None:
    """Everything that full-scale runs read of Flickr30k and Flickr30k Entities.

    Args:
        root: Its folder.
        share: How much of it.

    Raises:
        InputError: `root` holds something else.
    """
    begin_share(root, "flickr30k", share)
    images = flickr30k_images(share)
    of_karpathy = [image for image in images if image.split]
    write_karpathy(root / "dataset_flickr30k.json", "flickr30k", of_karpathy)
    _write_token_file(root / "results_20130124.token", images)
    write_pictures(root / "flickr30k-images", [image.file for image in images])
    _write_entities(root / "flickr30k_entities", images, share)
    write_image_database(root / "img_db" / "flickr30k", [region_name(image) for image in images], *RELEASED)
    write_image_database(root / "img_db" / "frcnn", [f"{image.number}.npz" for image in images], _EXTRACTED)
    for split, _ in SPLITS:
        texts = (
            (str(identity), region_name(image), text)
            for image in of_karpathy
            if image.split == split
            for identity, text in image.captions
        )
        write_text_database(root / "txt_db" / f"itm_flickr30k_{split}.db", texts)


@lru_cache(maxsize=1)
def flickr30k_images(share: float) -> tuple[Captioned, ...]:
    """All photographs; those that Karpathy's file lacks have no split."""
    splits = [(split, part_of(count, share)) for split, count in (*SPLITS, ("", _BEYOND))]
    images = counted([(split, count, _CAPTIONS * count) for split, count in splits])
    texts = sentences(generator("flickr30k"), _CAPTIONS * len(images), mean=12.4, most=60)
    found = []
    for place, (split, count) in enumerate(images):
        number = int(_all_numbers()[place])
        captions = tuple((row, texts[row]) for row in range(place * count, (place + 1) * count))
        found.append(Captioned(number, f"{number}.jpg", split, captions, None, *size_of(place)))
    return tuple(found)


@lru_cache(maxsize=1)
def _all_numbers() -> npt.NDArray[np.int64]:
    return np.asarray(generator("flickr numbers").permutation(8_000_000)[:32_000] + 36_979, np.int64)


def flickr_numbers(share: float) -> npt.NDArray[np.int64]:
    """Ids on Flickr of the photographs that Karpathy's file has."""
    return np.array([image.number for image in flickr30k_images(share) if image.split])


def region_name(image: Captioned) -> str:
    """In UNITER's databases."""
    return f"flickr30k_{image.number:012d}.npz"


def _write_token_file(path: Path, images: Sequence[Captioned]) -> None:
    """The data set's own captions: a line is NAME.jpg#PLACE, a tab, the words."""
    if path.exists():
        return
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        for image in images:
            file.writelines(f"{image.file}#{place}\t{text}\n" for place, (_, text) in enumerate(image.captions))


def _write_entities(root: Path, images: Sequence[Captioned], share: float) -> None:
    """Sentences, Annotations and the three lists: 29,783 / 1,000 / 1,000, of which val and test are Karpathy's."""
    root.mkdir(exist_ok=True)
    held = {split: [image.number for image in images if image.split == split] for split in ("val", "test")}
    held["val"] = held["val"][: part_of(1_000, share)]
    chosen = {number for numbers in held.values() for number in numbers}
    lists = {"train": [image.number for image in images if image.number not in chosen], **held}
    for split, numbers in lists.items():
        write_atomically(root / f"{split}.txt", "".join(f"{number}\n" for number in numbers))
    if (root / "Sentences").exists():
        return
    with staging_folder(root / "made") as made:
        for image in images:
            write_entities(made, str(image.number), (image.width, image.height), _phrased(image))
        shutil.rmtree(root / "Annotations", ignore_errors=True)  # of a writer that was killed between these two
        (made / "Annotations").rename(root / "Annotations")
        (made / "Sentences").rename(root / "Sentences")  # last: it says that both are there


def _phrased(image: Captioned) -> list[Caption]:
    """Two phrases a caption, of one word and of two, each a thing with a box."""
    random = generator("boxes", image.number)
    boxes = {}
    for chain in range(1, 5):
        left, top = int(random.integers(0, image.width // 2)), int(random.integers(0, image.height // 2))
        right, bottom = int(random.integers(left + 20, image.width)), int(random.integers(top + 20, image.height))
        boxes[str(chain)] = (Box(left, top, right, bottom),)
    captions = []
    for place, (_, text) in enumerate(image.captions):
        words = text.split(" ")
        starts = [sum(len(word) + 1 for word in words[:number]) for number in range(len(words))]
        spans = ((0, 1, place % 4 + 1), (len(words) - 2, len(words), (place + 1) % 4 + 1))
        phrases = tuple(
            Phrase(starts[first], starts[last - 1] + len(words[last - 1]), str(chain), _CATEGORIES[chain % 5], boxes[str(chain)])
            for first, last, chain in spans
        )
        captions.append(Caption(f"{image.number}#{place}", text, phrases))
    return captions


# ------------------------------------------------------------------------------------------------ what is evaluated on


def write_held_out(folder: Path, share: float) -> None:
    """Karpathy's files of Flickr30k and Flickr8k, for data sets that leave out what those evaluate on."""
    images = [image for image in flickr30k_images(share) if image.split]
    write_karpathy(folder / "dataset_flickr30k.json", "flickr30k", images)
    few = iter(images)
    eighth = []
    for split, count in _FLICKR8K:
        for _, image in zip(range(part_of(count, share)), few, strict=False):
            captions = image.captions
            eighth.append(Captioned(image.number, f"{image.number}_0123456789.jpg", split, captions))
    write_karpathy(folder / "dataset_flickr8k.json", "flickr8k", eighth)
