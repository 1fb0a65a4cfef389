"""Files of every format made wrong: each is named in one message, or read as if nothing were wrong with it. No traceback, no
hang, no image or caption that silently comes or goes."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mutations import same_in, wrong_bytes, wrong_json

from datamodules.errors import InputError
from datamodules.files.download import unpack
from datamodules.files.ownership import read_label
from datamodules.files.releases import _noted
from datamodules.files.yaml_file import read_yaml
from datamodules.formats.beit3_index import parse_index
from datamodules.formats.coco_captions import parse_coco_captions
from datamodules.formats.karpathy import parse_karpathy
from datamodules.formats.uniter.image_database import ImageDatabase
from datamodules.formats.uniter.layout import Layout
from datamodules.formats.uniter.text_database import TextDatabaseWriter, Vocabulary
from datamodules.loading.region_files import read_text_databases
from datamodules.miniworld.images import read_scenes
from datamodules.miniworld.write import write_world
from datamodules.records import ImageRecord
from datamodules.sources.flickr30k import Flickr30kSource
from datamodules.sources.flickr30k_entities import Flickr30kEntitiesSource
from datamodules.sources.nocaps import NoCapsSource
from datamodules.sources.visual_genome import VisualGenomeSource

MUTATIONS = 9  # of each kind and file


@dataclass(frozen=True)
class Case:
    """A file below the world, what reads it, and whether what is read shows every wrong byte (a list of ids, cut, is a list)."""

    file: str
    read: Callable[[Path, Path], Any]
    tells: bool = True


def counts(splits: Mapping[str, list[ImageRecord]]) -> dict[str, tuple[int, int]]:
    return {split: (len(records), sum(len(record.captions) for record in records)) for split, records in splits.items()}


def genome(root: Path, _: Path) -> int:
    source = VisualGenomeSource(str(root / "visual_genome"))
    counts(source.parse().valid())
    assert source.counts is not None
    found = source.counts
    return found.images + found.without_phrases + sum(found.excluded.values())


def entities(root: Path, _: Path) -> dict[str, tuple[int, int]]:
    return counts(Flickr30kEntitiesSource(str(root / "flickr30k")).parse().valid())


def regions(root: Path, _: Path) -> dict[str, int]:
    database = ImageDatabase(root / "flickr30k/img_db/flickr30k", Layout("all"))
    return {name: len(database.read(name).features_RD) for name in list(database.names())[:3]}


def texts(root: Path, _: Path) -> dict[str, tuple[int, int]]:
    return counts(read_text_databases({"train": [root / "texts.db"]}, root)[0].valid())


def unpacked(root: Path, path: Path) -> dict[str, bytes]:
    shutil.rmtree(root / "unpacked", ignore_errors=True)
    unpack(path, root / "unpacked")
    return {str(file.relative_to(root)): file.read_bytes() for file in (root / "unpacked").rglob("*") if file.is_file()}


CASES = {
    "karpathy of coco": Case("coco/annotations/dataset_coco.json", lambda root, path: counts(parse_karpathy(path, root).valid())),
    "karpathy": Case("flickr30k/dataset_flickr30k.json", lambda root, path: counts(parse_karpathy(path, root).valid())),
    "coco": Case("coco/annotations/captions_val2014.json", lambda root, path: counts(parse_coco_captions(path, root).valid())),
    "nocaps": Case(
        "nocaps/nocaps_val_4500_captions.json", lambda root, path: counts(NoCapsSource(str(root / "nocaps")).parse().valid())
    ),
    "genome images": Case("visual_genome/image_data.json", genome),
    "genome regions": Case("visual_genome/region_descriptions.json", genome),
    "genome held out": Case("visual_genome/held_out/dataset_coco.json", genome),
    "genome open images": Case("visual_genome/held_out/test-images-with-rotation.csv", genome, tells=False),
    "entities boxes": Case("flickr30k/flickr30k_entities/Annotations/*.xml", entities),
    "entities sentences": Case("flickr30k/flickr30k_entities/Sentences/*.txt", entities, tells=False),
    "entities list": Case("flickr30k/flickr30k_entities/test.txt", entities, tells=False),
    "flickr30k list": Case(
        "flickr30k/flickr30k_entities/test.txt",
        lambda root, path: counts(Flickr30kSource(str(root / "flickr30k"), split="entities").parse().valid()),
        tells=False,
    ),
    "index": Case("index.jsonl", lambda root, path: counts(parse_index(path, root).valid()), tells=False),
    "scenes": Case("scenes.jsonl", lambda root, path: len(list(read_scenes(root))), tells=False),
    "label": Case("world.json", lambda root, path: bool(read_label(path, "Remove it."))),
    "note": Case("note.json", lambda root, path: bool(_noted(path))),
    "region counts": Case("flickr30k/img_db/flickr30k/nbb.json", regions),
    "text lengths": Case("texts.db/id2len.json", texts),
    "text images": Case("texts.db/txt2img.json", texts),
    "image texts": Case("texts.db/img2txts.json", texts),
    "text meta": Case("texts.db/meta.json", texts),
    "archive": Case("a.zip", unpacked),
    "yaml": Case("a.yaml", lambda root, path: bool(read_yaml(path)) or True, tells=False),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("mutated") / "w")


def make_world(root: Path) -> Path:
    write_world(root, scenes=40, image_size=32, workers=1)
    lines = [{"image_path": f"a/{n // 2}.jpg", "text_segment": [5, 6, n], "image_id": n // 2} for n in range(6)]
    (root / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "note.json").write_text(json.dumps({"sha256": "00", "size": 5, "mtime_ns": 6}))
    (root / "a.yaml").write_text("model:\n  class_path: a.B\n  init_args: {lr: &lr 0.1, steps: [1, 2], other: *lr}\n")
    with TextDatabaseWriter(root / "texts.db", lambda word: [len(word)], Vocabulary(size=40)) as writer:
        for number in range(6):
            writer.add(str(number), f"{number // 2}.npz", "a dog runs")
    with zipfile.ZipFile(root / "a.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in ("one/a.json", "one/b.json", "two.txt"):
            bundle.writestr(name, f"content of {name} " * 9)
    return root


def outcome(case: Case, root: Path, path: Path) -> Any:
    """What is read, or the message as a text.

    Raises:
        AssertionError: the message cannot be used.
    """
    try:
        return case.read(root, path)
    except InputError as error:
        message = str(error)
    message.encode()
    assert all(character.isprintable() or character == "\n" for character in message)
    assert len(message) < 2000, message
    assert str(root) in message, message
    return message


def try_mutations(name: str, root: Path, count: int, seed: int = 0) -> list[str]:
    """What went wrong with `count` mutations of each kind of one file; the file is as before then."""
    case, rng = CASES[name], random.Random(f"{name} {seed}")
    path = sorted(root.glob(case.file))[0]
    raw = path.read_bytes()
    sound = outcome(case, root, path)
    assert not isinstance(sound, str), sound
    wrong = [(*wrong_bytes(raw, rng), case.tells) for _ in range(count)]
    if path.suffix == ".json":
        wrong += [(*wrong_json(json.loads(raw), rng), True) for _ in range(count)]
    if path.suffix != ".zip":
        kinds = ("utf-8-sig", "utf-16") if path.suffix != ".xml" else ("utf-8-sig",)
        wrong += [(same_in(kind, raw), kind, True) for kind in kinds]
    failures = []
    for content, what, tells in wrong:
        path.write_bytes(content)
        try:
            found = outcome(case, root, path)
        except Exception as error:
            failures.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
            continue
        if what.startswith("utf") and found != sound:
            failures.append(f"{what} was not read: {found}")
        elif tells and not isinstance(found, str) and found != sound:
            failures.append(f"{what} was read as {str(found)[:200]} in place of {str(sound)[:200]}")
    path.write_bytes(raw)
    return failures


@pytest.mark.parametrize("name", CASES)
def test_wrong_files_are_named_or_read_as_they_were(world: Path, name: str) -> None:
    assert try_mutations(name, world, MUTATIONS) == []
