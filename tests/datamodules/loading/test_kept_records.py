"""What came of parsing is kept: it equals the parse, whatever the format, and is made anew when something of it has changed."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import shutil
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_regions
from safetensors import SafetensorError
from tiny_data import write_flickr8k

from datamodules.coco import COCO
from datamodules.errors import InputError
from datamodules.files.origins import note_origins
from datamodules.flickr8k import Flickr8k
from datamodules.flickr30k import Flickr30k
from datamodules.flickr30k_entities import Flickr30kEntities
from datamodules.formats import record_file
from datamodules.formats.beit3_index import origins_note
from datamodules.formats.record_file import open_records, write_records
from datamodules.formats.record_table import ChainedTables, RecordTable
from datamodules.image_text import ImageTextDataModule, Limits
from datamodules.inputs import Inputs
from datamodules.loading import kept_records as module
from datamodules.loading.captions import CaptionBatches, Captioning, CaptionTokenizer, TrainCaptions
from datamodules.loading.loader import BatchDataset, BatchLoader
from datamodules.loading.region_files import RegionFiles
from datamodules.nocaps import NoCaps
from datamodules.records import Caption, ImageRecord
from datamodules.standin.kinds import WRITERS
from datamodules.together import Together
from datamodules.visual_genome import VisualGenome

SHARE = 0.0005


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bit of each data set, in every official layout."""
    folder = tmp_path_factory.mktemp("standins")
    for name, write in WRITERS.items():
        write(folder / name, SHARE)
    images = json.loads((folder / "coco" / "annotations" / "dataset_coco.json").read_text())["images"]
    for split in ("train", "val", "test"):
        lines = [
            {"image_path": f"{image['filepath']}/{image['filename']}", "text_segment": [len(each["raw"]), row], "image_id": row}
            for row, image in enumerate(images)
            if image["split"] == split
            for each in image["sentences"]
        ]
        file = folder / "coco" / f"coco_retrieval.{split}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything is worth keeping, and nothing is kept yet; the folder where it will be."""
    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_WORTH_KEEPING", 0)
    return tmp_path / "cache" / "records"


TEXTS = {split: [f"txt_db/itm_flickr30k_{split}.db"] for split in ("train", "val", "test")}


KINDS: dict[str, Callable[[Path], ImageTextDataModule]] = {
    "karpathy": lambda data: COCO(str(data / "coco")),
    "without restval": lambda data: COCO(str(data / "coco"), restval=False),
    "official": lambda data: COCO(str(data / "coco"), captions="official"),
    "beit3 index": lambda data: COCO(str(data / "coco"), captions="beit3_index"),
    "flickr30k": lambda data: Flickr30k(str(data / "flickr30k")),
    "flickr30k, split of entities": lambda data: Flickr30k(str(data / "flickr30k"), split="entities"),
    "entities": lambda data: Flickr30kEntities(str(data / "flickr30k")),
    "text databases": lambda data: Flickr30k(str(data / "flickr30k"), regions=RegionFiles("img_db/flickr30k", text_db=TEXTS)),
    "visual genome": lambda data: VisualGenome(str(data / "visual_genome")),
    "nocaps": lambda data: NoCaps(str(data / "nocaps")),
}


def never(self: Any) -> Any:
    raise AssertionError("parsed again")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_equals_the_parse(kind: str, root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = KINDS[kind]
    with monkeypatch.context() as parsed_only:
        parsed_only.setattr(module, "_WORTH_KEEPING", 10**12)
        plain = made(root)
        naive, ids, told = plain.task.splits.read(), plain.task.splits.file_ids, plain.describe()
        assert all(isinstance(records, list) for records in naive.values())
    assert not kept.exists()
    first = made(root)
    assert first.task.splits.read() == naive
    assert len(list(kept.glob("*.safetensors"))) == 1
    again = made(root)
    monkeypatch.setattr(type(again.task.splits), "parse", never)
    found = again.task.splits.read()
    assert list(found) == list(naive)
    for split, records in found.items():
        assert isinstance(records, RecordTable)
        assert list(records) == list(naive[split])
        assert repr(list(records)) == repr(list(naive[split]))
    assert again.task.splits.file_ids == ids
    assert again.describe() == told, "counts, fingerprint, and what was left out"
    for split in naive:
        assert again.records(split) == plain.records(split), "with all that the images of a batch are found by"


@pytest.mark.parametrize("inputs", ["pixels", "regions"])
def test_parts_together_are_tables_one_behind_the_other(
    inputs: str, root: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = [tiny_regions.write_root(tmp_path / name / "flickr30k", {"train": 7, "val": 2, "test": 2}) for name in ("a", "b")]

    def made(most: int | None = None) -> Together:
        parts: dict[str, ImageTextDataModule] = {
            "vg": VisualGenome(str(root / "visual_genome")),
            "coco": COCO(str(root / "coco")),
        }
        if inputs == "regions":
            files = tiny_regions.region_files()
            parts = {f"part {row}": Flickr30k(str(its), regions=files) for row, its in enumerate(roots)}
        data = Together(parts, limits=Limits(train=most))
        if inputs == "regions":
            data.connect(replace(tiny_regions.region_inputs(), masked=True))
        return data

    with monkeypatch.context() as parsed_only:
        parsed_only.setattr(module, "_WORTH_KEEPING", 10**12)
        plain, cut = made(), made(9)
        naive, told, part = plain.records("train"), plain.describe(), cut.records("train")
        assert isinstance(naive, list)
    whole = made()
    assert isinstance(whole.records("train"), ChainedTables)
    assert whole.records("train") == naive
    assert made(9).records("train") == part
    assert whole.describe() == told
    if inputs == "regions":
        assert {str(record.regions).partition("/")[0] for record in whole.records("train")} == {"part 0", "part 1"}


# ------------------------------------------------------------------------------------------------- when it is made anew


def captions_of(data: ImageTextDataModule) -> list[str]:
    return [caption.text for records in data.task.splits.read().values() for record in records for caption in record.captions]


def files_in(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.safetensors")}


def test_another_content_is_parsed(tmp_path: Path, kept: Path) -> None:
    place = write_flickr8k(tmp_path / "flickr8k")
    before = captions_of(Flickr8k(str(place)))
    first = files_in(kept)
    file = place / "dataset_flickr8k.json"
    status = file.stat()
    file.write_text(file.read_text().replace("dog", "cow"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert captions_of(Flickr8k(str(place))) == [text.replace("dog", "cow") for text in before] != before
    assert len(files_in(kept) - first) == 1
    file.write_text(file.read_text().replace("cow", "dog"))
    assert captions_of(Flickr8k(str(place))) == before
    assert len(files_in(kept)) == 2, "what it was made of is there again"


def test_other_options_places_and_code_have_files_of_their_own(
    root: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Callable[[], ImageTextDataModule]] = [
        lambda: COCO(str(root / "coco")),
        lambda: COCO(str(root / "coco"), restval=False),
        lambda: COCO(str(root / "coco"), captions="official"),
        lambda: COCO(str(root / "coco"), str(root / "coco"), captions="official"),
        lambda: VisualGenome(str(root / "visual_genome")),
        lambda: VisualGenome(str(root / "visual_genome"), min_words=2),
        lambda: VisualGenome(str(root / "visual_genome"), held_out=None),
        lambda: Flickr30kEntities(str(root / "flickr30k"), unrelated="keep"),
        lambda: Flickr30kEntities(str(root / "flickr30k"), split="karpathy"),
    ]
    paths = []
    for number, make in enumerate(made, start=1):
        splits = make().file_splits.read()
        paths.append({split: [record.path for record in records] for split, records in splits.items()})
        assert len(files_in(kept)) == number
    assert paths[2] != paths[3]
    (tmp_path / "elsewhere").symlink_to(root / "coco")
    moved = COCO(str(tmp_path / "elsewhere")).file_splits.read()
    assert all(record.path is not None and record.path.is_relative_to(tmp_path) for record in moved["train"])
    before = files_in(kept)
    monkeypatch.setattr(module, "_code", lambda: "another version")
    made[0]().file_splits.read()
    assert len(files_in(kept) - before) == 1


def test_the_images_of_2017_are_where_they_lie_now(root: Path, kept: Path, tmp_path: Path) -> None:
    place = tmp_path / "coco"
    (place / "annotations").mkdir(parents=True)
    (place / "annotations" / "dataset_coco.json").symlink_to(root / "coco" / "annotations" / "dataset_coco.json")
    (place / "train2017").mkdir()
    (place / "val2017").mkdir()
    before = COCO(str(place), year="2017").file_splits.read()["train"][0].path
    assert before is not None
    assert before.parent.name == "train2017"
    (place / "val2017" / before.name).touch()
    assert COCO(str(place), year="2017").file_splits.read()["train"][0].path == place / "val2017" / before.name


def test_files_that_change_while_they_are_parsed_are_not_kept(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_flickr8k(tmp_path / "flickr8k")
    file = place / "dataset_flickr8k.json"
    parse = Flickr8k.parse

    def parse_and_replace(self: Flickr8k) -> Any:
        file.write_text(file.read_text().replace("dog", "cow"))
        return parse(self)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Flickr8k, "parse", parse_and_replace)
        assert "cow" in " ".join(captions_of(Flickr8k(str(place))))
    assert not files_in(kept), "it would be found under the old content"
    file.write_text(file.read_text().replace("cow", "dog"))
    assert "cow" not in " ".join(captions_of(Flickr8k(str(place))))


def test_a_sentence_of_entities_counts_too(root: Path, kept: Path, tmp_path: Path) -> None:
    place = tmp_path / "flickr30k"
    shutil.copytree(root / "flickr30k" / "flickr30k_entities", place / "flickr30k_entities")
    (place / "flickr30k-images").symlink_to(root / "flickr30k" / "flickr30k-images")
    captions_of(Flickr30kEntities(str(place)))
    image = Flickr30kEntities(str(place)).file_splits.read()["train"][0].image_id
    file = place / "flickr30k_entities" / "Sentences" / f"{image}.txt"
    file.write_text("Another sentence\n" + file.read_text())
    assert "Another sentence" in captions_of(Flickr30kEntities(str(place)))


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"", lambda raw: raw[:-9] + b"123456789"])
def test_a_damaged_file_is_made_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = write_flickr8k(tmp_path / "flickr8k")
    before = captions_of(Flickr8k(str(place)))
    (file,) = kept.glob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING, "crosslight"):
        assert captions_of(Flickr8k(str(place))) == before
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{file} is damaged, or of another kind")
    assert message.endswith("the data set's files are parsed again.")
    assert list(open_records(file)[0]) == ["train", "val", "test"]


def no_room(*_: object) -> None:
    """As safetensors says it, which is no `OSError`."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fault", ["no folder", "no room"])
def test_a_cache_that_cannot_be_written_to_is_done_without(
    fault: str, tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_flickr8k(tmp_path / "flickr8k")
    if fault == "no folder":
        (tmp_path / "cache").write_text("no folder")
    else:
        monkeypatch.setattr(record_file, "save_file", no_room)
    with caplog.at_level(logging.WARNING, "crosslight"):
        records = Flickr8k(str(place)).records("train")
    assert isinstance(records, RecordTable), "in memory"
    assert len(records) == 13
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"the records of flickr8k cannot be kept in {kept} (")
    assert message.endswith("Set CROSSLIGHT_CACHE to a folder that can be written to.")
    assert not files_in(kept) if kept.parent.is_dir() else True


def test_of_those_that_start_at_once_one_parses(root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads: an open file of its own locks like another process."""
    came, parses = threading.Semaphore(0), []
    locked, parse = module.locked, COCO._parse

    def coming(*given: Any) -> Any:
        came.release()
        return locked(*given)

    def parse_when_all_are_there(self: COCO) -> Any:
        parses.append(self)
        for _ in range(3):
            came.acquire(timeout=5)
        return parse(self)

    monkeypatch.setattr(module, "locked", coming)
    monkeypatch.setattr(COCO, "_parse", parse_when_all_are_there)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: captions_of(COCO(str(root / "coco"))), range(3)))
    assert len(parses) == 1
    assert found[0] == found[1] == found[2]


def test_what_is_wrong_is_not_kept(tmp_path: Path, kept: Path) -> None:
    place = write_flickr8k(tmp_path / "flickr8k")
    file = place / "dataset_flickr8k.json"
    content = json.loads(file.read_text())
    content["images"].append(content["images"][0])
    file.write_text(json.dumps(content))
    for _ in range(2):
        with pytest.raises(InputError, match="repeats imgid 0"):
            Flickr8k(str(place)).records("train")
    assert not files_in(kept)


def test_what_is_missing_stops_before_work_begins(tmp_path: Path, kept: Path) -> None:
    place = write_flickr8k(tmp_path / "flickr8k")
    Flickr8k(str(place)).records("train")
    (place / "images" / "1003.jpg").unlink()
    with pytest.raises(InputError, match=r"flickr8k train: 1 of 13 image files are missing, first image 1003: .*1003\.jpg"):
        Flickr8k(str(place)).records("train")
    (place / "images").rename(place / "pictures")
    with pytest.raises(InputError, match=r"(?s)Flickr8k is not complete under .*flickr8k/images: Flickr8k_Dataset.zip"):
        Flickr8k(str(place)).records("train")


def test_index_files_of_another_split_file_are_refused_though_they_are_kept(root: Path, kept: Path, tmp_path: Path) -> None:
    place = tmp_path / "coco"
    shutil.copytree(root / "coco", place, ignore=shutil.ignore_patterns("img_db", "txt_db", "held_out"))
    files = [place / f"coco_retrieval.{split}.jsonl" for split in ("train", "val", "test")]
    annotations = place / "annotations" / "dataset_coco.json"
    note_origins(origins_note("coco", place), files, [annotations])
    captions_of(COCO(str(place), captions="beit3_index"))
    assert files_in(kept)
    annotations.write_text(annotations.read_text() + " ")
    with pytest.raises(InputError, match=r"made of another dataset_coco\.json than"):
        captions_of(COCO(str(place), captions="beit3_index"))


# --------------------------------------------------------------------------------------------------------- what is not kept


class Changed(Flickr8k):
    """A user's own: what `parse` gives, nobody can say."""

    def parse(self) -> Any:
        parsed = super().parse()
        parsed.splits["train"] = parsed.splits["train"][::-1]
        return parsed


class Said(Changed):
    """Likewise, and it says what decides."""

    def parse_options(self) -> dict[str, Any]:
        return {**super().parse_options(), "reversed": 1}


def test_a_class_of_ones_own_is_kept_where_it_says_what_decides(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_flickr8k(tmp_path / "flickr8k")
    last = Flickr8k(str(place)).records("train")[-1]
    ours = files_in(kept)
    assert Changed(str(place)).records("train")[0] == last
    assert files_in(kept) == ours
    assert Said(str(place)).records("train")[0] == last
    assert len(files_in(kept) - ours) == 1
    assert isinstance(Changed(str(place)).records("train"), list)
    monkeypatch.setattr(module, "_MANY_CAPTIONS", 10)
    assert isinstance(Changed(str(place)).records("train"), RecordTable), "not on the disk, but no objects either"


_OWN = """
from datamodules.flickr8k import Flickr8k

class Own(Flickr8k):
    def parse(self):
        parsed = super().parse()
        parsed.splits["train"] = parsed.splits["train"][{cut}]
        return parsed

    def parse_options(self):
        return super().parse_options()
"""


def test_the_file_of_a_class_of_ones_own_counts(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, file = str(write_flickr8k(tmp_path / "flickr8k")), tmp_path / "own_flickr8k.py"
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for cut in (":5", "::-1", ":5"):
        file.write_text(_OWN.format(cut=cut))
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
        importlib.invalidate_caches()
        found.append(len(importlib.import_module(file.stem).Own(place).records("train")))
    assert found == [5, 13, 5]
    assert len(files_in(kept)) == 2
    monkeypatch.setattr(Said, "__module__", "a_notebook")
    assert isinstance(Said(place).records("train"), list), "nobody knows its code"
    assert len(files_in(kept)) == 2


def test_little_data_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path / "cache"))
    records = Flickr8k(str(write_flickr8k(tmp_path / "flickr8k"))).records("train")
    assert isinstance(records, list)
    assert not (tmp_path / "cache").exists()


def test_what_nobody_has_opened_for_a_month_goes(tmp_path: Path, kept: Path) -> None:
    kept.mkdir(parents=True)
    old, young, other = kept / "old.safetensors", kept / "young.safetensors", kept / "notes.txt"
    read = kept / "of_another_user.safetensors"
    for file, days, since in ((old, 31, 31), (young, 29, 29), (other, 99, 99), (read, 99, 1)):
        file.touch()
        os.utime(file, (time.time() - since * 24 * 3600, time.time() - days * 24 * 3600))
    place = write_flickr8k(tmp_path / "flickr8k")
    Flickr8k(str(place)).records("train")
    assert not old.exists()
    assert young.exists()
    assert other.exists()
    (mine,) = files_in(kept) - {young.name, read.name}
    os.utime(kept / mine, (0, 0))
    Flickr8k(str(place)).records("train")
    assert (kept / mine).stat().st_mtime > time.time() - 3600, "it is in use"


# ------------------------------------------------------------------------------------------------------------- memory


class Hoarder(TrainCaptions):
    """What must not be: it keeps the records that it has looked at."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.kept: list[ImageRecord] = []

    def make(self, keys: Any) -> Any:
        batch = super().make(keys)
        self.kept += [replace(self.records[row], captions=tuple(self.records[row].captions)) for row in batch.images.index_B]
        return batch


def test_nothing_grows_over_an_epoch(inputs: Inputs, tmp_path: Path) -> None:
    assert inputs.text is not None
    count = 200
    records = [
        ImageRecord(str(row), Path(f"/images/{row:012d}.jpg"), tuple(Caption(f"{row}{n}", "a red dog runs") for n in range(5)))
        for row in range(count)
    ]
    table = RecordTable.of(records)
    assert table is not None
    write_records(tmp_path / "kept.safetensors", {"train": table}, {})
    del records, table
    tokenizer, grown, opened = CaptionTokenizer(inputs.text), {}, {}
    for kind in (TrainCaptions, Hoarder):
        gc.collect()
        tracemalloc.start()
        kept = open_records(tmp_path / "kept.safetensors")[0]["train"]
        samples = kind(kept, None, tokenizer, 0)
        opened[kind] = tracemalloc.get_traced_memory()[0]
        batches = CaptionBatches(samples.counts, Captioning(), 50, 0)
        next(samples.make(keys) for keys in batches)  # what is made once
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        seen = sum(len(samples.make(keys)) for epoch in range(2) for keys in batches)
        assert seen == 2 * 5 * count
        gc.collect()
        grown[kind] = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert opened[TrainCaptions] < 100 * count, "offsets, and no object for a record"
    assert grown[TrainCaptions] < 20_000
    assert grown[Hoarder] > 200 * count, "or this test sees nothing"


class Frozen(BatchDataset):
    def make(self, keys: Any) -> Any:
        return gc.get_freeze_count()


@pytest.fixture
def searched() -> Iterator[None]:
    """A process in which the search for cycles passes by nothing, as it does what the tests have imported (tests/conftest.py)."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("searched")
def test_workers_leave_alone_what_they_have_of_their_parent() -> None:
    assert next(iter(BatchLoader(Frozen(), batch_size=None, sampler=[[0]], num_workers=1))) > 1000
    assert Frozen()[[0]] == gc.get_freeze_count() == 0, "not in a process that has no parent of this kind"
