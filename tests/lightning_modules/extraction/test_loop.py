"""The loop from photographs to a database: order of boxes, layouts, kill and resume, damaged files, foreign extractors."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.errors import InputError
from datamodules.files.images import open_image
from datamodules.formats.flickr_entities import read_annotation, write_entities
from datamodules.formats.uniter.image_database import ImageDatabase
from datamodules.formats.uniter.image_writer import ImageDatabaseWriter
from datamodules.formats.uniter.layout import Layout
from datamodules.miniworld.render import render
from datamodules.miniworld.scenes import sample_scene
from datamodules.records import Box, Caption, ImageRecord, Phrase
from lightning_modules.extraction import loop as extraction
from lightning_modules.extraction.boxes import DatabaseBoxes, EntitiesBoxes, GridBoxes, layout_named
from lightning_modules.extraction.extractors import BackboneRegions, DetectorRegions, Extracted, Sizing
from lightning_modules.extraction.loop import extract, plan
from lightning_modules.networks.towers.timm import TimmImageTower

ALL = Layout("all")
GRID = GridBoxes((1, 2))
SIZES = [(96, 72), (72, 96), (96, 96), (96, 72), (72, 96), (96, 72), (96, 96), (96, 50)]


@pytest.fixture(scope="module")
def extractor() -> BackboneRegions:
    torch.manual_seed(0)
    return BackboneRegions(TimmImageTower("test_efficientnet"), "timm:test_efficientnet", shorter=32, longest=64)


@pytest.fixture
def photographs(tmp_path: Path) -> list[ImageRecord]:
    """Eight of five shapes; their names have numbers."""
    folder = tmp_path / "images"
    folder.mkdir()
    records = []
    for number, (width, height) in enumerate(SIZES):
        path = folder / f"10{number}.jpg"
        render(sample_scene(5, "source", number)).crop((0, 0, width, height)).save(path, quality=90)
        records.append(ImageRecord(path.stem, path, ()))
    return records


def run(records: list[ImageRecord], network: Any, out: Path, boxes: Any = GRID, **options: Any) -> extraction.Summary:
    layout = options.pop("layout", ALL)
    return extract(records, network, boxes, out, layout, **{"batch_size": 2, "workers": 0, "progress": False} | options)


def values(folder: Path) -> dict[bytes, bytes]:
    """Every image's bytes in a database."""
    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {bytes(key): bytes(value) for key, value in transaction.cursor() if key != b"__keys__"}


def test_grid_boxes() -> None:
    boxes_R4, confidences_R = GridBoxes((1, 2, 4)).of(ImageRecord("1", None, ()))
    assert len(boxes_R4) == len(confidences_R) == 21
    assert boxes_R4[0].tolist() == [0, 0, 1, 1]
    assert boxes_R4[2].tolist() == [0.5, 0, 1, 0.5]  # row by row
    assert boxes_R4[20].tolist() == [0.75, 0.75, 1, 1]
    area = (boxes_R4[:, 2:] - boxes_R4[:, :2]).prod(1)
    assert area.tolist() == [1, *[1 / 4] * 4, *[1 / 16] * 16]
    with pytest.raises(InputError, match="numbers from 1"):
        GridBoxes((0,))


def test_batches_are_of_one_size_and_depend_on_the_list_only() -> None:
    sizing = Sizing(32, 32, 64)
    rows = [(64, 64), (96, 64), (64, 64), None, (96, 62), (40, 80), (64, 64), (96, 64)]
    assert plan(rows, sizing, 2) == [[0, 2], [1, 4], [5], [6], [7]]
    assert plan(rows, sizing, 100) == [[0, 2, 6], [1, 4, 7], [5]]


def test_features_boxes_and_names(extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path) -> None:
    """What stands in the database is what the extractor gives for each image by itself."""
    done = run(photographs, extractor, tmp_path / "db", batch_size=3)
    assert (done.images, done.regions, done.there_before, done.unreadable) == (8, 40, 0, [])
    database = ImageDatabase(tmp_path / "db", ALL, extractor.feature_width)
    assert sorted(database.names()) == [f"10{number}.npz" for number in range(8)]
    for record in photographs:
        boxes_R4, _ = GridBoxes((1, 2)).of(record)
        with torch.inference_mode():
            (expected,) = extractor([extractor.sizing.pixels(open_image(record))], [boxes_R4])
        stored = database.read(f"{record.image_id}.npz")
        np.testing.assert_allclose(stored.features_RD, expected.features_RD, atol=2e-3, rtol=2e-3)  # fp16
        np.testing.assert_array_equal(stored.boxes_R7[:, :4], boxes_R4)
        assert stored.confidences_R.tolist() == [1] * 5
    assert json.loads((tmp_path / "db" / "nbb.json").read_text()) == dict.fromkeys(database.names(), 5)


def test_entities_boxes_in_file_order(extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path) -> None:
    boxes = [Box(40, 30, 90, 60), Box(0, 0, 20, 15), Box(10, 20, 60, 70)]
    phrases = [Phrase(0, 5, "7", "other", (boxes[0],)), Phrase(6, 11, "2", "people", (boxes[1], boxes[2]))]
    for record in photographs[:2]:
        write_entities(tmp_path, record.image_id, (96, 96), [Caption("c", "first other thing", tuple(phrases))])
    write_entities(tmp_path, photographs[2].image_id, (96, 96), [Caption("c", "a scene", (Phrase(0, 7, "3", "scene"),))], {"3"})
    done = run(photographs[:3], extractor, tmp_path / "gt", EntitiesBoxes(tmp_path))
    assert (done.images, done.regions) == (3, 7)
    database = ImageDatabase(tmp_path / "gt", ALL)
    for name in ("100", "101"):
        annotation = read_annotation(tmp_path / "Annotations" / f"{name}.xml")
        stored = database.read(f"{name}.npz")
        np.testing.assert_allclose(stored.boxes_R7[:, :4], annotation.fractions_K4(), atol=1e-3)
        np.testing.assert_allclose(stored.boxes_R7[0, :4] * 96, [40, 30, 90, 60], atol=0.1)
    assert database.read("102.npz").boxes_R7[:, :4].tolist() == [[0, 0, 1, 1]]  # no box: the whole image
    with pytest.raises(InputError, match=r"Annotations/103\.xml does not exist"):
        run(photographs, extractor, tmp_path / "more", EntitiesBoxes(tmp_path))


def test_boxes_of_another_database(extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path) -> None:
    """By our names and by the released ones, from any layout; other features for the same boxes."""
    boxes = np.array([[0.25, 0.5, 0.75, 1], [0, 0, 0.5, 0.5]])
    layout = Layout(conf_th=0.1, max_bb=5, min_bb=1)
    with ImageDatabaseWriter(tmp_path / "detector", layout) as writer:
        for record in photographs[:2]:
            writer.add(f"{record.image_id}.npz", np.ones((2, 3)), boxes, [0.5, 0.75])
        writer.add("flickr30k_000000000102.npz", np.ones((2, 3)), boxes, [0.75, 0.5])
    for source in (tmp_path / "detector", tmp_path / "detector" / layout.folder):
        out = tmp_path / f"out_{source.name}"
        run(photographs[:3], extractor, out, DatabaseBoxes(source))
        database = ImageDatabase(out, ALL)
        assert database.read("100.npz").boxes_R7[:, :4].tolist() == boxes[::-1].tolist()
        assert database.read("100.npz").confidences_R.tolist() == [0.75, 0.5]
        assert database.read("102.npz").boxes_R7[:, :4].tolist() == boxes.tolist()
        assert database.feature_width == extractor.feature_width
    with pytest.raises(InputError, match="103"):
        run(photographs, extractor, tmp_path / "more", DatabaseBoxes(source))
    with pytest.raises(InputError, match="no image database in it"):
        DatabaseBoxes(tmp_path)
    (tmp_path / "features.tsv").write_text("img_id\timg_h\timg_w\tnum_boxes\tboxes\tfeatures\n")
    with pytest.raises(InputError, match=r"--boxes .*features\.tsv is a TSV file of region features"):
        DatabaseBoxes(tmp_path / "features.tsv")
    shutil.copytree(tmp_path / "detector" / layout.folder, tmp_path / "detector" / "all")
    with pytest.raises(InputError, match="several layouts"):
        DatabaseBoxes(tmp_path / "detector")


@pytest.mark.parametrize(
    "layout", [Layout(), Layout("all"), Layout("fixed", num_bb=7), Layout(conf_th=0.35, max_bb=64, min_bb=2, compressed=True)]
)
def test_layouts_by_folder_name(layout: Layout) -> None:
    assert (found := layout_named(layout.folder)) is not None
    assert found.folder == layout.folder
    assert layout_named("features") is None


class _Detector(DetectorRegions):
    """Four detections an image, of falling confidence."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.sizing, self.feature_width = Sizing(32, 64, 96, here=False), 3

    @property
    def description(self) -> dict[str, Any]:
        return {"backbone": "stub"}

    def forward(self, pixels: Any) -> list[Extracted]:
        confidences = torch.tensor([0.75, 0.5, 0.25, 0.125])
        boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.25, 0, 0.5, 1], [0.5, 0.5, 1, 1]])
        return [Extracted(confidences[:, None].expand(4, 3), boxes, confidences, torch.full((4, 2), 0.5)) for _ in pixels]


@pytest.mark.parametrize(
    ("layout", "kept"),
    [
        (Layout(conf_th=0.4, max_bb=4, min_bb=1), 2),
        (Layout(conf_th=0.4, max_bb=4, min_bb=3), 3),  # the most confident, though below the threshold
        (Layout(conf_th=0.9, max_bb=4, min_bb=1), 1),
        (Layout(conf_th=0.1, max_bb=3, min_bb=1), 3),
        (Layout(conf_th=0.9, max_bb=100, min_bb=10), 4),  # there are no more
        (Layout("fixed", num_bb=2), 2),
        (Layout("all"), 4),
    ],
)
def test_how_many_detections_are_kept(layout: Layout, kept: int, photographs: list[ImageRecord], tmp_path: Path) -> None:
    done = run(photographs[:2], _Detector(), tmp_path / "db", None, layout=layout)
    assert done.regions == 2 * kept
    stored = ImageDatabase(tmp_path / "db", layout).read("100.npz")
    assert stored.confidences_R.tolist() == [0.75, 0.5, 0.25, 0.125][:kept]
    assert (stored.features_RD[:, 0] == stored.confidences_R).all()


def test_a_photograph_that_lies_is_seen_upright(
    extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path
) -> None:
    upright, lying = tmp_path / "upright.png", tmp_path / "lying.png"
    with Image.open(photographs[0].path or "") as image:
        image.save(upright)
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(lying, exif=exif)
    records = [ImageRecord(path.stem, path, ()) for path in (upright, lying)]
    run(records, extractor, tmp_path / "db")
    database = ImageDatabase(tmp_path / "db", ALL)
    np.testing.assert_array_equal(database.read("lying.npz").features_RD, database.read("upright.npz").features_RD)
    # Boxes that were drawn over it upright are those of its features; drawn over it lying they are not.
    phrase = Phrase(0, 5, "7", "other", (Box(40, 30, 90, 60),))
    for name, size in (("upright", (96, 72)), ("lying", (96, 72))):
        write_entities(tmp_path, name, size, [Caption("c", "first", (phrase,))])
    run(records, extractor, tmp_path / "gt", EntitiesBoxes(tmp_path))
    stored = [ImageDatabase(tmp_path / "gt", ALL).read(f"{name}.npz") for name in ("lying", "upright")]
    np.testing.assert_array_equal(stored[0].features_RD, stored[1].features_RD)
    np.testing.assert_array_equal(stored[0].boxes_R7, stored[1].boxes_R7)
    write_entities(tmp_path, "lying", (72, 96), [Caption("c", "first", (replace(phrase, boxes=(Box(40, 30, 70, 60),)),))])
    with pytest.raises(InputError, match=r"lying\.png is 96 x 72 upright, .* boxes of lying\.xml were drawn over 72 x 96"):
        EntitiesBoxes(tmp_path).of(records[1])


# ------------------------------------------------------------------------------------------- interruptions and mistakes


def test_a_killed_extraction_goes_on_to_the_same_bytes(
    extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a batch, with part of what was done committed."""
    run(photographs, extractor, tmp_path / "whole", batch_size=3)
    child = os.fork()
    if child == 0:  # pragma: no cover
        signal.alarm(60)
        torch.set_num_threads(1)
        written = 0
        add = ImageDatabaseWriter.add

        def add_or_die(self: ImageDatabaseWriter, *arguments: Any) -> bool:
            nonlocal written
            if written == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            written += 1
            return add(self, *arguments)

        monkeypatch.setattr(ImageDatabaseWriter, "add", add_or_die)
        monkeypatch.setattr(extraction, "ImageDatabaseWriter", partial(ImageDatabaseWriter, commit_every=2))
        try:
            run(photographs, extractor, tmp_path / "cut", batch_size=3)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    cut, whole = tmp_path / "cut" / "all", tmp_path / "whole" / "all"
    assert len(values(cut)) == 4
    done = run(photographs, extractor, tmp_path / "cut", batch_size=3)
    assert (done.there_before, done.images) == (4, 4)
    assert values(cut) == values(whole)
    assert len(values(cut)) == 8
    for name in ("nbb.json", "extractor.json"):
        assert json.loads((tmp_path / "cut" / name).read_text()) == json.loads((tmp_path / "whole" / name).read_text())
    again = run(photographs, extractor, tmp_path / "cut", batch_size=3)
    assert (again.there_before, again.images) == (8, 0)


def test_a_truncated_photograph_stops_it_by_name_and_loses_nothing(
    extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path
) -> None:
    """Through a worker process; mended, it goes on to the bytes of a run that never stopped."""
    broken = photographs[4].path
    assert broken is not None
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"^image 104: .*104\.jpg cannot be decoded .*truncated.*--skip-unreadable") as stop:
        run(photographs, extractor, tmp_path / "db", workers=1)
    assert "Traceback" not in str(stop.value)
    stays = ImageDatabase(tmp_path / "db", ALL).names()
    assert 0 < len(stays) < 8
    done = run(photographs, extractor, tmp_path / "skipped", skip_unreadable=True)
    assert done.images == 7
    assert len(done.unreadable) == 1
    assert "104.jpg" in done.unreadable[0]
    assert "104.npz" not in ImageDatabase(tmp_path / "skipped", ALL).names()

    broken.write_bytes(whole)
    done = run(photographs, extractor, tmp_path / "db")
    assert (done.there_before, done.images) == (len(stays), 8 - len(stays))
    run(photographs, extractor, tmp_path / "whole")
    assert values(tmp_path / "db" / "all") == values(tmp_path / "whole" / "all")


@pytest.mark.parametrize("damage", ["missing", "text"])
def test_files_that_are_no_images_are_found_before_anything_is_computed(
    damage: str, extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path
) -> None:
    path = photographs[6].path
    assert path is not None
    path.unlink() if damage == "missing" else path.write_text("no image")
    reason = {"missing": "does not exist", "text": "not an image that PIL can read"}[damage]
    with pytest.raises(InputError, match=rf"image 106: .*106\.jpg .*{reason}"):
        run(photographs, extractor, tmp_path / "db")
    assert not (tmp_path / "db" / "all").exists()
    done = run(photographs, extractor, tmp_path / "db", skip_unreadable=True)
    assert (done.images, len(done.unreadable)) == (7, 1)


def test_regions_of_a_photograph_that_was_replaced_are_made_anew(
    extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path
) -> None:
    run(photographs, extractor, tmp_path / "db")
    paths = [record.path for record in photographs if record.path is not None]
    before = values(tmp_path / "db" / "all")
    # Moved, copied, touched: the same photographs.
    shutil.copytree(paths[0].parent, tmp_path / "elsewhere")
    os.utime(paths[3], (1, 1))
    moved = [replace(record, path=tmp_path / "elsewhere" / path.name) for record, path in zip(photographs, paths, strict=True)]
    for records in (photographs, moved):
        assert (done := run(records, extractor, tmp_path / "db")).outdated == done.images == 0
    # Another one, of the time that it had.
    status, data = paths[3].stat(), paths[5].read_bytes()
    paths[3].write_bytes(data)
    os.utime(paths[3], ns=(status.st_atime_ns, status.st_mtime_ns))
    done = run(photographs, extractor, tmp_path / "db")
    assert (done.outdated, done.images, done.there_before) == (1, 1, 7)
    after = values(tmp_path / "db" / "all")
    assert {name for name in before if after[name] != before[name]} == {b"103.npz"}
    run(photographs, extractor, tmp_path / "fresh")
    assert after == values(tmp_path / "fresh" / "all")
    assert ImageDatabase(tmp_path / "db", ALL).names()[-1] == "103.npz"
    assert len(json.loads((tmp_path / "db" / "nbb.json").read_text())) == 8
    # Without the photograph there is nothing to make it of, and what is there stays.
    paths[3].unlink()
    done = run(photographs, extractor, tmp_path / "db", skip_unreadable=True)
    assert (done.outdated, done.there_before) == (0, 8)
    assert values(tmp_path / "db" / "all") == after


@pytest.mark.parametrize("left", [b"", b'["100.npz", "0'])
def test_regions_of_nobody_knows_which_photograph_are_made_anew(
    left: bytes, extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path
) -> None:
    """As a killed writer leaves them, or a version that did not note it."""
    run(photographs[:3], extractor, tmp_path / "db")
    before, notes = values(tmp_path / "db" / "all"), tmp_path / "db" / "all" / "sources.jsonl"
    whole = notes.read_bytes()
    notes.write_bytes(b"\n".join(whole.split(b"\n")[:2]) + b"\n" + left)
    done = run(photographs[:3], extractor, tmp_path / "db")
    assert (done.outdated, done.images) == (1, 1)
    assert values(tmp_path / "db" / "all") == before
    assert run(photographs[:3], extractor, tmp_path / "db").outdated == 0


def test_other_boxes_are_other_regions(extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path) -> None:
    for record in photographs[:2]:
        write_entities(
            tmp_path, record.image_id, (96, 96), [Caption("c", "a", (Phrase(0, 1, "7", "other", (Box(4, 3, 9, 6),)),))]
        )
    run(photographs[:2], extractor, tmp_path / "gt", EntitiesBoxes(tmp_path))
    write_entities(tmp_path, "101", (96, 96), [Caption("c", "a", (Phrase(0, 1, "7", "other", (Box(8, 3, 90, 6),)),))])
    done = run(photographs[:2], extractor, tmp_path / "gt", EntitiesBoxes(tmp_path))
    assert (done.outdated, done.images) == (1, 1)
    assert ImageDatabase(tmp_path / "gt", ALL).read("101.npz").boxes_R7[0, 2] > 0.9
    run(photographs[:2], extractor, tmp_path / "pooled", DatabaseBoxes(tmp_path / "gt"))
    write_entities(tmp_path, "100", (96, 96), [Caption("c", "a", (Phrase(0, 1, "7", "other", (Box(8, 3, 90, 6),)),))])
    run(photographs[:2], extractor, tmp_path / "gt", EntitiesBoxes(tmp_path))
    with pytest.raises(InputError, match=r"extractor.json is of another extractor: content was"):
        run(photographs[:2], extractor, tmp_path / "pooled", DatabaseBoxes(tmp_path / "gt"))


def test_another_extractor_is_refused(extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path) -> None:
    run(photographs[:2], extractor, tmp_path / "db")
    with pytest.raises(InputError, match=r"extractor\.json is of another extractor: .*levels was \[1, 2\] and is \[1, 4\]"):
        run(photographs, extractor, tmp_path / "db", GridBoxes((1, 4)))
    torch.manual_seed(1)
    other = BackboneRegions(TimmImageTower("test_efficientnet"), "timm:test_efficientnet", shorter=64, longest=64)
    with pytest.raises(InputError, match=r"another extractor: sizing differs; weights_sha256 was"):
        run(photographs, other, tmp_path / "db")
    with pytest.raises(InputError, match="precision was 'fp32' and is 'bf16'"):
        run(photographs, extractor, tmp_path / "db", precision="bf16")
    assert len(values(tmp_path / "db" / "all")) == 2
    (tmp_path / "db" / "extractor.json").unlink()
    with pytest.raises(InputError, match=r"has no extractor\.json to say whose it is \('data\.mdb' is there\)"):
        run(photographs, extractor, tmp_path / "db")


def test_mistakes_are_named(extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="backbone needs boxes"):
        run(photographs, extractor, tmp_path / "db", None)
    with pytest.raises(InputError, match="detector finds its own"):
        run(photographs, _Detector(), tmp_path / "db")
    with pytest.raises(InputError, match="no images"):
        run([], extractor, tmp_path / "db")
    with pytest.raises(InputError, match="--device cuda:99"):
        run(photographs, extractor, tmp_path / "db", device="cuda:99")
    (tmp_path / "b").mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "b" / "100.jpg")
    twin = ImageRecord("x", tmp_path / "b" / "100.jpg", ())
    with pytest.raises(InputError, match=r"would both be 100\.npz"):
        run([*photographs, twin], extractor, tmp_path / "db")
    assert not (tmp_path / "db").exists()


def test_lower_precision_is_close(extractor: BackboneRegions, photographs: list[ImageRecord], tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        run(photographs[:3], extractor, tmp_path / precision, precision=precision)
    exact, rounded = (ImageDatabase(tmp_path / name, ALL).read("100.npz").features_RD for name in ("fp32", "bf16"))
    assert (exact != rounded).any()
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())
