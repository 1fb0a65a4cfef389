"""The embedded world: reproducible, true to its captions, complete or absent on disk."""

from __future__ import annotations

import colorsys
import hashlib
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.errors import InputError
from datamodules.miniworld import write
from datamodules.miniworld.captions import describe, region_descriptions
from datamodules.miniworld.images import read_scenes
from datamodules.miniworld.render import _fraction, render
from datamodules.miniworld.scenes import NOVEL_KINDS, SEEN_KINDS, Scene, SceneObject, Style, _draw, sample_scene
from datamodules.miniworld.write import Splits, write_tokenizer, write_world
from datamodules.records import Box, Phrase

STYLES: tuple[Style, ...] = ("source", "target")
SIZE = 96

# Written by hand, not imported from the grammar: what the words mean.
NOUNS = {
    "ball": "ball globe orb",
    "cube": "cube box block",
    "cone": "cone pylon",
    "drum": "drum tambour",
    "cup": "cup teacup mug",
    "basket": "basket hamper",
    "hat": "hat bonnet",
    "house": "house cottage cabin",
    "car": "car automobile",
    "duck": "duck duckling",
    "mushroom": "mushroom toadstool champignon",
    "balloon": "balloon inflatable",
    "boat": "boat dinghy",
    "bottle": "bottle flask",
    "lamp": "lamp lantern",
    "cat": "cat kitten tabby",
}
KIND_OF = {noun: kind for kind, nouns in NOUNS.items() for noun in nouns.split()}
BASIC_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
COLOR_OF = {
    "crimson": "red",
    "amber": "orange",
    "golden": "yellow",
    "emerald": "green",
    "navy": "blue",
    "plum": "purple",
    "violet": "purple",
    "ivory": "white",
    "charcoal": "black",
} | {name: name for name in BASIC_COLORS}
TEXTURE_OF = {
    "striped": "striped",
    "stripy": "striped",
    "banded": "striped",
    "spotted": "spotted",
    "dotted": "spotted",
    "speckled": "spotted",
    "checked": "checked",
    "chequered": "checked",
    "plaid": "checked",
}
SIZE_OF = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large", "huge": "large"}
COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}


@cache
def scenes(count: int = 120) -> list[Scene]:
    return [sample_scene(3, style, index) for style in STYLES for index in range(count)]


def singular(noun: str) -> str:
    for ending, replacement in (("", ""), ("ies", "y"), ("xes", "x"), ("s", "")):
        if noun.endswith(ending) and (stem := noun[: len(noun) - len(ending)] + replacement) in KIND_OF:
            return stem
    raise AssertionError(f"no class for the noun {noun!r}")


def check_noun_phrase(words: list[str], things: list[SceneObject]) -> None:
    count, *adjectives, noun = words
    assert COUNTS[count] == len(things)
    for thing in things:
        assert KIND_OF[singular(noun)] == thing.kind
        for adjective in adjectives:
            assert adjective in COLOR_OF or adjective in TEXTURE_OF or adjective in SIZE_OF
            for meaning, value in ((COLOR_OF, thing.color), (TEXTURE_OF, thing.texture), (SIZE_OF, thing.size)):
                assert meaning.get(adjective, value) == value, (words, thing)


# ------------------------------------------------------------------------------------------------------------------ scenes


def test_a_scene_depends_on_its_own_seed_only() -> None:
    first = sample_scene(0, "source", 7)
    assert first == sample_scene(0, "source", 7)
    others = [sample_scene(1, "source", 7), sample_scene(0, "target", 7), sample_scene(0, "source", 8)]
    assert all(first.objects != other.objects for other in others)


def test_scene_round_trips_through_json() -> None:
    scene = sample_scene(0, "target", 5)
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_image_size_changes_pixels_only() -> None:
    small, large = sample_scene(0, "source", 2, image_size=64), sample_scene(0, "source", 2, image_size=128)
    assert [(o.kind, o.color, o.x, o.visible) for o in small.objects] == [
        (o.kind, o.color, o.x, o.visible) for o in large.objects
    ]
    assert large.objects[0].box.left == pytest.approx(2 * small.objects[0].box.left, abs=2e-3)
    assert render(large).size == (128, 128)


def test_faster_ways_give_numpys_own_numbers() -> None:
    """A world's bytes hang on every draw and on every bit."""
    values = np.random.default_rng(0).uniform(-40, 40, 5000)
    for numbers in (values, values.astype(np.float32), np.arange(-5, 5, 0.5)):
        np.testing.assert_array_equal(_fraction(numbers), np.mod(numbers, 1.0))
    shares = (0.58, 0.16, 0.14, 0.12)
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)
    assert [_draw(ours, shares) for _ in range(500)] == [theirs.choice(4, p=shares) for _ in range(500)]
    assert all(theirs.integers(1) == 0 for _ in range(3))
    assert ours.random() == theirs.random(), "to choose among one draws nothing"


def test_boxes_are_inside_the_image_and_not_empty() -> None:
    for scene in scenes():
        assert 1 <= len(scene.objects) <= 4
        for thing in scene.objects:
            for box in (thing.box, thing.full_box):
                assert 0 <= box.left < box.right <= SIZE
                assert 0 <= box.top < box.bottom <= SIZE
            assert thing.full_box.left <= thing.box.left
            assert thing.box.right <= thing.full_box.right
            assert 0.4 <= thing.visible <= 1
            assert min(thing.box.right - thing.box.left, thing.box.bottom - thing.box.top) >= SIZE / 10 - 1e-3


def test_boxes_lie_on_the_painted_objects() -> None:
    """Removing an object changes the picture inside its box (and its shadow), and nothing far from it."""
    checked = 0
    for scene in scenes(40):
        if len(scene.objects) < 2 or any(thing.support is not None for thing in scene.objects):
            continue
        thing = scene.objects[-1]
        without = replace(scene, objects=scene.objects[:-1], noise=0.0)
        with_it = np.asarray(render(replace(scene, noise=0.0)), np.int16)
        difference = np.abs(with_it - np.asarray(render(without), np.int16)).sum(-1) > 24
        box = thing.box
        inside = difference[int(box.top) : int(box.bottom) + 1, int(box.left) : int(box.right) + 1]
        assert inside.mean() > 0.25, (scene.style, scene.index)
        above = difference[: max(int(thing.full_box.top) - 1, 0)]
        assert not above.any()
        checked += 1
    assert checked > 20


def test_domains_hold_out_classes() -> None:
    def kinds(domain: str, index: int) -> set[str]:
        scene = sample_scene(0, "source", index, domain=domain)  # type: ignore[arg-type]
        return {thing.kind for thing in scene.objects}

    seen, novel = set(SEEN_KINDS), set(NOVEL_KINDS)
    assert not seen & novel
    for index in range(80):
        assert kinds("in", index) <= seen
        assert kinds("out", index) <= novel
        assert kinds("near", index) & seen
        assert kinds("near", index) & novel


def test_relations_hold_in_the_boxes() -> None:
    found: Counter[str] = Counter()
    for scene in scenes():
        by_id = {thing.id: thing for thing in scene.objects}
        for relation in scene.relations:
            first, second = by_id[relation.subject], by_id[relation.object]
            found[relation.predicate] += 1
            assert holds(relation.predicate, first, second), (scene.style, scene.index, relation)
    assert {"left_of", "right_of", "in_front_of", "behind", "above", "on", "inside", "next_to"} <= set(found)


def holds(predicate: str, first: SceneObject, second: SceneObject) -> bool:
    a, b = first.box, second.box
    middle_a, middle_b = (a.left + a.right) / 2, (b.left + b.right) / 2
    match predicate:
        case "left_of":
            return middle_a < middle_b - 0.1 * SIZE
        case "right_of":
            return middle_a > middle_b + 0.1 * SIZE
        case "in_front_of":
            return first.full_box.bottom > second.full_box.bottom
        case "behind":
            return first.full_box.bottom < second.full_box.bottom
        case "above" | "on":
            return a.top < b.top and a.left < b.right and b.left < a.right
        case "below" | "under":
            return a.top > b.top and a.left < b.right and b.left < a.right
        case "inside":
            return first.support == second.id and a.left >= b.left - 1 and a.right <= b.right + 1
        case "holding":
            return second.support == first.id
        case "next_to":
            return max(b.left - a.right, a.left - b.right) < 0.1 * SIZE
    return False


# Hue in degrees, from and to, in either style's daylight.
HUES = {"red": (335, 375), "orange": (12, 40), "yellow": (34, 60), "green": (90, 175), "blue": (205, 240), "purple": (260, 320)}


@pytest.mark.parametrize("style", STYLES)
def test_the_named_color_is_the_painted_one(style: Style) -> None:
    plain_balls = (
        (scene, thing)
        for index in range(1000)
        for scene in [sample_scene(11, style, index)]
        for thing in scene.objects
        if (thing.kind, thing.texture, thing.visible, scene.light) == ("ball", "plain", 1, "day")
    )
    scene, ball = next(plain_balls)
    row, column = int(ball.box.top + ball.box.bottom) // 2, int(ball.box.left + ball.box.right) // 2
    for color in ("white", "black", *HUES):
        painted = replace(ball, color=color)
        objects = tuple(painted if thing is ball else thing for thing in scene.objects)
        pixels = np.asarray(render(replace(scene, objects=objects)), np.float64) / 255
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[row - 2 : row + 3, column - 2 : column + 3].mean((0, 1)))
        if color in HUES:
            low, high = HUES[color]
            assert any(low <= degrees <= high for degrees in (hue * 360, hue * 360 + 360)), (color, hue * 360)
            assert saturation > 0.3, color
        else:
            assert (value > 0.7 and saturation < 0.3) if color == "white" else value < 0.35, (color, value)


# ---------------------------------------------------------------------------------------------------------------- captions


def referred(phrase: Phrase, scene: Scene) -> list[SceneObject]:
    things = [scene.objects[int(number)] for number in phrase.chain.split("+")]
    assert tuple(thing.box for thing in things) == phrase.boxes
    return things


def test_phrases_are_true_and_span_what_they_claim() -> None:
    for scene in scenes():
        captions = describe(scene)
        assert len(captions) == 5
        assert len({caption.text for caption in captions}) == 5
        assert len({caption.caption_id for caption in captions}) == 5
        for caption in captions:
            assert re.fullmatch(r"[A-Z][a-z ,:]+\.", caption.text)
            assert "  " not in caption.text
            assert any(phrase.boxes for phrase in caption.phrases)
            ends = [0, *(phrase.end for phrase in caption.phrases)]
            for phrase, previous in zip(caption.phrases, ends, strict=False):
                assert previous <= phrase.start < phrase.end <= len(caption.text)
                words = caption.text[phrase.start : phrase.end].lower().split()
                if phrase.category == "scene" and not phrase.boxes:
                    continue
                things = referred(phrase, scene)
                assert {thing.category for thing in things} == {phrase.category}
                check_noun_phrase([word for word in words if word not in IGNORED], things)


IGNORED = {"bright", "rubber", "traffic", "toy", "picnic", "sun", "party", "sailing", "glass", "table"}
# Sentences of the form "A <relation> B", by hand again.
RELATION_WORDS = {
    "to the left of|left of|on the left side of": "left_of",
    "to the right of|right of|on the right side of": "right_of",
    "in front of|nearer than": "in_front_of",
    "behind|beyond": "behind",
    "above|over|high above": "above",
    "on top of|on|atop": "on",
    "inside|in|within": "inside",
    "next to|beside|close to": "next_to",
}


def test_relations_said_are_relations_seen() -> None:
    told: Counter[str] = Counter()
    for scene in scenes():
        for caption in describe(scene):
            phrases = [phrase for phrase in caption.phrases if phrase.boxes]
            for first, second in pairwise(phrases):
                between = caption.text[first.end : second.start]
                between = re.sub(
                    r"\b(is|are|placed|sits?|stands?|floats?|hangs?|rests?|lies?|lie|hovers?|drifts?)\b", "", between
                )
                for pattern, predicate in RELATION_WORDS.items():
                    if re.fullmatch(pattern, between.strip()):
                        pairs = [(a, b) for a in referred(first, scene) for b in referred(second, scene)]
                        assert all(holds(predicate, a, b) for a, b in pairs), (caption.text, predicate)
                        told[predicate] += 1
    assert set(told) == set(RELATION_WORDS.values())


def test_counts_places_and_surfaces_are_true() -> None:
    counted = surfaces = 0
    for scene in scenes():
        for caption in describe(scene):
            text = caption.text.lower()
            number = re.search(r"(one|two|three|four) (objects|things|items)", text)
            if number:
                counted += 1
                assert {"one": 1, "two": 2, "three": 3, "four": 4}[number[1]] == len(scene.objects)
            if re.search(r" (sits|stands|rests|lies) on the (grass|sand|snow|road|wooden floor|table)\b", text):
                surfaces += 1
                named = [thing for phrase in caption.phrases if phrase.boxes for thing in referred(phrase, scene)]
                assert all(thing.support is None and thing.kind != "balloon" for thing in named), caption.text
    assert counted > 10
    assert surfaces > 10


def test_dialects_differ_in_words() -> None:
    def words(style: Style) -> set[str]:
        return {
            word for i in range(200) for caption in describe(sample_scene(0, style, i)) for word in caption.text.lower().split()
        }

    source, target = words("source"), words("target")
    assert {"mug", "crimson", "hamper"} <= target - source
    assert {"teacup", "cottage", "dotted"} <= source - target
    assert {"red", "ball", "striped"} <= source & target


def test_region_descriptions_name_their_objects() -> None:
    for scene in scenes(40):
        for region in region_descriptions(scene):
            things = [scene.objects[number] for number in region.objects]
            assert region.box == Box(
                min(thing.box.left for thing in things),
                min(thing.box.top for thing in things),
                max(thing.box.right for thing in things),
                max(thing.box.bottom for thing in things),
            )
            if len(things) == 1:
                check_noun_phrase([word for word in region.text.split() if word not in IGNORED], things)


def test_the_tokenizer_knows_every_word(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    every = [sample_scene(1, style, i, domain=domain) for style in STYLES for i in range(40) for domain in ("in", "near", "out")]
    texts = [caption.text for scene in every for caption in describe(scene)]
    texts += [region.text for scene in every for region in region_descriptions(scene)]
    batch = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in ids for ids in batch)
    assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in batch)
    assert max(map(len, batch)) <= tokenizer.model_max_length
    assert tokenizer.unk_token_id in tokenizer("a zebra")["input_ids"]


# ------------------------------------------------------------------------------------------------------------------- files

FEW = 30


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "small", scenes=FEW, seed=4, style="target", image_size=64, workers=1)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_same_bytes_for_any_number_of_workers(world: Path, tmp_path: Path) -> None:
    again = write_world(tmp_path / "again", scenes=FEW, seed=4, style="target", image_size=64, workers=2)
    assert contents(again) == contents(world)
    other = write_world(tmp_path / "other", scenes=FEW, seed=5, style="target", image_size=64, workers=1)
    ours, theirs = (json.loads((root / "world.json").read_text())["fingerprint"] for root in (world, other))
    assert ours != theirs
    assert contents(other)["tokenizer/tokenizer.json"] == contents(world)["tokenizer/tokenizer.json"]


def test_the_fingerprint_is_over_names_and_contents_in_the_order_of_paths(tmp_path: Path) -> None:
    for name, content in {"a/b.jpg": b"1", "a-b/c": b"2", "a.jpg": b"3", "a/c/d": b""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "linked").hardlink_to(tmp_path / "a.jpg")
    digest = hashlib.sha256()
    for path in sorted(file for file in tmp_path.rglob("*") if file.is_file()):
        digest.update(path.relative_to(tmp_path).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    assert write._fingerprint(tmp_path) == digest.hexdigest()


# Says who its workers are, then is killed while they wait.
KILLED = """
import os, signal, time
from datamodules.miniworld.write import _pool
def who(_):
    time.sleep(0.1)
    return os.getpid()
with _pool(2) as run:
    print(*run(who, range(26)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="worlds have workers on Linux only")
def test_workers_end_with_a_process_that_is_killed() -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, timeout=60)  # until nobody can write there
    assert ended.returncode == -signal.SIGKILL
    assert len(ended.stdout.split()) == 26


def test_karpathy_and_coco_files(world: Path) -> None:
    coco = json.loads((world / "coco/annotations/dataset_coco.json").read_text())
    assert Counter(entry["split"] for entry in coco["images"]) == {"train": 11, "restval": 2, "val": 2, "test": 3}
    ids = []
    for entry in coco["images"]:
        assert entry["filepath"] == ("train2014" if entry["split"] == "train" else "val2014")
        assert entry["filename"] == f"COCO_{entry['filepath']}_{entry['cocoid']:012d}.jpg"
        with Image.open(world / "coco" / entry["filepath"] / entry["filename"]) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (64, 64), "RGB")
        assert entry["sentids"] == [sentence["sentid"] for sentence in entry["sentences"]]
        ids += entry["sentids"]
    assert len(ids) == len(set(ids)) == 18 * 5
    annotation_ids = []
    for name in ("train2014", "val2014"):
        official = json.loads((world / f"coco/annotations/captions_{name}.json").read_text())
        texts = {annotation["id"]: annotation["caption"] for annotation in official["annotations"]}
        entries = [entry for entry in coco["images"] if entry["filepath"] == name]
        assert texts == {sentence["sentid"]: sentence["raw"] for entry in entries for sentence in entry["sentences"]}
        assert [image["id"] for image in official["images"]] == [entry["cocoid"] for entry in entries]
        annotation_ids += list(texts)
    assert sorted(annotation_ids) == sorted(ids)


def test_flickr_files(world: Path) -> None:
    flickr = json.loads((world / "flickr30k/dataset_flickr30k.json").read_text())
    for split in ("train", "val", "test"):
        listed = (world / f"flickr30k/flickr30k_entities/{split}.txt").read_text().split()
        assert listed == [entry["filename"].removesuffix(".jpg") for entry in flickr["images"] if entry["split"] == split]
        assert listed
    assert all((world / "flickr30k/flickr30k-images" / entry["filename"]).is_file() for entry in flickr["images"])
    assert len(flickr["images"]) == 12


def test_scene_file_is_complete(world: Path) -> None:
    images = list(read_scenes(world))
    assert [image.scene.index for image in images] == list(range(FEW))
    for image in images:
        assert image.scene == sample_scene(4, "target", image.scene.index, image_size=64)
        assert image.captions == describe(image.scene)
        assert image.regions == region_descriptions(image.scene)
        assert image.scene.domain == "in"
        assert not {thing.kind for thing in image.scene.objects} & set(NOVEL_KINDS)
    assert json.loads((world / "world.json").read_text())["counts"]["flickr30k"] == {"train": 8, "val": 1, "test": 3}


def test_a_matching_world_is_left_alone(world: Path) -> None:
    before = (world / "scenes.jsonl").stat().st_mtime_ns
    assert write_world(world, scenes=FEW, seed=4, style="target", image_size=64) == world
    assert (world / "scenes.jsonl").stat().st_mtime_ns == before


def test_another_world_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"world\.json is of another embedded world: seed was 4 and is 9\..*delete"):
        write_world(world, scenes=FEW, seed=9, style="target", image_size=64)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_world(tmp_path, scenes=FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split 'restval' empty"):
        write_world(tmp_path / "w", scenes=4)
    with pytest.raises(InputError, match="image_size=8"):
        write_world(tmp_path / "w", image_size=8)
    with pytest.raises(InputError, match="style='cubist'"):
        write_world(tmp_path / "w", style="cubist")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="between 0 and 1"):
        write_world(tmp_path / "w", splits=Splits(coco=1.5))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(root: Path) -> str:
        raise KeyboardInterrupt

    root = tmp_path / "w"
    with monkeypatch.context() as patch:
        patch.setattr(write, "_fingerprint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_world(root, scenes=FEW, image_size=64, workers=1)
    assert not list(tmp_path.iterdir())
    root.mkdir()  # an empty folder is no obstacle
    write_world(root, scenes=FEW, image_size=64, workers=1)
    assert (root / "world.json").is_file()


def test_a_full_disk_is_one_readable_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, values: object, indent: int | None = None) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "_write_json", full)
    with pytest.raises(InputError, match="the disk is full"):
        write_world(tmp_path / "w", scenes=FEW, image_size=64, workers=1)
    assert not list(tmp_path.iterdir())
