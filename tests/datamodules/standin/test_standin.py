"""Stand-ins for data sets: the right counts, read by the readers of the real ones; marked; gone on with after a stop."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import lmdb
import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.files.stand_in import MARK, mark_of
from datamodules.formats.uniter.image_database import ImageDatabase
from datamodules.formats.uniter.text_database import TextDatabase
from datamodules.prepare.data_sets import open_source
from datamodules.standin import coco, flickr30k, nocaps, pictures, visual_genome
from datamodules.standin.kinds import WRITERS
from datamodules.standin.shared_lmdb import write_shared
from datamodules.standin.word_pieces import WordPieces
from datamodules.standin.words import sentences, words

SHARE = 0.0005


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standins")
    for name, write in WRITERS.items():
        write(folder / name, SHARE)
    return folder


def test_whole_ones_have_the_published_counts() -> None:
    assert sum(images for _, images, _ in coco.SPLITS) == 123_287
    assert sum(captions for _, _, captions in coco.SPLITS) == 616_767
    assert [images for split, images, _ in coco.SPLITS if split in ("train", "restval")] == [82_783, 113_287 - 82_783]
    assert sum(count for _, count in flickr30k.SPLITS) + flickr30k._BEYOND == 31_783
    assert (visual_genome.IMAGES, visual_genome.PHRASES) == (108_077, 5_408_689)
    assert sum(nocaps.DOMAINS.values()) == 4_500


def test_karpathys_splits(root: Path) -> None:
    splits = open_source("coco", root / "coco").parse().valid()
    assert {split: len(records) for split, records in splits.items()} == {"train": 41 + 15, "val": 2, "test": 2}
    records = [record for split in splits.values() for record in split]
    assert all(record.path is not None and record.path.is_file() for record in records)
    assert {len(record.captions) for record in records} == {5}
    found = {kind: open_source(kind, root / "flickr30k", unrelated="keep") for kind in ("flickr30k_entities",)}
    splits = found["flickr30k_entities"].parse().valid()
    assert {split: len(records) for split, records in splits.items()} == {"train": 14 + 2, "val": 2, "test": 2}
    phrase = splits["test"][0].captions[0].phrases[1]
    assert phrase.boxes
    assert len(splits["test"][0].captions[0].text[phrase.start : phrase.end].split()) == 2


def test_the_official_caption_files_say_the_same(root: Path) -> None:
    official = open_source("coco", root / "coco", captions="official").parse().valid()
    karpathy = open_source("coco", root / "coco", restval=False).parse().valid()
    assert {r.image_id for r in official["train"]} == {r.image_id for r in karpathy["train"]}
    assert [c.text for c in official["train"][0].captions] == [c.text for c in karpathy["train"][0].captions]


def test_visual_genome_leaves_out_what_is_evaluated_on(root: Path) -> None:
    source = open_source("visual_genome", root / "visual_genome")
    records = source.parse().valid()["train"]
    assert (root / "visual_genome" / "VG_100K_2").is_dir()
    phrases = sum(len(record.captions) for record in records)
    whole = open_source("visual_genome", root / "visual_genome", held_out=None, min_words=1).parse().valid()["train"]
    assert (len(whole), sum(len(record.captions) for record in whole)) == (54, 2_704)
    assert len(records) < len(whole)
    assert 0.8 * 2_704 < phrases < 2_704


def test_nocaps_has_its_domains(root: Path) -> None:
    records = open_source("nocaps", root / "nocaps").parse().valid()["test"]
    assert [sum(record.domain == domain for record in records) for domain in nocaps.DOMAINS] == [2, 2, 2]
    assert all(len(record.captions) == 10 for record in records)


def test_databases_have_all_images_and_captions(root: Path) -> None:
    folder = root / "coco"
    texts = [TextDatabase(folder / "txt_db" / f"itm_coco_{split}.db") for split in ("train", "restval", "val", "test")]
    assert sum(len(database.text_ids) for database in texts) == sum(len(image.captions) for image in coco.coco_images(SHARE))
    first = texts[0].read(texts[0].text_ids[0])
    assert first.text is not None
    pieces = WordPieces()
    assert first.input_ids == tuple(number for word in first.text.split() for number in pieces.ids(word))
    databases = [ImageDatabase(folder / "img_db" / f"coco_{name}2014") for name in ("train", "val")]
    there = {name: database for database in databases for name in database.names()}
    assert {name for database in texts for name in database.image_names.values()} == set(there)
    for name, database in there.items():
        regions = database.read(name, classes=1601)
        assert regions.features_RD.shape == (database.number_of_regions(name), 2048)
        assert 10 <= len(regions.confidences_R) <= 100
    assert ImageDatabase(folder / "img_db" / "frcnn").feature_width == 1024


def test_a_stopped_writer_goes_on_and_what_is_there_stays(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    coco.write_coco(folder, SHARE)
    removed = [folder / "annotations" / "dataset_coco.json", folder / "img_db" / "frcnn" / "feat_th0.2_max100_min10" / "data.mdb"]
    contents = [path.read_bytes() for path in removed]
    picture = next((folder / "val2014").iterdir())
    kept = picture.stat().st_mtime_ns
    for path in removed:
        path.unlink()
    coco.write_coco(folder, SHARE)
    assert [path.read_bytes() for path in removed] == contents
    assert picture.stat().st_mtime_ns == kept
    with pytest.raises(InputError, match=r"is of another stand-in: share was 0\.0005 and is 0\.1"):
        coco.write_coco(folder, 0.1)


def test_nothing_is_written_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "dataset_coco.json").write_text("{}")
    with pytest.raises(InputError, match=r"is not empty and has no STAND-IN"):
        coco.write_coco(tmp_path, SHARE)
    with pytest.raises(InputError, match="share is 0; give the part"):
        nocaps.write_nocaps(tmp_path / "nocaps", 0)


def test_the_mark_is_found_from_below_and_through_links(root: Path, tmp_path: Path) -> None:
    assert mark_of(root / "coco" / "val2014") == root / "coco" / MARK
    assert mark_of(tmp_path) is None
    assert mark_of(root / "coco" / "none") is None
    (tmp_path / "link").symlink_to(root / "nocaps" / "val")
    assert mark_of(tmp_path / "link") == root / "nocaps" / MARK


def test_pictures_are_few_files_with_many_names(tmp_path: Path) -> None:
    from datamodules.standin import pictures

    names = [f"{number}.jpg" for number in range(pictures.DISTINCT + 3)]
    pictures.write_pictures(tmp_path / "val", names)
    assert len(os.listdir(tmp_path / "val")) == len(names)
    assert (tmp_path / "val" / names[0]).samefile(tmp_path / "val" / names[pictures.DISTINCT])
    assert len({(tmp_path / "val" / name).stat().st_ino for name in names}) == pictures.DISTINCT
    assert 80_000 < (tmp_path / "val" / "0.jpg").stat().st_size < 300_000


@pytest.mark.parametrize("count", [0, 1, 90, 40_000])
def test_a_shared_database_is_read_by_the_library(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(count)
    values = [random.bytes(int(size)) for size in (1, 4080, 4081, 30_000)]
    keys = {f"key {number * 7919 % 100_003}".encode(): number % len(values) for number in range(count)}
    write_shared(tmp_path / "data.mdb", values, keys)
    with lmdb.open(str(tmp_path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        assert environment.stat()["entries"] == count
        assert [bytes(key) for key in transaction.cursor().iternext(values=False)] == sorted(keys)
        assert all(transaction.get(key) == values[place] for key, place in keys.items())
        assert transaction.get(b"another") is None


def test_words_and_pieces() -> None:
    assert len(set(words(8000))) == 8000
    lengths = [len(text.split()) for text in sentences(np.random.default_rng(0), 2000)]
    assert 10 < np.mean(lengths) < 11
    assert min(lengths) >= 6
    for pieces in (WordPieces(), WordPieces(30_522, 999)):
        vocabulary = pieces.vocabulary()
        assert len(set(vocabulary)) == len(vocabulary) == pieces.size
        assert [vocabulary[place] for place in (0, 100, 101, 102, 103)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        assert vocabulary[pieces.first_word] == "!"
    rare = words(8000)[-1]
    assert "".join(WordPieces().vocabulary()[number].removeprefix("##") for number in WordPieces().ids(rare)) == rare
    assert WordPieces().ids("ß") == [100]


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [(errno.ENOSPC, OSError, "No space left"), (errno.EPERM, InputError, r"second name there \(Operation not permitted\)")],
)
def test_a_full_disk_is_not_taken_for_one_without_hard_links(
    number: int, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), source)

    monkeypatch.setattr(pictures, "picture", lambda number: b"")
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(kind, match=message):
        pictures.write_pictures(tmp_path / "val", [f"{place}.jpg" for place in range(pictures.DISTINCT + 1)])
    assert not list(tmp_path.iterdir())
