"""`crosslight data check` finds what we broke, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_data import write_image
from tiny_regions import region_values, write_root

from datamodules.coco import COCO
from datamodules.errors import InputError
from datamodules.files.digests import digest
from datamodules.flickr8k import Flickr8k
from datamodules.flickr30k import Flickr30k
from datamodules.formats.uniter.image_writer import ImageDatabaseWriter
from datamodules.formats.uniter.layout import Layout
from datamodules.loading.region_files import RegionFiles
from datamodules.prepare.check import Report, SplitCounts, check, run_check


def test_a_check_imports_no_torch(flickr8k_root: Path) -> None:
    """Nor anything else that takes seconds: who checks files has to wait for the images alone."""
    code = f"""
import sys
from experiments.cli.main import main
try:
    main(["data", "check", "flickr8k", {str(flickr8k_root)!r}, "--workers", "1"])
except SystemExit as end:
    assert not end.code
print([name for name in ("torch", "torchvision", "lightning", "transformers", "jsonargparse") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["no problems found", "[]"]


def test_a_sound_root(flickr8k_root: Path) -> None:
    report = run_check("flickr8k", flickr8k_root, workers=1)
    assert report.problems == []
    assert report.exit_code == 0
    assert report.splits == {"train": SplitCounts(13, 36), "val": SplitCounts(5, 15), "test": SplitCounts(3, 10)}
    assert "  train: 13 images, 36 captions" in report.lines()
    assert report.lines()[-1] == "no problems found"


@pytest.mark.parametrize("workers", [1, 2])
def test_every_kind_of_damage_is_listed(flickr8k_root: Path, workers: int) -> None:
    images = flickr8k_root / "images"
    (images / "1002.jpg").unlink()
    for name in ("1004.jpg", "1017.jpg"):
        (images / name).write_bytes((images / name).read_bytes()[:-60])
    shutil.copy(images / "1000.jpg", images / "1018.jpg")  # train's picture under a name of the test split
    path = flickr8k_root / "dataset_flickr8k.json"
    content = json.loads(path.read_text())
    content["images"][5]["sentences"] = []
    content["images"][6]["sentences"][0]["sentid"] = 0
    content["images"][0]["sentences"][0]["raw"] = "One caption twice ."
    content["images"][14]["sentences"][0]["raw"] = "one caption twice ."
    content["images"].append(content["images"][7] | {"split": "val", "imgid": 900, "sentences": [{"raw": "x", "sentid": 900}]})
    path.write_text(json.dumps(content))

    report = check_quietly(flickr8k_root, workers)
    found = sorted((problem.kind, problem.text.split(" (")[0]) for problem in report.problems)
    assert found == [
        ("duplicated id", "images[6]"),
        ("image in several splits", "images[21]"),
        ("image without captions", "image 1005"),
        ("missing image", f"image 1002: {images}/1002.jpg does not exist"),
        ("unreadable image", f"image 1004: {images}/1004.jpg cannot be decoded"),
        ("unreadable image", f"image 1017: {images}/1017.jpg cannot be decoded"),
    ]
    assert report.exit_code == 1
    assert "1 caption text(s) occur in train and val" in report.notes
    assert "unreadable image: 2" in report.lines()
    assert report.lines()[-1] == "6 problem(s)"


def check_quietly(root: Path, workers: int) -> Report:
    return check(Flickr8k(str(root)), workers, progress=False)


def test_equal_pictures_in_two_splits_are_noted(flickr8k_root: Path) -> None:
    shutil.copy(flickr8k_root / "images" / "1000.jpg", flickr8k_root / "images" / "1018.jpg")
    report = check_quietly(flickr8k_root, 1)
    assert "1 image file(s) with equal content occur in test and train" in report.notes
    assert report.exit_code == 0


def test_captions_without_images_in_official_coco(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    captions = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"id": 4, "image_id": 2, "caption": "a dog"}]}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    data = COCO(str(tmp_path), image_dir="images", captions="official", files={"test": ["captions.json"]})
    kinds = [problem.kind for problem in check(data, workers=1, progress=False).problems]
    assert kinds == ["caption without image", "image without captions", "missing image"]
    with pytest.raises(InputError, match=r"has 3 problem|has 2 problem"):
        data.records("test")


def test_long_lists_are_cut(flickr8k_root: Path) -> None:
    shutil.rmtree(flickr8k_root / "images")
    (flickr8k_root / "images").mkdir()
    lines = check_quietly(flickr8k_root, 1).lines(most=5)
    assert "missing image: 21" in lines
    assert "  and 16 more" in lines


def test_unknown_kind_and_unreadable_annotations(tmp_path: Path) -> None:
    kinds = "coco, flickr30k, flickr30k_entities, flickr8k, nocaps, table, visual_genome"
    with pytest.raises(InputError, match=f"unknown kind of data 'imagenet'; choose one of {kinds}, or give the class path"):
        run_check("imagenet", tmp_path)
    with pytest.raises(InputError, match="Flickr8k is not complete"):
        run_check("flickr8k", tmp_path)


def test_damaged_exif_is_noted_and_no_problem(flickr8k_root: Path) -> None:
    path = flickr8k_root / "images" / "1000.jpg"
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30), "red").save(path, exif=exif)
    assert check_quietly(flickr8k_root, 1).notes == []
    before, mark, after = path.read_bytes().partition(b"Exif\0\0")
    path.write_bytes(before + mark + b"XX" + after[2:])  # no byte order
    report = check_quietly(flickr8k_root, 1)
    assert (report.problems, len(report.notes)) == ([], 1)
    assert report.notes[0].startswith("1 image file(s) with damaged EXIF data are read as they are stored")
    assert report.notes[0].endswith("1000.jpg")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_picture_of_any_format_is_listed(flickr8k_root: Path, workers: int) -> None:
    """A decoder's own error (AVIF: RuntimeError) is not one of PIL's usual ones."""
    path = flickr8k_root / "images" / "1000.jpg"
    Image.new("RGB", (40, 30), "red").save(path, format="AVIF")
    path.write_bytes(path.read_bytes().replace(b"av1C", b"free", 1))
    (problem,) = check_quietly(flickr8k_root, workers).problems
    assert problem.kind == "unreadable image"
    assert problem.text.startswith(f"image 1000: {path} ")


@pytest.mark.parametrize("workers", [-1, 100_000])
def test_processes_that_no_machine_has_are_not_started(flickr8k_root: Path, workers: int) -> None:
    with pytest.raises(InputError, match=rf"workers is {workers}; give 0 to "):
        check_quietly(flickr8k_root, workers)


def test_regions_of_a_photograph_that_was_replaced_are_listed(tmp_path: Path) -> None:
    root = write_root(tmp_path / "f")
    folder = root / "flickr30k-images"
    with ImageDatabaseWriter(root / "img_db" / "mine", Layout("all")) as writer:
        for number in range(1000, 1020):
            write_image(folder / f"{number}.jpg", number)
            writer.add(f"{number}.npz", *region_values(number), sources=(digest(folder / f"{number}.jpg"), None))
    data = Flickr30k(str(root), num_workers=0, regions=RegionFiles("img_db/mine", "all"))
    assert check(data, progress=False).problems == []
    write_image(folder / "1003.jpg", 7)
    (folder / "1004.jpg").unlink()  # regions serve without photographs
    (problem,) = check(data, progress=False).problems
    assert problem.text == (
        f"image 1003: its regions were made of another photograph than {folder / '1003.jpg'} is now; extract it again"
    )


def test_copies_and_repeated_captions_within_a_split_are_noted(tmp_path: Path) -> None:
    """The right answer of one image counts as wrong for its copy."""
    for name, content in (("1.jpg", 1), ("copy.jpg", 1), ("2.jpg", 2), ("3.jpg", 3), ("4.jpg", 4)):
        write_image(tmp_path / name, content)
    rows = ["1.jpg,A dog.,test", "1.jpg,a dog.,test", "copy.jpg,a dog,test", "2.jpg,a cat,test", "3.jpg,a,train", "4.jpg,b,val"]
    (tmp_path / "captions.csv").write_text("\n".join(["path,caption,split", *rows]) + "\n")
    notes = run_check("table", tmp_path, workers=1).notes
    assert any(note.startswith("1 image file(s) of test have the same content as another one of it (copy.jpg)") for note in notes)
    assert "1 image(s) have the same caption more than once, which counts more than once" in notes
