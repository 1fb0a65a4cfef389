"""UNITER's databases: the official ones read, ours equal to them, kills and forks survived, damage named.

tests/recordings/uniter_db was written by released code (convert_imgdir.py and TxtLmdb of UNITER/IAIS) from synthetic features;
reads.safetensors is what the released reader gives for three of its images.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import pickle
import re
import resource
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np
import pytest
from safetensors.numpy import load_file

from datamodules.errors import InputError
from datamodules.formats.uniter.image_database import ImageDatabase
from datamodules.formats.uniter.image_writer import ImageDatabaseWriter
from datamodules.formats.uniter.layout import Layout
from datamodules.formats.uniter.text_database import TextDatabase, TextDatabaseWriter, Vocabulary, packed_text, word_pieces_of
from datamodules.loading.region_files import RegionFiles

RECORDING = Path(__file__).parents[3] / "recordings" / "uniter_db"
IMAGES, TEXTS = RECORDING / "img_db" / "toy", RECORDING / "txt_db" / "itm_toy.db"
RELEASED = Layout(conf_th=0.2, max_bb=8, min_bb=3)
ALL = Layout("all")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(IMAGES, tmp_path / "toy"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TEXTS, tmp_path / "itm_toy.db"))


def put(folder: Path, **values: bytes) -> None:
    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)


def raw(folder: Path) -> dict[str, bytes]:
    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {key.decode(): bytes(value) for key, value in transaction.cursor()}


def in_child(task: Callable[[], None]) -> int:
    """Runs in a forked process; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            task()
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def some(seed: int, regions: int = 6, width: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """features, boxes (left, top, right, bottom), falling confidences."""
    source = np.random.default_rng(seed)
    corners = np.sort(source.random((regions, 2, 2)), axis=1).reshape(regions, 4)
    return source.normal(size=(regions, width)), corners, np.sort(source.random(regions))[::-1]


# ------------------------------------------------------------------------------------------- official databases


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_what_the_released_reader_reads(compressed: bool) -> None:
    recorded = load_file(RECORDING / "reads.safetensors")
    database = ImageDatabase(IMAGES, Layout(conf_th=0.2, max_bb=8, min_bb=3, compressed=compressed))
    names = sorted({key.split("/")[0] for key in recorded})
    assert len(names) == 3
    for name in names:
        found = database.read(name)
        assert (found.features_RD.dtype, found.boxes_R7.dtype, found.confidences_R.dtype) == (np.float32,) * 3
        np.testing.assert_array_equal(found.features_RD, recorded[f"{name}/img_feat"])
        np.testing.assert_array_equal(found.boxes_R7, recorded[f"{name}/img_pos_feat"])
        assert database.number_of_regions(name) == len(found.confidences_R) == len(found.features_RD)
        np.testing.assert_array_equal(ImageDatabase(IMAGES, ALL).read(name).features_RD, recorded[f"{name}/img_feat_all"])
    assert database.feature_width == 32


def test_the_released_rule_counts_the_regions() -> None:
    counts = json.loads((IMAGES / "nbb_th0.2_max8_min3.json").read_text())
    everything = ImageDatabase(IMAGES, ALL)
    assert {name: RELEASED.count(everything.read(name).confidences_R) for name in everything.names()} == counts
    assert set(counts.values()) >= {3, 8}  # both limits were met
    assert RELEASED.count(np.array([0.9, 0.1])) == 2
    assert Layout("fixed", num_bb=5).count(np.zeros(9)) == 5


def test_all_regions_without_counts_are_cut_by_the_rule(images: Path) -> None:
    (images / "nbb.json").unlink()
    cut, released = ImageDatabase(images, Layout("all", max_bb=8, min_bb=3)), ImageDatabase(images, RELEASED)
    for name in released.names():
        np.testing.assert_array_equal(cut.read(name).boxes_R7, released.read(name).boxes_R7)
        assert cut.number_of_regions(name) == released.number_of_regions(name)


def test_names_are_in_the_order_of_writing() -> None:
    assert ImageDatabase(IMAGES, RELEASED).names() == list(json.loads((IMAGES / "nbb_th0.2_max8_min3.json").read_text()))


def test_names_of_folders_and_files() -> None:
    released = Layout()
    assert (released.folder, released.counts_file) == ("feat_th0.2_max100_min10", "nbb_th0.2_max100_min10.json")
    assert Layout("fixed", num_bb=36, compressed=True).folder == "feat_numbb36_compressed"
    assert Layout("all", compressed=True).folder == "all_compressed"
    with pytest.raises(InputError, match='the released conf_th = -1 is kind "fixed"'):
        Layout(conf_th=-1)
    with pytest.raises(InputError, match="1 <= min_bb <= max_bb"):
        Layout(max_bb=5)


# ------------------------------------------------------------------------------------------ processes and handles


def test_one_handle_for_all_readers_of_a_file(images: Path) -> None:
    link = images.parent / "link"
    link.symlink_to(images)
    first, second = ImageDatabase(images, RELEASED), ImageDatabase(link, RELEASED)
    copy = pickle.loads(pickle.dumps(first))
    name = first.names()[0]
    for database in (first, second, copy):
        assert len(database.read(name).features_RD) == 7
    with pytest.raises(InputError, match="close its readers"):
        ImageDatabaseWriter(images, RELEASED)
    del first, second, copy, database
    gc.collect()
    ImageDatabaseWriter(images, RELEASED).close()  # the last reader closed the file


def test_a_database_built_anew_is_not_the_old_one(images: Path) -> None:
    old = ImageDatabase(images, RELEASED)
    shutil.rmtree(images)
    with ImageDatabaseWriter(images, RELEASED) as writer:
        writer.add("new.npz", *some(0))
    new = ImageDatabase(images, RELEASED)
    assert new.names() == ["new.npz"]
    assert new.feature_width == 4
    assert len(old.names()) == 24


def test_reads_after_a_fork() -> None:
    database, texts = ImageDatabase(IMAGES, RELEASED), TextDatabase(TEXTS)
    name = database.names()[0]
    expected = database.read(name).features_RD

    def inherited() -> None:
        np.testing.assert_array_equal(database.read(name).features_RD, expected)
        np.testing.assert_array_equal(ImageDatabase(IMAGES, RELEASED).read(name).features_RD, expected)
        assert texts.read("1").input_ids == (111, 137, 115, 148)

    def dropped_unused() -> None:
        nonlocal database
        database = None  # type: ignore[assignment]
        gc.collect()
        np.testing.assert_array_equal(ImageDatabase(IMAGES, RELEASED).read(name).features_RD, expected)

    assert in_child(inherited) == 0
    assert in_child(dropped_unused) == 0
    np.testing.assert_array_equal(database.read(name).features_RD, expected)


# ----------------------------------------------------------------------------------------------- writing images


@pytest.mark.parametrize("layout", [RELEASED, ALL, Layout(conf_th=0.2, max_bb=8, min_bb=3, compressed=True)])
def test_writes_what_the_released_writer_wrote(tmp_path: Path, layout: Layout) -> None:
    everything = raw(IMAGES / "all")
    names = json.loads(everything["__keys__"])
    with ImageDatabaseWriter(tmp_path, layout) as writer:
        for name in names:
            arrays = msgpack.unpackb(everything[name], object_hook=msgpack_numpy.decode)
            writer.add(name, arrays["features"], arrays["norm_bb"], arrays["conf"], arrays["soft_labels"])
    official, ours = raw(IMAGES / layout.folder), raw(tmp_path / layout.folder)
    assert ours.keys() == official.keys()
    assert ours["__keys__"] == official["__keys__"]
    if layout.compressed:  # deflate's bytes are its version's own matter
        for name in names:
            (tmp_path / "a.npz").write_bytes(ours[name])
            (tmp_path / "b.npz").write_bytes(official[name])
            one, other = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
            for key in ("features", "norm_bb", "conf", "soft_labels"):
                assert one[key].tobytes() == other[key].tobytes()
                assert (one[key].dtype, one[key].shape) == (other[key].dtype, other[key].shape)
    else:
        assert ours == official
    assert layout.counts_file is not None
    assert json.loads((tmp_path / layout.counts_file).read_text()) == json.loads((IMAGES / layout.counts_file).read_text())


def test_four_columns_become_six_and_confidence_orders(tmp_path: Path) -> None:
    features, boxes, confidences = some(1)
    shuffled = np.array([3, 0, 5, 1, 4, 2])
    for layout in (Layout("fixed", num_bb=4), ALL):
        with ImageDatabaseWriter(tmp_path, layout) as writer:
            assert writer.add("a", features[shuffled], boxes[shuffled], confidences[shuffled][:, None])
        found = ImageDatabase(tmp_path, layout).read("a")
        rows = np.arange(4) if layout.kind == "fixed" else shuffled
        np.testing.assert_allclose(found.features_RD, features[rows], rtol=1e-3)
        left, top, right, bottom = boxes[rows].T
        width, height = right - left, bottom - top
        expected = np.stack([left, top, right, bottom, width, height, width * height], axis=1)
        np.testing.assert_allclose(found.boxes_R7, expected, atol=2e-3)
        np.testing.assert_array_equal(found.boxes_R7[:, 6], found.boxes_R7[:, 4] * found.boxes_R7[:, 5])


@pytest.mark.parametrize("layout", [RELEASED, ALL, Layout("fixed", num_bb=3, compressed=True)])
def test_goes_on_where_it_was_closed_or_killed(tmp_path: Path, layout: Layout) -> None:
    with ImageDatabaseWriter(tmp_path, layout) as writer:
        for seed in range(3):
            assert writer.add(f"{seed}", *some(seed))
    first = raw(tmp_path / layout.folder)

    def killed() -> None:
        unfinished = ImageDatabaseWriter(tmp_path, layout, commit_every=2)
        for seed in range(8):
            assert unfinished.add(f"{seed}", *some(seed)) == (seed >= 3)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == signal.SIGKILL
    left = ImageDatabase(tmp_path, layout)
    assert left.names() == ["0", "1", "2", "3", "4", "5", "6"]  # 7 was in memory
    for name in left.names():
        assert left.number_of_regions(name) == len(left.read(name).features_RD)
    del left
    with ImageDatabaseWriter(tmp_path, layout) as writer:
        assert ("6" in writer, "7" in writer, len(writer)) == (True, False, 7)
        assert [writer.add(f"{seed}", *some(seed)) for seed in range(9)] == [False] * 7 + [True] * 2
    with ImageDatabaseWriter(tmp_path / "at_once", layout) as writer:
        for seed in range(9):
            writer.add(f"{seed}", *some(seed))
    ours = raw(tmp_path / layout.folder)
    assert ours == raw(tmp_path / "at_once" / layout.folder)
    assert {key: ours[key] for key in "012"} == {key: first[key] for key in "012"}
    if layout.counts_file:
        assert json.loads((tmp_path / layout.counts_file).read_text()) == {
            f"{seed}": layout.count(some(seed)[2]) for seed in range(9)
        }


def test_images_whose_counts_were_lost_are_counted_again(tmp_path: Path) -> None:
    with ImageDatabaseWriter(tmp_path, RELEASED) as writer:
        for seed in range(4):
            writer.add(f"{seed}", *some(seed, regions=4 + seed))
    file = tmp_path / "nbb_th0.2_max8_min3.json"
    expected = json.loads(file.read_text())
    file.write_text(json.dumps({"1": expected["1"], "of a database that was removed": 5}))
    ImageDatabaseWriter(tmp_path, RELEASED).close()
    assert json.loads(file.read_text()) == expected
    assert len(set(expected.values())) > 1


def test_the_file_grows_and_an_exception_keeps_what_was_done(tmp_path: Path) -> None:
    features, boxes, _ = some(0, regions=100, width=2048)

    def interrupted() -> None:
        with ImageDatabaseWriter(tmp_path, Layout(), commit_every=40) as writer:
            for number in range(50):  # 20 MB where the first map has 16
                writer.add(f"{number:03}", features, boxes, np.ones(100))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    database = ImageDatabase(tmp_path)
    assert len(database.names()) == 50
    np.testing.assert_array_equal(database.read("049").features_RD[0], features[0].astype(np.float16).astype(np.float32))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """While inside, a file cannot grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("free", "reason"), [(0, "the disk is full"), (10**12, "Input/output error|File too large")])
def test_a_disk_that_takes_no_more_is_one_line_and_what_was_committed_is_gone_on_from(
    tmp_path: Path, free: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, boxes, _ = some(0, regions=10, width=256)

    def write() -> int:
        with ImageDatabaseWriter(tmp_path, Layout(), commit_every=8) as writer:
            before = len(writer)
            for number in range(80):
                writer.add(f"{number:03}", features, boxes, np.ones(10))
            return before

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with files_of_at_most(300_000), pytest.raises(InputError, match=rf"{Layout().folder} cannot be written \(({reason})\)"):
        write()
    assert 0 < write() < 80
    assert len(ImageDatabase(tmp_path).names()) == 80


def test_a_text_database_that_finds_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        with TextDatabaseWriter(tmp_path / "itm.db", tokenize_word, Vocabulary("synthetic", size=120)) as writer:
            for number in range(2000):
                writer.add(str(number), "0.npz", "( " * 90)

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    for size in (0, 100_000, 300_000):  # when it is begun, in a batch, and with the rest
        with files_of_at_most(size), pytest.raises(OSError, match=r"No space left on device|File too large"):
            write()
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"features_RD": np.zeros((0, 4)), "boxes": np.zeros((0, 4)), "confidences_R": np.zeros(0)}, r"features \(0, 4\)"),
        ({"boxes": np.zeros((5, 4))}, r"norm_bb \(5, 6\)"),
        ({"boxes": np.full((6, 4), 2.0)}, "boxes are not left, top, right, bottom as fractions"),
        ({"boxes": np.tile([0.5, 0, 0.2, 1], (6, 1))}, "boxes are not left"),
        ({"features_RD": np.full((6, 4), 7e4)}, "features has values that are not finite, or beyond fp16"),
        ({"features_RD": np.full((6, 4), np.nan)}, "features has values that are not finite"),
        ({"features_RD": np.zeros((6, 5))}, "width 5 in a database of width 4"),
        ({"soft_labels_RC": np.zeros((5, 3))}, r"soft labels \(5, 3\) for 6 regions"),
        ({"name": "x" * 512}, "1 to 511 bytes"),
        ({"name": "__keys__"}, "is not '__keys__'"),
    ],
)
def test_regions_that_cannot_be_written(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    features, boxes, confidences = some(0)
    with ImageDatabaseWriter(tmp_path, RELEASED) as writer:
        writer.add("a", features, boxes, confidences)
        arguments = {"name": "b", "features_RD": features, "boxes": boxes, "confidences_R": confidences} | change
        with pytest.raises(InputError, match=rf"feat_th0.2_max8_min3: image {arguments['name']}: .*{problem}|{problem}"):
            writer.add(**arguments)
    assert ImageDatabase(tmp_path, RELEASED).names() == ["a"]


def test_going_on_with_another_extractor_is_refused(tmp_path: Path) -> None:
    with ImageDatabaseWriter(tmp_path, Layout("fixed")) as writer:
        writer.add("a", *some(0))
    with (
        ImageDatabaseWriter(tmp_path, Layout("fixed")) as writer,
        pytest.raises(InputError, match="width 9 in a database of width 4"),
    ):
        writer.add("b", *some(0, width=9))


# ------------------------------------------------------------------------------------------------ damaged images


def test_folders_and_layouts_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        ImageDatabase(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no layout feat_th0.2_max100_min10; it has all, feat_th0.2_max8_min3, .*: set kind"):
        ImageDatabase(IMAGES)
    with pytest.raises(InputError, match="nor any other"):
        ImageDatabase(tmp_path)
    (tmp_path / "all").mkdir()
    with pytest.raises(InputError, match=r"all/data\.mdb cannot be opened \(No such file"):
        ImageDatabase(tmp_path, ALL)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "does not exist; expected the number of regions"),
        ("{", "is not valid JSON"),
        ("[]", "does not hold a JSON object"),
        ('{"a": 9}', r"a: 9 is not a number of regions \(1 to 8\); the file belongs to another layout"),
        ('{"a": "x"}', "a: 'x' is not a number"),
        ('{"a": 0}', "a: 0 is not a number"),
    ],
)
def test_wrong_counts(images: Path, content: str | None, problem: str) -> None:
    file = images / "nbb_th0.2_max8_min3.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=rf"nbb_th0\.2_max8_min3\.json.*{problem}"):
        ImageDatabase(images, RELEASED)


def test_counts_of_another_database(images: Path) -> None:
    file = images / "nbb_th0.2_max8_min3.json"
    counts = json.loads(file.read_text())
    low = next(name for name, count in counts.items() if count == 5)
    few = next(name for name, count in counts.items() if count == 3)
    gone = next(name for name, count in counts.items() if count == 7)
    put(images / "feat_th0.2_max8_min3", **{few: put_rows(images, few, 2)})
    file.write_text(json.dumps({name: count for name, count in (counts | {low: 8}).items() if name != gone}))
    database = ImageDatabase(images, RELEASED)
    with pytest.raises(InputError, match=rf"image {low} has 5 regions and .*min3\.json says 8: the file belongs to another"):
        database.read(low)
    with pytest.raises(InputError, match=rf"has image '{gone}' and nbb_th0.2_max8_min3.json does not count it"):
        database.read(gone)
    with pytest.raises(InputError, match="does not count it"):
        database.number_of_regions(gone)
    assert len(database.read(few).features_RD) == 2  # the released writer counts min_bb where the detector found fewer


def put_rows(images: Path, name: str, rows: int) -> bytes:
    arrays = msgpack.unpackb(raw(images / "feat_th0.2_max8_min3")[name], object_hook=msgpack_numpy.decode)
    packed: bytes = msgpack.packb({key: array[:rows] for key, array in arrays.items()}, default=msgpack_numpy.encode)
    return packed


def test_a_missing_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no image 'coco_774252441.npz'; it has 24, the nearest is 'toy_000774252441.npz'.*txt2img"
    ):
        ImageDatabase(IMAGES, RELEASED).read("coco_774252441.npz")
    with pytest.raises(InputError, match="nearest is 'toy_"):
        ImageDatabase(IMAGES, RELEASED).read("__keys__")
    ImageDatabaseWriter(tmp_path, ALL).close()
    with pytest.raises(InputError, match="no image 'a': it is empty"):
        ImageDatabase(tmp_path, ALL).read("a")
    with pytest.raises(InputError, match="has no images"):
        _ = ImageDatabase(tmp_path, ALL).feature_width


def test_another_feature_width_is_named() -> None:
    database = ImageDatabase(IMAGES, RELEASED, feature_width=2048)
    with pytest.raises(InputError, match=r"image toy_000774252441\.npz has features of width 32 and 2048 were expected"):
        database.read("toy_000774252441.npz")


@pytest.mark.parametrize("size", [0, 100, 4096, 8192, 12288, 36864, 40959])
def test_truncated_files_are_named_and_do_not_kill(images: Path, size: int) -> None:
    data = images / "feat_th0.2_max8_min3" / "data.mdb"
    os.truncate(data, size)
    with pytest.raises(InputError, match=r"data\.mdb (\(|has).*(fetch it again|fetch or build it again|Fetch it again)"):
        ImageDatabase(images, RELEASED)


def test_foreign_files_are_named(images: Path) -> None:
    (images / "feat_th0.2_max8_min3" / "data.mdb").write_bytes(b"SQLite format 3\0" * 2000)
    with pytest.raises(InputError, match=r"data\.mdb \(32,000 bytes\) cannot be opened as an LMDB database"):
        ImageDatabase(images, RELEASED)
    (images / "all").rename(images / "old")
    shutil.copytree(TEXTS, images / "all")  # a text database in place of an image database
    database = ImageDatabase(images, ALL)
    with pytest.raises(InputError, match="has no image 'toy_000774252441"):
        database.read("toy_000774252441.npz")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)

    def __init__(self, path: Path) -> None:
        self.path = path


def test_no_value_reaches_pickle(images: Path, tmp_path: Path) -> None:
    name, target = "toy_000774252441.npz", tmp_path / "ran"
    objects = np.array([Bomb(target)], dtype=object)
    packed = msgpack.packb({"features": objects}, default=msgpack_numpy.encode)
    encoded = {b"nd": True, b"type": "|O", b"kind": b"", b"shape": [1], b"data": b"\x01" * 8}
    records = {b"nd": True, b"type": [["a", "<f4"]], b"kind": b"V", b"shape": [1], b"data": b"\x01" * 4}
    for value in (packed, msgpack.packb({"features": encoded}), msgpack.packb({"features": records})):
        put(images / "feat_th0.2_max8_min3", **{name: value})
        with pytest.raises(InputError, match=rf"image {name}: its value is not msgpack of plain arrays \(an array of "):
            ImageDatabase(images, RELEASED).read(name)
    np.savez(tmp_path / "bomb.npz", features=objects, norm_bb=objects, conf=objects)
    put(images / "feat_th0.2_max8_min3_compressed", **{name: (tmp_path / "bomb.npz").read_bytes()})
    with pytest.raises(InputError, match=r"not an npz archive of plain arrays \(Object arrays cannot be loaded"):
        ImageDatabase(images, Layout(max_bb=8, min_bb=3, compressed=True)).read(name)
    assert not target.exists()
    msgpack.unpackb(packed, object_hook=msgpack_numpy.decode)  # the released way: it does run
    assert target.exists()


def test_damaged_values_are_named(images: Path) -> None:
    name = "toy_000774252441.npz"
    folder, squeezed = images / "feat_th0.2_max8_min3", images / "feat_th0.2_max8_min3_compressed"
    good, zipped = raw(folder)[name], raw(squeezed)[name]
    arrays = msgpack.unpackb(good)
    short = {**arrays["features"], b"data": arrays["features"][b"data"][:-2]}
    for value, problem in (
        (good[:-5], "not msgpack"),
        (b"", "not msgpack"),
        (zipped, "not msgpack"),
        (msgpack.packb([1]), "not a mapping"),
        (msgpack.packb(arrays | {"features": short}), r"not msgpack of plain arrays \(cannot reshape"),
        (msgpack.packb(arrays | {"features": {b"nd": True}}), "not msgpack"),
        (msgpack.packb({"conf": 1}), r"has no array 'features' \(it has conf\)"),
        (msgpack.packb(arrays | {"conf": arrays["features"]}), r"conf \(7, 32\)"),
    ):
        put(folder, **{name: value})
        with pytest.raises(InputError, match=rf"image {name}.*{problem}"):
            ImageDatabase(images, RELEASED).read(name)
    for value in (zipped[:-30], zipped[:60] + b"\0" * 40 + zipped[100:], good, b""):
        put(squeezed, **{name: value})
        with pytest.raises(InputError, match=rf"image {name}: its value is not an npz archive"):
            ImageDatabase(images, Layout(max_bb=8, min_bb=3, compressed=True)).read(name)
    put(folder, __keys__=b"{}")
    with pytest.raises(InputError, match="__keys__ is not a JSON list of image names"):
        ImageDatabase(images, RELEASED).names()


@pytest.mark.parametrize(
    ("array", "change", "problem"),
    [
        ("features", lambda a: a.__setitem__((2, 1), np.inf), r"'features' has inf at region 2 of 7; expected finite numbers"),
        ("features", lambda a: a.__setitem__((0, 0), -np.inf), "'features' has -inf at region 0"),
        ("features", lambda a: a.__setitem__((6, 31), np.nan), "'features' has nan at region 6"),
        (
            "norm_bb",
            lambda a: a.__imul__(96),
            r"'norm_bb' has \[.*\] at region 0 .* fractions \(0..1\), not pixels",
        ),
        ("norm_bb", lambda a: a.__setitem__((3, slice(0, 4)), 50), "'norm_bb' .* at region 3"),
        ("norm_bb", lambda a: a.__setitem__((1, 0), np.nan), r"'norm_bb' has \[ *nan, .*\] at region 1"),
        ("norm_bb", lambda a: a.__setitem__((1, slice(0, 4)), [0.9, 0, 0.1, 1]), "'norm_bb' .* at region 1"),
        ("norm_bb", lambda a: a.__setitem__((5, 4), 0), "'norm_bb' .* at region 5"),
        ("conf", lambda a: a.__setitem__(4, 50), r"'conf' has .*50.* at region 4 of 7; expected confidences \(0..1\)"),
        ("conf", lambda a: a.__setitem__(4, np.nan), "'conf' has .*nan.* at region 4"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_numbers_that_cannot_be_regions_are_named(
    images: Path, array: str, change: Callable[[np.ndarray], object], problem: str, dtype: type
) -> None:
    name = "toy_000774252441.npz"
    folder = images / "feat_th0.2_max8_min3"
    arrays = {key: np.array(value, dtype) for key, value in msgpack_numpy.unpackb(raw(folder)[name], raw=False).items()}
    before = ImageDatabase(images, RELEASED).read(name)
    change(arrays[array])
    put(folder, **{name: msgpack.packb(arrays, default=msgpack_numpy.encode)})
    for as_stored in (False, True):
        with pytest.raises(InputError, match=f"{folder}: image {name}: array {problem}"):
            ImageDatabase(images, RELEASED).read(name, as_stored)
    assert before.features_RD.dtype == np.float32
    assert ImageDatabase(images, RELEASED).feature_width == 32  # the others serve


def test_the_stray_array_of_the_released_compressed_writer_is_passed_over(images: Path, tmp_path: Path) -> None:
    folder, name = images / "feat_th0.2_max8_min3_compressed", "toy_000774252441.npz"
    expected = ImageDatabase(images, RELEASED).read(name)
    (tmp_path / "a.npz").write_bytes(raw(folder)[name])
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive, archive.open("allow_pickle.npy", "w") as file:
        np.lib.format.write_array(file, np.array(True))
    put(folder, **{name: (tmp_path / "a.npz").read_bytes()})
    found = ImageDatabase(images, Layout(max_bb=8, min_bb=3, compressed=True)).read(name)
    np.testing.assert_array_equal(found.features_RD, expected.features_RD)


# -------------------------------------------------------------------------------------------------------- texts


TOY = Vocabulary("synthetic", first_word=106, size=150)


def test_reads_the_released_text_database() -> None:
    values = raw(TEXTS)
    database = TextDatabase(TEXTS, expected=TOY)
    assert len(database.text_ids) == 120
    for identity in database.text_ids:
        record = msgpack.unpackb(lz4.frame.decompress(values[identity]))
        found = database.read(identity)
        assert (list(found.input_ids), found.image_name, found.text) == (record["input_ids"], record["img_fname"], None)
        assert packed_text(record) == values[identity]
    assert database.vocabulary == TOY
    assert database.image_texts["toy_000774252441.npz"] == ["0", "1", "2", "3", "4"]
    assert ImageDatabase(IMAGES, RELEASED).names() == list(database.image_texts)


def test_long_texts_are_left_out_and_not_cut() -> None:
    database = pickle.loads(pickle.dumps(TextDatabase(TEXTS, max_pieces=5)))
    assert database.text_ids == [identity for identity, length in database.lengths.items() if length <= 5]
    assert 0 < len(database.text_ids) < 120 == len(database.image_names)
    longer = next(identity for identity, length in database.lengths.items() if length > 5)
    assert len(database.read(longer).input_ids) == database.lengths[longer]


def tokenize_word(word: str) -> list[int]:
    return [] if word == "\u200b" else [106 + ord(letter) % 40 for letter in word]


def test_texts_are_written_and_read(tmp_path: Path) -> None:
    sentences = {"a": "  A dog\truns . ", "b": "\u200b Ja", "c": "x"}
    with TextDatabaseWriter(tmp_path / "itm.db", tokenize_word, TOY) as writer:
        for row, (identity, text) in enumerate(sentences.items()):
            writer.add(identity, f"{row // 2}.npz", text)
        assert not (tmp_path / "itm.db").exists()
    database = TextDatabase(tmp_path / "itm.db", expected=TOY)
    for row, (identity, text) in enumerate(sentences.items()):
        found = database.read(identity)
        assert (found.text, found.image_name) == (text, f"{row // 2}.npz")
        assert list(found.input_ids) == [piece for word in text.split() for piece in tokenize_word(word)]
        assert database.lengths[identity] == len(found.input_ids)
    assert database.image_texts == {"0.npz": ["a", "b"], "1.npz": ["c"]}
    assert word_pieces_of(sentences["b"], tokenize_word) == [[], tokenize_word("Ja")]
    meta = json.loads((tmp_path / "itm.db" / "meta.json").read_text())
    assert {key: meta[key] for key in ("CLS", "SEP", "MASK", "UNK", "v_range")} == {
        key: value for key, value in json.loads((TEXTS / "meta.json").read_text()).items() if "tok" not in key
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["itm.db"]
    with pytest.raises(InputError, match=r"itm\.db exists; remove it"):
        TextDatabaseWriter(tmp_path / "itm.db", tokenize_word, TOY)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("a", "0.npz", "again"), "text id 'a' appears twice"),
        (("b", "0.npz", " \u200b "), r"text 'b' .* has the word pieces \[\]"),
        (("b", "0.npz", "w"), r"word pieces \[145\]; expected .* below 120 \(synthetic\)"),
        (("", "0.npz", "x"), "1 to 511 bytes"),
    ],
)
def test_texts_that_cannot_be_written_leave_nothing(tmp_path: Path, arguments: tuple[str, str, str], problem: str) -> None:
    def write() -> None:
        with TextDatabaseWriter(tmp_path / "itm.db", tokenize_word, Vocabulary("synthetic", size=120)) as writer:
            writer.add("a", "0.npz", "(")
            writer.add(*arguments)

    with pytest.raises(InputError, match=problem):
        write()
    assert not list(tmp_path.iterdir())


def test_another_tokenizer_is_named() -> None:
    with pytest.raises(
        InputError, match=r"word pieces of 'synthetic' \(size 150\) and the network has those of 'bert-base-cased'"
    ):
        TextDatabase(TEXTS, expected=Vocabulary())
    with pytest.raises(InputError, match=r"\(cls 101\) and .* \(cls 5\)"):
        TextDatabase(TEXTS, expected=Vocabulary("x", cls=5, size=150))
    assert TextDatabase(TEXTS, expected=Vocabulary("another name", size=150)).vocabulary.tokenizer == "synthetic"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("meta.json", None, "meta.json does not exist"),
        ("meta.json", '{"CLS": 101, "SEP": 102, "MASK": 103, "v_range": [106, 150]}', "meta.json lacks one of UNK"),
        ("meta.json", '{"CLS": 101, "SEP": 102, "MASK": 103, "UNK": 100, "v_range": [106]}', "meta.json lacks one of"),
        ("id2len.json", "[]", "id2len.json does not hold a JSON object"),
        ("id2len.json", '{"0": "two"}', r"id2len\.json: 0: 'two' does not fit"),
        ("id2len.json", '{"x": 2}', "text x of id2len.json is not in txt2img.json"),
        ("txt2img.json", '{"0": ["a.npz", "b.npz"]}', "does not fit; expected .* as image-text retrieval has them"),
        ("img2txts.json", '{"a.npz": ["0"]}', "gives text 0 to image a.npz and txt2img.json to toy_000774252441.npz"),
        ("img2txts.json", '{"toy_000774252441.npz": ["0"]}', "txt2img.json has 120 texts and img2txts.json 1"),
        ("data.mdb", None, r"data\.mdb cannot be opened \(No such file.* expected the LMDB file of a text database"),
        ("data.mdb", "x" * 9000, "cannot be opened as an LMDB database"),
    ],
)
def test_wrong_files_of_a_text_database(texts: Path, name: str, content: str | None, problem: str) -> None:
    (texts / name).unlink()
    if content is not None:
        (texts / name).write_text(content)
    with pytest.raises(InputError, match=problem):
        TextDatabase(texts)


def test_damaged_texts_are_named(texts: Path) -> None:
    for value, problem in (
        (raw(texts)["0"][:-9], "its value is not an lz4 frame of msgpack"),
        (b"", "its value is not an lz4 frame"),
        (lz4.frame.compress(b"\xc1"), "its value is not an lz4 frame of msgpack"),
        (packed_text({"ids": [1]}), "has no 'input_ids' that are a list of integers"),
        (packed_text({"input_ids": ["a"]}), "has no 'input_ids'"),
        (packed_text({"input_ids": [110]}), r"has 1 word pieces and id2len\.json says 2"),
        (packed_text({"input_ids": [110, 150]}), r"has word piece 150 and meta\.json speaks of a vocabulary of 150"),
    ):
        put(texts, **{"0": value})
        with pytest.raises(InputError, match=rf"itm_toy\.db: text 0.*{problem}"):
            TextDatabase(texts).read("0")
    with pytest.raises(InputError, match=r"has no text 'x' in data\.mdb; it has 120, the first is '0'"):
        TextDatabase(texts).read("x")
    (texts / "id2len.json").write_text('{"0": 2}')
    with pytest.raises(InputError, match=r"has no text '1' in its id2len\.json"):
        TextDatabase(texts).read("1")
    with pytest.raises(InputError, match="is not a folder"):
        TextDatabase(texts / "nowhere")


# ------------------------------------------------------------------------------------------- features in other files


def test_a_tsv_file_is_named_and_the_documented_lines_make_a_database_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LXMERT's columns; boxes in pixels become fractions."""
    features, boxes, confidences = (values.astype(np.float32) for values in some(3))
    pixels = boxes * np.float32([200, 100, 200, 100])
    fields = ["7", "100", "200", "", confidences, "", "", "6", pixels, features]
    encoded = [each if isinstance(each, str) else base64.b64encode(each.tobytes()).decode() for each in fields]
    (tmp_path / "features.tsv").write_text("\t".join(encoded) + "\n")
    for refused in (
        lambda: ImageDatabase(tmp_path / "features.tsv", ALL),
        lambda: RegionFiles("features.tsv").require(tmp_path),
    ):
        with pytest.raises(InputError, match=r"features\.tsv is a TSV file of region features, .*docs/regions\.md"):
            refused()
    text = (Path(__file__).parents[4] / "docs" / "regions.md").read_text()
    (code,) = re.findall(r"## From a TSV file\n.*?```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    found = ImageDatabase(tmp_path / "img_db" / "mine", ALL).read("7.npz")
    np.testing.assert_allclose(found.features_RD, features, atol=2e-3)
    np.testing.assert_allclose(found.boxes_R7[:, :4], boxes, atol=1e-3)
    np.testing.assert_allclose(found.confidences_R, confidences, atol=1e-3)
