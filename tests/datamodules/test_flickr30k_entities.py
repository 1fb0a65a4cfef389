"""Flickr30k Entities as a data module: captions, phrases, and the pairs that ISDa is measured on."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from datamodules.errors import InputError
from datamodules.flickr30k import Flickr30k
from datamodules.flickr30k_entities import Flickr30kEntities
from datamodules.formats.flickr_entities import read_entities, write_entities
from datamodules.formats.uniter.image_database import ImageDatabase
from datamodules.formats.uniter.image_writer import ImageDatabaseWriter
from datamodules.formats.uniter.layout import Layout
from datamodules.inputs import ImageInput, Inputs, RegionInput, TextInput
from datamodules.loading.objects import patches_under
from datamodules.loading.ranking import Ranking
from datamodules.loading.region_files import RegionFiles
from datamodules.miniworld.write import write_world
from datamodules.prepare.check import run_check
from datamodules.records import Box, Caption, ImageBatch, PairBatch, Phrase, RankingBatch, TextBatch

REGIONS = RegionFiles("img_db/flickr30k", kind="all")
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "w", scenes=60, seed=2, image_size=64, workers=1)


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """The Flickr30k part of a world, to be spoiled."""
    return shutil.copytree(world / "flickr30k", tmp_path / "flickr30k")


def inputs_of(world: Path, max_tokens: int = 64) -> Inputs:
    return Inputs(text=TextInput(str(world / "tokenizer"), max_tokens), regions=RegionInput(108))


def connected(world: Path, root: Path | None = None, max_tokens: int = 64, **options: Any) -> Flickr30kEntities:
    options = {"regions": REGIONS, "num_workers": 0, "eval_batch_size": 7} | options
    module = Flickr30kEntities(str(root or world / "flickr30k"), **options)
    module.connect(inputs_of(world, max_tokens))
    return module


def pairs_of(module: Flickr30kEntities, split: str = "test") -> list[PairBatch]:
    images, texts, pairs = module.evaluation_loaders(split)
    assert isinstance(next(iter(images)), ImageBatch)
    assert isinstance(next(iter(texts)), TextBatch)
    return list(pairs)


Objects = list[tuple[frozenset[str], frozenset[int]]]


def as_read(batches: list[PairBatch]) -> dict[str, Objects]:
    """{caption id: its objects as (words with their positions, regions)}, from the batches."""
    found: dict[str, Objects] = {}
    for batch in batches:
        assert batch.objects is not None
        for row, caption_id in enumerate(batch.texts.caption_ids):
            words = batch.texts.texts[row].split()
            objects = found[caption_id] = []
            assert batch.images.index_B[row] == batch.texts.image_index_B[row]
            assert caption_id.startswith(f"{batch.images.image_ids[row]}#")
            for number in batch.objects.mask_BN[row].nonzero().flatten().tolist():
                columns = batch.objects.words_BNT[row, number].nonzero().flatten().tolist()
                shown = batch.objects.regions_BNR[row, number].nonzero().flatten().tolist()
                objects.append((frozenset(f"{column - 1} {words[column - 1]}" for column in columns), frozenset(shown)))
            assert not batch.objects.words_BNT[row, len(objects) :].any()
            assert not batch.objects.regions_BNR[row, len(objects) :].any()
    return found


def naive(folder: Path, image_ids: list[str]) -> dict[str, Objects]:
    """The same from the files, by regular expressions. (A word of a world is one word piece.)"""
    found: dict[str, Objects] = {}
    for image_id in image_ids:
        boxes = [
            [name.text for name in element.findall("name")]
            for element in ElementTree.parse(folder / f"Annotations/{image_id}.xml").getroot().iter("object")
            if element.find("bndbox") is not None
        ]
        for number, line in enumerate((folder / f"Sentences/{image_id}.txt").read_text().splitlines()):
            words: dict[str, set[str]] = {}
            position = 0
            for chain, phrase, word in re.findall(r"\[/EN#(\d+)/\S+ ([^\]]+)\]|(\S+)", line):
                for piece in (phrase or word).split():
                    if chain:
                        words.setdefault(chain, set()).add(f"{position} {piece}")
                    position += 1
            objects = [
                (frozenset(its), frozenset(k for k, names in enumerate(boxes) if chain in names)) for chain, its in words.items()
            ]
            objects = [(its, shown) for its, shown in objects if shown]
            if len(objects) >= 2:
                found[f"{image_id}#{number}"] = objects
    return found


# --------------------------------------------------------------------------------------------------------------- objects


@pytest.mark.parametrize("split", SPLITS)
def test_objects_are_those_of_a_naive_reading_of_the_files(world: Path, split: str) -> None:
    folder = world / "flickr30k/flickr30k_entities"
    expected = naive(folder, (folder / f"{split}.txt").read_text().split())
    assert as_read(pairs_of(connected(world), split)) == expected
    if split == "train":
        assert len(expected) > 20
        assert any(len(shown) > 1 for objects in expected.values() for _, shown in objects)  # "two red balls"


def test_overlap_finds_the_annotated_regions(world: Path) -> None:
    """Nothing in this world covers half of anything else; where something does, see below."""
    gt, iou = (as_read(pairs_of(connected(world, phrase_regions=how), "train")) for how in ("gt", "iou"))
    assert gt == iou


SIZE = (100, 80)
LEFT, RIGHT, TOP = Box(0, 0, 40, 80), Box(60, 0, 100, 80), Box(0, 0, 100, 10)
TEXT = "a red ball and the cube on the grass , a ball"


def caption(number: int, text: str, *phrases: tuple[str, str, str, tuple[Box, ...]]) -> Caption:
    found, position = [], 0
    for words, chain, category, boxes in phrases:
        position = text.index(words, position)
        found.append(Phrase(position, position + len(words), chain, category, boxes))
        position += len(words)
    return Caption(f"7#{number}", text, tuple(found))


CAPTIONS = (
    caption(0, TEXT, ("a red ball", "5", "toys", (LEFT, RIGHT)), ("the cube", "3", "toys", (TOP,)),
            ("the grass", "9", "scene", ()), ("a ball", "5", "toys", (LEFT, RIGHT))),
    caption(1, "the cube on the grass", ("the cube", "3", "toys", (TOP,)), ("the grass", "9", "scene", ())),  # one object
    caption(2, "a cube , a cube", ("a cube", "3", "toys", (TOP,)), ("a cube", "3", "toys", (TOP,))),  # one object, twice
    caption(3, "the cube and the ball", ("the cube", "0", "notvisual", ()), ("the ball", "5", "toys", (LEFT, RIGHT))),
    caption(4, "the ball left of the cube", ("the ball", "5", "toys", (LEFT, RIGHT)), ("left", "8", "other", ()),
            ("the cube", "3", "toys", (TOP,))),
)  # fmt: skip


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """One image with captions by hand; its regions are the three annotated boxes and one more."""
    root = tmp_path / "one"
    entities = root / "flickr30k_entities"
    write_entities(entities, "7", SIZE, CAPTIONS, scenes={"9"})
    for split in SPLITS:
        (entities / f"{split}.txt").write_text("7\n" if split == "test" else "\n")
    fractions = read_entities(entities, "7").annotation.fractions_K4().tolist()
    with ImageDatabaseWriter(root / "img_db/flickr30k", Layout("all")) as writer:
        writer.add("7.npz", torch.rand(4, 108), [*fractions, [0.05, 0, 0.4, 0.9]], [0.5, 0.9, 0.1, 1.0])
    return root


def test_chains_with_boxes_are_objects_in_the_order_of_first_mention(world: Path, one: Path) -> None:
    """Several phrases of a chain are one object; the scene, chain 0 and what is not to be seen are none; fewer than two are
    skipped."""
    batches = pairs_of(connected(world, one))
    ball = frozenset({"0 a", "1 red", "2 ball", "10 a", "11 ball"}), frozenset({0, 1})
    assert as_read(batches) == {
        "7#0": [ball, (frozenset({"4 the", "5 cube"}), frozenset({2}))],
        "7#4": [(frozenset({"0 the", "1 ball"}), frozenset({0, 1})), (frozenset({"4 the", "5 cube"}), frozenset({2}))],
    }
    assert [batch.texts.index_B.tolist() for batch in batches] == [[4, 0]]  # rows among all five captions, shortest first
    overlapping = as_read(pairs_of(connected(world, one, phrase_regions="iou")))
    assert overlapping["7#0"][0] == (ball[0], frozenset({0, 1, 3}))


def test_what_a_cut_caption_does_not_say_is_no_object(world: Path, one: Path) -> None:
    with pytest.warns(UserWarning, match="max_tokens"):
        batches = pairs_of(connected(world, one, max_tokens=7))  # five words
    assert as_read(batches) == {
        "7#0": [(frozenset({"0 a", "1 red", "2 ball"}), frozenset({0, 1})), (frozenset({"4 the"}), frozenset({2}))],
        "7#4": [(frozenset({"0 the", "1 ball"}), frozenset({0, 1})), (frozenset({"4 the"}), frozenset({2}))],
    }
    with pytest.warns(UserWarning, match="max_tokens"):
        assert pairs_of(connected(world, one, max_tokens=6)) == []


def test_a_fixed_subset_of_the_pairs(world: Path) -> None:
    every, first = as_read(pairs_of(connected(world), "train")), as_read(pairs_of(connected(world, object_pairs=6), "train"))
    order = [caption.caption_id for record in connected(world).records("train") for caption in record.captions]
    assert set(first) == set(sorted(every, key=order.index)[:6])
    assert all(every[caption_id] == objects for caption_id, objects in first.items())
    with pytest.raises(InputError, match="object_pairs is 0"):
        connected(world, object_pairs=0)


def test_every_pair_is_on_one_process(world: Path) -> None:
    module = connected(world)
    found = []
    for rank in range(3):
        module.connect(inputs_of(world), rank, 3)
        found.append(list(as_read(pairs_of(module, "train"))))
    joined = list(itertools.chain(*found))
    module.connect(inputs_of(world))
    assert len(joined) == len(set(joined))
    assert set(joined) == set(as_read(pairs_of(module, "train")))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_pixels_come_without_objects_but_with_phrases(world: Path) -> None:
    half = (0.5, 0.5, 0.5)
    module = Flickr30kEntities(str(world / "flickr30k"), num_workers=0)
    module.connect(Inputs(ImageInput(16, half, half, resize="squash"), TextInput(str(world / "tokenizer"))))
    images, texts = module.evaluation_loaders("test")
    assert next(iter(images)).pixels_B3HW is not None
    batch = next(iter(texts))
    for row, caption_id in enumerate(batch.caption_ids):
        image_id, _, number = caption_id.partition("#")
        expected = read_entities(world / "flickr30k/flickr30k_entities", image_id).captions[int(number)]
        assert (batch.texts[row], batch.phrases[row]) == (expected.text, expected.phrases)


def test_a_scorer_of_pixels_gets_the_same_objects_and_patches_under_their_boxes(world: Path) -> None:
    half = (0.5, 0.5, 0.5)
    image = ImageInput(32, half, half, resize="keep", longest=53, patch=8)
    module = Flickr30kEntities(str(world / "flickr30k"), num_workers=0, augment="none", ranking=Ranking(candidates=3))
    module.connect(Inputs(image, TextInput(str(world / "tokenizer")), ranking=True))
    pairs = pairs_of(module)
    regions = as_read(pairs_of(connected(world)))
    found = as_read(pairs)
    assert found.keys() == regions.keys()
    for batch in pairs:
        assert batch.objects is not None
        assert batch.images.pixels_B3HW is not None
        for row, caption_id in enumerate(batch.texts.caption_ids):
            image_id = batch.images.image_ids[row]
            annotation = read_entities(world / "flickr30k/flickr30k_entities", image_id).annotation
            size = batch.images.pixels_B3HW.shape[2:] if batch.images.sizes_B2 is None else batch.images.sizes_B2[row].tolist()
            chains = list(dict.fromkeys(phrase.chain for phrase in batch.texts.phrases[row] if phrase.boxes))
            whole = Box(0, 0, annotation.width, annotation.height)
            expected = patches_under([annotation.boxes_of(chain) for chain in chains], whole, size[0] // 8, size[1] // 8)
            shown = batch.objects.regions_BNR[row, : len(chains)]
            assert torch.equal(shown[:, : expected.shape[1]], expected), caption_id
            assert not shown[:, expected.shape[1] :].any()
    assert module.describe()["objects"] == {"regions": "patches", "pairs": None}
    batch = next(iter(module.train_dataloader()))
    assert batch.images.pixels_B3HW is not None
    assert batch.images.regions is None
    assert batch.hard_images.image_PX.shape[1] == 4


# ---------------------------------------------------------------------------------------------------------------- splits


def test_splits_are_the_lists_or_karpathys(world: Path, copy: Path) -> None:
    (copy / "flickr30k_entities/train.txt").write_text("1000000036\n1000000037\n")
    module = Flickr30kEntities(str(copy))
    assert [record.image_id for record in module.records("train")] == ["1000000036", "1000000037"]
    karpathy = Flickr30kEntities(str(copy), split="karpathy")
    assert karpathy.splits() == Flickr30k(str(copy)).splits()
    assert karpathy.fingerprint() != module.fingerprint()
    captions = module.records("train")[1].captions
    assert [caption.caption_id for caption in captions] == [f"1000000037#{number}" for number in range(5)]
    (copy / "flickr30k_entities/val.txt").write_text("1000000037\n")
    with pytest.raises(InputError, match="image in several splits: image 1000000037 is in train, val"):
        Flickr30kEntities(str(copy)).splits()


def test_unrelated_captions_are_left_out_and_the_others_keep_their_ids(copy: Path) -> None:
    (copy / "flickr30k_entities/train.txt").write_text("1000000036\n1000000037\n")
    unrelated = [f"1000000036 {number}" for number in range(1, 6)] + ["1000000037 2"]
    (copy / "flickr30k_entities/UNRELATED_CAPTIONS").write_text("\n".join(unrelated) + "\n")
    dropped, kept = Flickr30kEntities(str(copy)), Flickr30kEntities(str(copy), unrelated="keep")
    (record,) = dropped.records("train")
    assert [caption.caption_id for caption in record.captions] == [f"1000000037#{number}" for number in (0, 2, 3, 4)]
    assert [len(record.captions) for record in kept.records("train")] == [5, 5]
    assert dropped.fingerprint() != kept.fingerprint()


def test_the_fingerprint_covers_the_entities_files(copy: Path) -> None:
    before = Flickr30kEntities(str(copy)).fingerprint()
    assert Flickr30kEntities(str(copy), seed=3, object_pairs=2).fingerprint() == before
    image_id = (copy / "flickr30k_entities/test.txt").read_text().split()[-1]
    for folder, suffix, old, new in (("Annotations", "xml", "<depth>3", "<depth>1"), ("Sentences", "txt", ".", "!")):
        path = copy / f"flickr30k_entities/{folder}/{image_id}.{suffix}"
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new))
        assert Flickr30kEntities(str(copy)).fingerprint() != before
        path.write_text(content)
    assert Flickr30kEntities(str(copy)).fingerprint() == before
    assert Flickr30kEntities(str(copy), object_pairs=2).describe()["objects"] == {"regions": "gt", "pairs": 2}


# -------------------------------------------------------------------------------------------------------- text databases


def texts(world: Path) -> RegionFiles:
    databases = {split: [str(world / f"flickr30k/txt_db/itm_flickr30k_{split}.db")] for split in SPLITS}
    return RegionFiles("img_db/flickr30k", kind="all", text_db=databases)


def test_text_databases_with_the_same_words_change_nothing(world: Path) -> None:
    with_texts, without = connected(world, regions=texts(world)), connected(world)
    for ours, theirs in zip(pairs_of(with_texts), pairs_of(without), strict=True):
        assert ours.texts.caption_ids == theirs.texts.caption_ids
        assert torch.equal(ours.texts.tokens_BT, theirs.texts.tokens_BT)
    assert with_texts.fingerprint() != without.fingerprint()


def test_training_takes_entities_captions_after_the_same_comparison(world: Path, copy: Path) -> None:
    batch = next(iter(connected(world, regions=texts(world), batch_size=2, ranking=Ranking(candidates=5)).train_dataloader()))
    assert isinstance(batch, RankingBatch)
    for caption_id, text in zip(batch.texts.caption_ids, batch.texts.texts, strict=True):
        image_id, _, number = caption_id.partition("#")
        assert read_entities(copy / "flickr30k_entities", image_id).captions[int(number)].text == text
    path = copy / f"flickr30k_entities/Sentences/{batch.images.image_ids[0]}.txt"
    path.write_text(path.read_text().replace(" .", " on ."))
    with pytest.raises(InputError, match=r"has the word pieces .*itm_flickr30k_train\.db"):
        connected(world, copy, regions=texts(world), batch_size=2, ranking=Ranking(candidates=5)).train_dataloader()


def test_text_databases_with_other_words_are_refused(world: Path, copy: Path) -> None:
    image_id = (copy / "flickr30k_entities/test.txt").read_text().split()[1]
    path = copy / f"flickr30k_entities/Sentences/{image_id}.txt"
    path.write_text(path.read_text().replace(" .", " on ."))
    with pytest.raises(
        InputError, match=rf"caption {image_id}#0 .*has the word pieces .*itm_flickr30k_test\.db.*text_db to null"
    ):
        pairs_of(connected(world, copy, regions=texts(world)))
    elsewhere = {"test": [str(world / "coco/txt_db/itm_coco_test.db")]}
    with pytest.raises(InputError, match=r"itm_coco_test\.db have none of the images of flickr30k_entities test"):
        pairs_of(connected(world, regions=RegionFiles("img_db/flickr30k", kind="all", text_db=elsewhere)))


# ---------------------------------------------------------------------------------------------------------------- errors


def spoil_sentences(root: Path) -> None:
    (root / "flickr30k_entities/Sentences/7.txt").write_text("[/EN#1/toys a ball and no end\n")


def spoil_annotation(root: Path) -> None:
    path = root / "flickr30k_entities/Annotations/7.xml"
    path.write_text(path.read_text()[:-40])


def remove_sentences(root: Path) -> None:
    (root / "flickr30k_entities/Sentences/7.txt").unlink()


def remove_list(root: Path) -> None:
    (root / "flickr30k_entities/val.txt").unlink()


def other_regions(root: Path) -> None:
    rewrite(root, lambda boxes: boxes[[1, 0, 2, 3]])


def fewer_regions(root: Path) -> None:
    rewrite(root, lambda boxes: boxes[:2])


def rewrite(root: Path, change: Callable[[Any], Any]) -> None:
    boxes = change(ImageDatabase(root / "img_db/flickr30k", Layout("all")).read("7.npz").boxes_R7[:, :4])
    shutil.rmtree(root / "img_db")
    with ImageDatabaseWriter(root / "img_db/flickr30k", Layout("all")) as writer:
        writer.add("7.npz", torch.rand(len(boxes), 108), boxes, [1.0] * len(boxes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_sentences, r"Sentences/7\.txt, line 1: the phrase .* is not closed"),
        (spoil_annotation, r"Annotations/7\.xml is not valid XML"),
        (remove_sentences, r"Sentences/7\.txt does not exist"),
        (remove_list, r"missing .*val\.txt. Fetch by hand:\n.*annotations\.zip"),
        (other_regions, r'image 7: phrase_regions "gt" takes .*7\.xml, but .*differ, first region 0\..*"iou"'),
        (fewer_regions, r'image 7: phrase_regions "gt" takes .*of the 3 in 7\.xml, but .*are 2\..*"iou"'),
    ],
)
def test_what_is_wrong_is_named(spoil: Callable[[Path], None], message: str, world: Path, one: Path) -> None:
    spoil(one)
    with pytest.raises(InputError, match=message):
        pairs_of(connected(world, one))


def test_the_check_lists_every_malformed_file(copy: Path) -> None:
    for image_id in ("1000000036", "1000000038"):
        (copy / f"flickr30k_entities/Annotations/{image_id}.xml").write_text("<annotation>")
    (copy / "flickr30k_entities/Sentences/1000000040.txt").unlink()
    report = run_check("flickr30k_entities", copy, workers=1)
    assert [problem.kind for problem in report.problems] == ["unreadable annotation"] * 3
    text = "\n".join(report.lines())
    for name in ("1000000036.xml is not valid XML", "1000000038.xml is not valid XML", "1000000040.txt does not exist"):
        assert name in text


def test_a_tokenizer_that_looks_across_words_is_refused(world: Path, one: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = json.loads((world / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    tokenizer = Tokenizer(models.WordLevel({**words, "Ġthe": len(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # as GPT-2: " the" is not "the"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, words[name]) for name in ("[CLS]", "[SEP]")]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(tmp_path / "bytes")
    module = Flickr30kEntities(str(one), regions=REGIONS, num_workers=0)
    module.connect(Inputs(text=TextInput(str(tmp_path / "bytes")), regions=RegionInput(108)))
    with pytest.raises(InputError, match=r"caption 7#\d .*word by word, .*bytes does not"):
        pairs_of(module)
