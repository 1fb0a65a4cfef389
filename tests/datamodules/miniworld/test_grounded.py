"""What a world says about regions and phrases: true to its scenes, its pictures and its captions, read by the real readers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.flickr30k import Flickr30k
from datamodules.formats.flickr_entities import read_entities, word_pieces
from datamodules.formats.uniter.image_database import ImageDatabase
from datamodules.formats.uniter.layout import Layout
from datamodules.formats.uniter.text_database import TextDatabase
from datamodules.loading.objects import annotated_regions, overlapping_regions
from datamodules.miniworld.images import WorldImage, read_scenes
from datamodules.miniworld.write import write_world
from datamodules.records import Box

SIZE = 64


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "small"
    return write_world(root, scenes=40, seed=6, style="source", image_size=SIZE, workers=1)


@pytest.fixture(scope="module")
def images(world: Path) -> list[WorldImage]:
    return list(read_scenes(world))


def database(world: Path, image: WorldImage) -> tuple[ImageDatabase, str]:
    if image.part == "flickr30k":
        return ImageDatabase(world / "flickr30k/img_db/flickr30k", Layout("all")), f"flickr30k_{int(image.image_id):012d}.npz"
    folder = "coco_train2014" if image.split == "train" else "coco_val2014"
    return ImageDatabase(world / "coco/img_db" / folder, Layout("all")), f"{folder}_{int(image.image_id):012d}.npz"


def test_every_object_is_a_region_and_no_image_lacks_any(world: Path, images: list[WorldImage]) -> None:
    names: dict[Path, set[str]] = {}
    for image in images:
        regions_of, name = database(world, image)
        names.setdefault(regions_of.path, set()).add(name)
        regions = regions_of.read(name)
        assert regions.features_RD.shape == (len(image.scene.objects), 108)
        rounded = {
            (np.floor(t.box.left), np.floor(t.box.top), np.ceil(t.box.right), np.ceil(t.box.bottom)): t.visible
            for t in image.scene.objects
        }
        for box_7, confidence in zip(regions.boxes_R7, regions.confidences_R, strict=True):
            assert rounded.pop(tuple(box_7[:4] * SIZE)) == pytest.approx(confidence, abs=1e-3)  # sixty-fourths are exact in fp16
        assert not rounded
    assert {path: set(ImageDatabase(path, Layout("all")).names()) for path in names} == names
    assert len(names) == 3


def test_features_are_the_pixels_of_the_crop(world: Path, images: list[WorldImage]) -> None:
    differences = []
    for image in images[::4]:
        regions_of, name = database(world, image)
        regions = regions_of.read(name)
        with Image.open(world / image.file) as picture:
            pixels = np.asarray(picture, np.float64)
        for features_D, box_7 in zip(regions.features_RD, regions.boxes_R7, strict=True):
            left, top, right, bottom = (box_7[:4] * SIZE).astype(int)
            crop = pixels[top:bottom, left:right]
            # A plain mean over the middle third, independent of Pillow's filter.
            rows, columns = (slice(length // 3, -(-2 * length // 3)) for length in crop.shape[:2])
            middle = crop[rows, columns].mean((0, 1)) / 127.5 - 1
            differences.append(np.abs(features_D.reshape(6, 6, 3)[2:4, 2:4].mean((0, 1)) - middle).max())
            assert -1 <= features_D.min() <= features_D.max() <= 1
    assert max(differences) < 0.2  # JPEG and the filter's neighbourhood; another crop is far off
    assert np.mean(differences) < 0.05


def test_text_databases_hold_karpathys_captions(world: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(world / "tokenizer"))
    for part, file in (("coco", "annotations/dataset_coco.json"), ("flickr30k", "dataset_flickr30k.json")):
        entries = json.loads((world / part / file).read_text())["images"]
        splits = {entry["split"] for entry in entries}
        assert splits == {"train", "val", "test"} | ({"restval"} if part == "coco" else set())
        for split in splits:
            texts = TextDatabase(world / f"{part}/txt_db/itm_{part}_{split}.db")
            assert texts.vocabulary.size == len(tokenizer)
            assert (texts.vocabulary.cls, texts.vocabulary.sep) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            sentences = {str(s["sentid"]): (s["raw"], e) for e in entries if e["split"] == split for s in e["sentences"]}
            assert texts.text_ids == list(sentences)
            for text_id, (raw, entry) in sentences.items():
                text = texts.read(text_id)
                assert list(text.input_ids) == tokenizer(raw, add_special_tokens=False)["input_ids"]
                assert text.text == raw
                number = f"{int(re.findall(r'[0-9]+', entry['filename'])[-1]):012d}"
                assert text.image_name.endswith(f"_{number}.npz")
            folders = list((world / part / "img_db").iterdir())
            known = {name for folder in folders for name in ImageDatabase(folder, Layout("all")).names()}
            assert set(texts.image_texts) <= known


def test_entities_say_what_the_scenes_say(world: Path, images: list[WorldImage]) -> None:
    scenes = 0
    for image in (image for image in images if image.part == "flickr30k"):
        entities = read_entities(world / "flickr30k/flickr30k_entities", image.image_id)
        assert (entities.annotation.width, entities.annotation.height) == (SIZE, SIZE)
        chains: dict[str, str] = {}
        for ours, theirs in zip(image.captions, entities.captions, strict=True):
            assert theirs.text == " ".join(re.findall(r"\w+|[^\w\s]", ours.text))
            for phrase, read in zip(ours.phrases, theirs.phrases, strict=True):
                assert theirs.text[read.start : read.end] == ours.text[phrase.start : phrase.end]
                assert chains.setdefault(phrase.chain, read.chain) == read.chain
                assert read.category == phrase.category
                rounded = tuple(
                    Box(np.floor(box.left), np.floor(box.top), np.ceil(box.right), np.ceil(box.bottom)) for box in phrase.boxes
                )
                assert read.boxes == rounded
        assert len(set(chains.values())) == len(chains)
        assert "0" not in chains.values()
        assert entities.annotation.scenes == ({chains["scene"]} if "scene" in chains else set())
        scenes += len(entities.annotation.scenes)
    assert scenes > 3


def test_boxes_of_the_annotation_are_the_first_regions_in_their_order(world: Path, images: list[WorldImage]) -> None:
    """So that the reading "gt" of ISDa is exact, and "iou" of the same regions agrees with it."""
    several = 0
    for image in (image for image in images if image.part == "flickr30k"):
        entities = read_entities(world / "flickr30k/flickr30k_entities", image.image_id)
        regions_of, name = database(world, image)
        fractions_R4 = torch.from_numpy(regions_of.read(name).boxes_R7[:, :4])
        boxes = entities.annotation.boxes
        torch.testing.assert_close(
            fractions_R4[: len(boxes)], torch.from_numpy(entities.annotation.fractions_K4()), atol=1e-6, rtol=0
        )
        chains = list(dict.fromkeys(p.chain for c in entities.captions for p in c.phrases if p.boxes))
        shown_NK = annotated_regions(entities.annotation, chains)
        assert shown_NK.sum() == len(boxes)
        overlapping_NR = overlapping_regions(
            fractions_R4, [entities.annotation.boxes_of(chain) for chain in chains], (SIZE, SIZE)
        )
        assert (overlapping_NR[:, : len(boxes)] | ~shown_NK).all()
        several += len(chains) > 1
    assert several > 3


def test_entities_words_have_the_text_databases_word_pieces(world: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(world / "tokenizer"))
    texts = TextDatabase(world / "flickr30k/txt_db/itm_flickr30k_train.db")
    for name, text_ids in texts.image_texts.items():
        image_id = name.removeprefix("flickr30k_").removesuffix(".npz").lstrip("0")
        captions = read_entities(world / "flickr30k/flickr30k_entities", image_id).captions
        for caption, text_id in zip(captions, text_ids, strict=True):
            pieces = word_pieces(caption.text, (), lambda word: tokenizer(word, add_special_tokens=False)["input_ids"])
            assert pieces.input_ids == texts.read(text_id).input_ids


def test_the_flickr30k_reader_finds_the_entities_split(world: Path, images: list[WorldImage]) -> None:
    module = Flickr30k(str(world / "flickr30k"), split="entities")
    for split in ("train", "val", "test"):
        expected = [image.image_id for image in images if (image.part, image.split) == ("flickr30k", split)]
        assert [record.image_id for record in module.records(split)] == expected


def test_a_world_has_no_lock_files(world: Path) -> None:
    assert not list(world.rglob("lock.mdb"))
