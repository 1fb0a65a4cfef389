"""Several data sets as one, and what is kept out of them."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_regions import VOCABULARY, WIDTH, region_files, region_inputs, region_values, write_images, write_root

from datamodules.coco import COCO
from datamodules.errors import InputError
from datamodules.files.stand_in import begin
from datamodules.flickr30k import Flickr30k
from datamodules.formats.held_out import FlickrHeldOut
from datamodules.image_text import BATCH_OPTIONS, ImageTextDataModule, Limits
from datamodules.inputs import Inputs, RegionInput, TextInput
from datamodules.loading.captions import Captioning
from datamodules.loading.images import Augment
from datamodules.loading.pretraining import Pretraining
from datamodules.loading.ranking import Ranking
from datamodules.loading.region_files import RegionFiles
from datamodules.together import Together

MASKED = Inputs(text=TextInput(None, 64, VOCABULARY.size), regions=RegionInput(WIDTH), masked=True)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two data sets whose databases call other images by the same names."""
    folder = tmp_path_factory.mktemp("together")
    first = write_root(folder / "first" / "flickr30k")
    return first, write_root(folder / "second" / "flickr30k", {"train": 7, "val": 2, "test": 2})


def together(roots: tuple[Path, Path], **options: Any) -> Together:
    parts = {name: Flickr30k(str(root), regions=region_files()) for name, root in zip(("one", "two"), roots, strict=True)}
    return Together(parts, batch_size=4, num_workers=0, **options)  # type: ignore[arg-type]


def test_training_has_all_parts_and_evaluation_is_the_first_ones(roots: tuple[Path, Path]) -> None:
    data = together(roots)
    data.connect(MASKED)
    assert data.splits() == {"train": 19, "val": 5, "test": 3}
    records = data.records("train")
    assert [record.image_id.partition("/")[0] for record in records] == ["one"] * 12 + ["two"] * 7
    assert {record.image_id.partition("/")[0] for record in data.records("val")} == {"one"}
    assert data.name == "flickr30k+flickr30k"
    described = data.describe()
    assert described["splits"]["train"]["images"] == 19
    assert described["options"].keys() == {"one", "two"}
    assert data.fingerprint() != together((roots[0], roots[0])).fingerprint()


def test_each_image_has_the_regions_of_its_own_part(roots: tuple[Path, Path]) -> None:
    data = together(roots, train_unit="image")
    data.connect(MASKED)
    seen = set()
    for batch in data.train_dataloader():
        assert batch.images.regions is not None
        for row, image in enumerate(batch.images.image_ids):
            number = int(batch.images.image_ids[row].rpartition("flickr30k_")[2]) - 1000
            features = region_values(number)[0]
            np.testing.assert_array_equal(batch.images.regions.features_BRD[row, : len(features)].numpy(), features)
            seen.add(image)
    assert len({image.partition("/")[0] for image in seen}) == 2
    data.connect(region_inputs())  # ranking takes them as well
    assert len(next(iter(data.evaluation_loaders("val")[0])).image_ids) == 5


def test_parts_that_do_not_fit_are_refused(roots: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="parts is empty"):
        Together({})
    with pytest.raises(InputError, match="'a/b' is no name of a part"):
        Together({"a/b": Flickr30k(str(roots[0]))})
    texts = Flickr30k(str(roots[1]), regions=region_files(texts=False))
    mixed = Together({"one": Flickr30k(str(roots[0]), regions=region_files()), "two": texts})
    with pytest.raises(
        InputError, match=r"captions of different kinds \(one: .*, two: text\): set regions.text_db of all to null"
    ):
        mixed.connect(MASKED)
    write_images(tmp_path / "wide", {"a.npz": 1}, width=9)
    other = Flickr30k(str(roots[1]), regions=region_files(image_db=str(tmp_path / "wide")))
    wide = Together({"one": Flickr30k(str(roots[0]), regions=region_files()), "two": other})
    with pytest.raises(InputError, match=r"parts\.two has region features of width 9, the part before it of 6"):
        wide.connect(MASKED)


@pytest.mark.parametrize("option", [
    {"batch_size": 8}, {"eval_batch_size": 2}, {"num_workers": 0}, {"train_unit": "image"}, {"augment": "none"},
    {"min_scale": 0.9}, {"flip": 0.0}, {"limits": Limits(train=3)}, {"seed": 3}, {"cache_pixels": True},
    {"ranking": Ranking(candidates=3)}, {"pretraining": Pretraining(consecutive=2)}, {"captioning": Captioning(group="none")},
], ids=lambda option: next(iter(option)))  # fmt: skip
def test_an_option_of_a_part_that_acts_on_nothing_is_refused(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(InputError, match=rf"parts\.one has {name}.* acts on nothing.* Give {name} beside parts, or leave it out"):
        Together({"one": Flickr30k("nowhere", **option)})


def test_all_that_says_nothing_of_files_is_looked_at() -> None:
    """Whatever option the base gets: it is of files, or of batches."""
    options = set(inspect.signature(ImageTextDataModule.__init__).parameters) - {"self", "root", "image_dir", "regions"}
    assert options == set(BATCH_OPTIONS) == Flickr30k("nowhere").batch_options().keys()


def test_a_data_set_with_a_default_of_its_own_and_positives() -> None:
    class Plain(Flickr30k):
        def __init__(self, root: str, augment: Augment = "none", **options: Any) -> None:
            super().__init__(root, augment=augment, **options)

    Together({"one": Plain("nowhere")})
    with pytest.raises(InputError, match=r"parts\.one has augment \(paper\)"):
        Together({"one": Plain("nowhere", augment="paper")})
    with pytest.raises(InputError, match=r"parts\.coco has positives \(eccv\), which act on nothing"):
        Together({"coco": COCO("nowhere", positives={"eccv": "positives"})})


def test_stand_ins_among_the_parts_are_said(roots: tuple[Path, Path], tmp_path: Path) -> None:
    assert "stand_in" not in _described(roots)
    begin(tmp_path / "stand_in", {"of": "a test"})
    copied = tmp_path / "stand_in" / "flickr30k"
    shutil.copytree(roots[1], copied)
    assert _described((roots[0], copied))["stand_in"] is True


def _described(roots: tuple[Path, Path]) -> dict[str, Any]:
    data = together(roots)
    data.connect(MASKED)
    return data.describe()


def write_coco(root: Path) -> None:
    """Six training images and one to validate; images 3 and 4 are Flickr30k's 77 (test) and 78 (train)."""
    (root / "annotations").mkdir(parents=True)
    (root / "held_out").mkdir()
    images = [
        {"filename": f"COCO_train2014_{i:012d}.jpg", "filepath": "train2014", "cocoid": i, "imgid": i,
         "split": "val" if i == 6 else "restval" if i == 5 else "train", "sentids": [i],
         "sentences": [{"raw": "a dog", "sentid": i, "imgid": i, "tokens": []}]}
        for i in range(7)
    ]  # fmt: skip
    (root / "annotations" / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    urls = [{"id": i, "file_name": "x", "flickr_url": f"http://farm4.staticflickr.com/31/{74 + i}_0a1b_z.jpg"} for i in range(6)]
    for year in ("train", "val"):
        content = {"images": urls if year == "train" else [{"id": 99, "file_name": "y", "flickr_url": "http://a/9_0_z.jpg"}]}
        (root / "annotations" / f"captions_{year}2014.json").write_text(json.dumps({**content, "annotations": []}))
    held = [{"filename": f"{number}.jpg", "split": split, "imgid": number, "sentences": []}
            for number, split in ((77, "test"), (78, "train"), (5, "val"))]  # fmt: skip
    (root / "held_out" / "dataset_flickr30k.json").write_text(json.dumps({"images": held}))
    write_images(root / "img_db" / "regions", {f"COCO_train2014_{i:012d}.npz": i for i in range(7)})


def test_coco_leaves_out_what_flickr30k_evaluates_on(tmp_path: Path, tokenizer_folder: Path) -> None:
    write_coco(tmp_path)
    regions = RegionFiles("img_db/regions", max_bb=9, min_bb=2)
    inputs = region_inputs(tokenizer_folder)

    def ids(held_out: FlickrHeldOut | None) -> list[str]:
        data = COCO(str(tmp_path), regions=regions, held_out=held_out)
        data.connect(inputs)
        return [record.image_id for record in data.records("train")]

    assert ids(None) == ["0", "1", "2", "3", "4", "5"]
    only = FlickrHeldOut(flickr8k=None)
    assert ids(only) == ["0", "1", "2", "4", "5"]
    whole, less = (COCO(str(tmp_path), regions=regions, held_out=held_out) for held_out in (None, only))
    for data in (whole, less):
        data.connect(inputs)
    assert whole.fingerprint() != less.fingerprint()
    assert less.options()["held_out"] == [
        "dataset_flickr30k.json",
        "captions_train2014.json",
        "captions_val2014.json",
        "val",
        "test",
    ]
    with pytest.raises(InputError, match=r"held_out/dataset_flickr8k\.json"):
        ids(FlickrHeldOut())
    (tmp_path / "annotations" / "captions_val2014.json").write_text('{"images": [{"id": 1, "flickr_url": "http://here/x.jpg"}]}')
    with pytest.raises(InputError, match=r"captions_val2014\.json names no image of Flickr"):
        ids(only)
    with pytest.raises(InputError, match="nothing would stay out; set it to null"):
        FlickrHeldOut(flickr30k=None, flickr8k=None)
