"""The regions+text view: what the databases hold is what batches carry, each item once, and contradictions have their message."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import msgpack_numpy
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_data import karpathy, write_image
from tiny_regions import (
    LAYOUT,
    VOCABULARY,
    region_files,
    region_inputs,
    region_values,
    word_ids,
    write_images,
    write_root,
)

from datamodules.coco import COCO
from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.flickr30k import Flickr30k
from datamodules.formats.uniter.layout import Layout
from datamodules.formats.uniter.text_database import TextDatabaseWriter, Vocabulary
from datamodules.image_text import ImageTextDataModule, Limits
from datamodules.inputs import Inputs, RegionInput, TextInput
from datamodules.loading.pairs import Pairs
from datamodules.loading.ranking import Ranking, RegionRanking
from datamodules.loading.region_files import RegionFiles, RegionReader
from datamodules.loading.regions import padded
from datamodules.prepare.check import check
from datamodules.records import ImageBatch, TextBatch

RECORDING = Path(__file__).parents[2] / "recordings" / "uniter_db"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("regions") / "flickr30k")


@pytest.fixture
def own_root(root: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(root, tmp_path / "flickr30k"))


def connected(root: Path, inputs: Inputs | None = None, rank: int = 0, world_size: int = 1, **options: Any) -> Flickr30k:
    defaults = {"regions": region_files(), "ranking": Ranking(8), "batch_size": 4, "num_workers": 0, "eval_batch_size": 4}
    data = Flickr30k(str(root), **(defaults | options))
    data.connect(inputs or region_inputs(), rank, world_size)
    return data


def require_regions(batch: ImageBatch) -> None:
    """The batch's regions are those of `region_values`, and padding is zero."""
    regions = batch.regions
    assert regions is not None
    assert batch.pixels_B3HW is None
    assert regions.features_BRD.dtype == torch.float16
    assert {regions.boxes_BR7.dtype, regions.confidences_BR.dtype} == {torch.float32}
    counts = regions.mask_BR.sum(1).tolist()
    assert regions.mask_BR.shape[1] == max(counts)
    for row, image_id in enumerate(batch.image_ids):
        features, corners, confidences = region_values(int(image_id.rpartition("_")[2]) - 1000)
        count = len(features)
        assert regions.mask_BR[row].tolist() == [True] * count + [False] * (max(counts) - count)
        np.testing.assert_array_equal(regions.features_BRD[row, :count].numpy(), features)
        np.testing.assert_array_equal(regions.boxes_BR7[row, :count, :4].numpy(), corners)
        size = corners[:, 2:] - corners[:, :2]
        np.testing.assert_array_equal(regions.boxes_BR7[row, :count, 4:6].numpy(), size)
        np.testing.assert_allclose(regions.boxes_BR7[row, :count, 6].numpy(), size.prod(1), rtol=1e-6)
        np.testing.assert_array_equal(regions.confidences_BR[row, :count].numpy(), confidences)
        for values in (regions.features_BRD, regions.boxes_BR7, regions.confidences_BR):
            assert not values[row, count:].any()


# ------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_what_was_written_each_once(root: Path, workers: int) -> None:
    data = connected(root, num_workers=workers)
    images, texts = data.evaluation_loaders("train")
    records = data.records("train")
    counts, rows = [], []
    for batch in images:
        require_regions(batch)
        rows += batch.index_B.tolist()
        counts += batch.regions.mask_BR.sum(1).tolist()
        assert batch.image_ids == tuple(records[row].image_id for row in batch.index_B.tolist())
    assert sorted(rows) == list(range(12))
    assert counts == sorted(counts)  # little padding
    captions = [(image, caption) for image, record in enumerate(records) for caption in record.captions]
    raw = {str(s["sentid"]): s["raw"] for image in karpathy({"train": 12})["images"] for s in image["sentences"]}
    seen, lengths = [], []
    for batch in texts:
        for place, row in enumerate(batch.index_B.tolist()):
            image, caption = captions[row]
            assert (batch.caption_ids[place], int(batch.image_index_B[place])) == (caption.caption_id, image)
            ids = [piece for word in raw[caption.caption_id].split() for piece in word_ids(word)]
            assert batch.tokens_BT[place, batch.mask_BT[place]].tolist() == [2, *ids, 3]
            assert not batch.tokens_BT[place, ~batch.mask_BT[place]].any()
            seen.append(row)
            lengths.append(len(ids))
    assert sorted(seen) == list(range(len(captions)))
    assert lengths == sorted(lengths)


def test_captions_of_the_data_sets_own_file_become_the_same_batches(root: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    by_file = connected(root, region_inputs(tokenizer_folder), regions=region_files(texts=False))
    by_database = connected(root, region_inputs(tokenizer_folder))
    stems = connected(
        write_root(tmp_path, name_of="{}.npz".format), region_inputs(tokenizer_folder), regions=region_files(texts=False)
    )
    assert [record.image_id for record in by_file.records("val")] == ["1012", "1013", "1014", "1015", "1016"]
    assert [record.regions for record in by_file.records("val")] == [record.regions for record in by_database.records("val")]
    assert stems.records("val")[0].regions == "1012.npz"
    for other in (by_database, stems):
        for left, right in zip(by_file.evaluation_loaders("val"), other.evaluation_loaders("val"), strict=True):
            for a, b in zip(left, right, strict=True):
                assert torch.equal(a.index_B, b.index_B)
                if isinstance(a, TextBatch):
                    assert torch.equal(a.tokens_BT, b.tokens_BT)
                else:
                    assert torch.equal(a.regions.features_BRD, b.regions.features_BRD)
    texts: Any = by_file.evaluation_loaders("train")[1]
    lengths = [int(length) for batch in texts for length in batch.mask_BT.sum(1)]
    assert all(left <= right for left, right in pairwise(lengths))  # by tokens, not by characters


def test_processes_share_evaluation(root: Path) -> None:
    rows: list[list[int]] = [[], []]
    for rank in range(2):
        for kind, loader in enumerate(connected(root, rank=rank, world_size=2).evaluation_loaders("val")):
            rows[kind] += [row for batch in loader for row in batch.index_B.tolist()]
    assert [sorted(found) for found in rows] == [list(range(5)), list(range(15))]


def test_long_captions_are_cut_with_a_warning(root: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"flickr30k val: \d+ of 15 captions have more than the network's max_tokens 6 and are cut"
    ):
        texts: Any = connected(root, region_inputs(max_tokens=6)).evaluation_loaders("val")[1]
    assert max(batch.tokens_BT.shape[1] for batch in texts) == 6


def test_official_databases(tmp_path: Path) -> None:
    """Written by the released code: see test_uniter_lmdb.py."""
    recorded = load_file(RECORDING / "reads.safetensors")
    for layout in ({}, {"compressed": True}, {"kind": "all"}):
        files = RegionFiles("img_db/toy", max_bb=8, min_bb=3, text_db={"test": ["txt_db/itm_toy.db"]}, **layout)  # type: ignore[arg-type]
        data = Flickr30k(str(RECORDING), regions=files, num_workers=0, eval_batch_size=10)
        data.connect(Inputs(text=TextInput(None, 512, 150), regions=RegionInput(32)))
        images, texts = data.evaluation_loaders("test")
        seen = 0
        for batch in images:
            for row, image_id in enumerate(batch.image_ids):
                name = f"{image_id}.npz"
                if f"{name}/img_feat" in recorded:
                    seen += 1
                    suffix = "_all" if layout.get("kind") == "all" else ""
                    real = batch.regions.mask_BR[row]
                    np.testing.assert_array_equal(
                        batch.regions.features_BRD[row, real].numpy(), recorded[f"{name}/img_feat{suffix}"]
                    )
                    if not suffix:
                        np.testing.assert_array_equal(
                            batch.regions.boxes_BR7[row, real].numpy(), recorded[f"{name}/img_pos_feat"]
                        )
        assert seen == 3
        first = next(iter(texts)).tokens_BT
        assert (set(first[:, 0].tolist()), first.max().item() < 150) == ({101}, True)


def test_features_stored_as_float32_stay_exact(own_root: Path) -> None:
    """Another extractor may write what fp16 does not hold; also next to images that it does."""
    data = connected(own_root)
    name = data.records("val")[2].regions
    assert name is not None
    features = np.full((4, 6), 1 / 3, dtype=np.float32)
    arrays = {"features": features, "norm_bb": np.zeros((4, 6), np.float32), "conf": np.ones(4, np.float32)}
    folder = own_root / "img_db" / "flickr30k"
    del data
    gc.collect()  # closes the database, which may be open only once in a process
    with lmdb.open(str(folder / LAYOUT.folder)) as environment, environment.begin(write=True) as transaction:
        transaction.put(name.encode(), msgpack.packb(arrays, default=msgpack_numpy.encode, use_bin_type=True))
    counts = json.loads((folder / str(LAYOUT.counts_file)).read_text())
    (folder / str(LAYOUT.counts_file)).write_text(json.dumps(counts | {name: 4}))
    reader = RegionReader([folder], LAYOUT)
    others = sorted(counts.keys() - {name})[:2]
    regions = padded(reader, [others[0], name, others[1]])
    assert regions.features_BRD.dtype == torch.float32
    np.testing.assert_array_equal(regions.features_BRD[1, :4].numpy(), features)
    for row in (0, 2):
        expected = region_values(int(others[row // 2][-8:-4]) - 1000)[0]
        np.testing.assert_array_equal(regions.features_BRD[row, : len(expected)].numpy(), expected)


@pytest.mark.parametrize("layout", [Layout("fixed", num_bb=5), Layout("all"), Layout("all", max_bb=20)])
def test_layouts_without_counts_are_read_once_and_cut(tmp_path: Path, layout: Layout) -> None:
    write_images(tmp_path / "db", {"3.npz": 3, "4.npz": 4, "5.npz": 5}, layout=layout)
    (tmp_path / "db" / "nbb.json").unlink(missing_ok=True)
    regions = padded(RegionReader([tmp_path / "db"], layout), ["3.npz", "4.npz", "5.npz"])
    lengths = [len(region_values(seed)[0]) for seed in (3, 4, 5)]
    kept = [min(length, 5) if layout.kind == "fixed" else length for length in lengths]
    assert regions.mask_BR.sum(1).tolist() == kept
    assert regions.features_BRD.shape == (3, max(kept), 6)
    assert regions.features_BRD.is_contiguous()


def test_a_reader_travels_to_a_spawned_worker(root: Path) -> None:
    task = connected(root).task
    assert isinstance(task, RegionRanking)
    reader = task.reader
    copy: RegionReader = pickle.loads(pickle.dumps(reader))
    name = "flickr30k_000000001003.npz"
    assert torch.equal(padded(copy, [name]).features_BRD, padded(reader, [name]).features_BRD)


# ------------------------------------------------------------------------------------------------------------ views


def test_the_network_chooses_the_view(own_root: Path, inputs: Inputs) -> None:
    for image in karpathy({"train": 12, "val": 5, "test": 3})["images"]:
        write_image(own_root / "flickr30k-images" / image["filename"], image["imgid"])
    data = connected(own_root, inputs)
    assert isinstance(data.task, Pairs)
    pixels: ImageBatch = next(iter(data.evaluation_loaders("val")[0]))
    assert pixels.pixels_B3HW is not None
    assert pixels.regions is None
    plain = Flickr30k(str(own_root))
    assert data.fingerprint() == plain.fingerprint()  # the databases play no part
    assert data.describe()["options"] == {"split": "karpathy"}
    data.connect(region_inputs())
    assert isinstance(data.task, RegionRanking)
    require_regions(next(iter(data.evaluation_loaders("val")[0])))
    both = Inputs(inputs.image, inputs.text, RegionInput(6))
    data.connect(both)
    assert isinstance(data.task, Pairs)
    with pytest.raises(InputError, match=r"takes region features .* Flickr30k was not told .* set its option regions"):
        plain.connect(region_inputs())
    with pytest.raises(InputError, match="takes no images"):
        plain.connect(Inputs(text=inputs.text))


def test_no_photograph_is_needed_and_with_text_databases_no_annotation(own_root: Path, tokenizer_folder: Path) -> None:
    data = Flickr30k(str(own_root), regions=region_files(texts=False))
    data.prepare_data()
    assert data.splits() == {"train": 12, "val": 5, "test": 3}
    (own_root / "dataset_flickr30k.json").unlink()
    with pytest.raises(InputError, match=r"(?s)not complete under .*dataset_flickr30k\.json"):
        Flickr30k(str(own_root), regions=region_files(texts=False)).prepare_data()
    data = Flickr30k(str(own_root), regions=region_files())
    data.prepare_data()
    assert data.splits() == {"train": 12, "val": 5, "test": 3}
    with pytest.raises(InputError, match=r"no split 'restval': regions\.text_db give\(s\) train"):
        data.records("restval")
    record = data.records("val")[0]
    assert (record.image_id, record.path, record.regions) == (
        "flickr30k_000000001012", None, "flickr30k_000000001012.npz"
    )  # fmt: skip


def test_flickr8k_has_the_view_too(tmp_path: Path, tokenizer_folder: Path) -> None:
    write_root(tmp_path, name_of="{}.npz".format)
    (tmp_path / "dataset_flickr30k.json").rename(tmp_path / "dataset_flickr8k.json")
    data = Flickr8k(str(tmp_path), regions=region_files(texts=False), num_workers=0)
    data.prepare_data()
    data.connect(region_inputs(tokenizer_folder))
    assert sum(len(batch) for batch in data.evaluation_loaders("test")[0]) == 3


def coco_root(root: Path, split_texts: bool = False) -> Path:
    content = karpathy({"train": 4, "restval": 3, "val": 2}, folder="val2014")
    for image in content["images"]:
        image["filename"] = f"COCO_{'train' if image['split'] == 'train' else 'val'}2014_{image['cocoid']:012d}.jpg"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "dataset_coco.json").write_text(json.dumps(content))
    for part, splits in (("train2014", ["train"]), ("val2014", ["restval", "val"])):
        names = {f"coco_{part}_{i['cocoid']:012d}.npz": i["imgid"] for i in content["images"] if i["split"] in splits}
        write_images(root / "img_db" / f"coco_{part}", names)
    return root


COCO_IMAGES = ["img_db/coco_train2014", "img_db/coco_val2014"]


def test_coco_has_two_image_databases(tmp_path: Path, tokenizer_folder: Path) -> None:
    files = region_files(texts=False, image_db=COCO_IMAGES)
    data = COCO(str(coco_root(tmp_path)), regions=files, num_workers=0, batch_size=3, ranking=Ranking(5))
    data.prepare_data()  # neither train2014/ nor val2014/ is there
    data.connect(region_inputs(tokenizer_folder))
    assert [record.regions for record in data.records("train")[3:5]] == [
        "coco_train2014_000000005003.npz", "coco_val2014_000000005004.npz"
    ]  # fmt: skip
    for batch in data.train_dataloader():
        for row, image_id in enumerate(batch.images.image_ids):
            features = region_values(int(image_id) - 5000)[0]
            np.testing.assert_array_equal(batch.images.regions.features_BRD[row, : len(features)].numpy(), features)
    only = COCO(str(tmp_path), regions=region_files(texts=False, image_db=COCO_IMAGES[0]), num_workers=0)
    with pytest.raises(InputError) as caught:
        only.records("train")
    for part in (
        "coco train: 3 of 7 images have no regions, first image 5004, looked for as COCO_val2014_000000005004.npz and "
        "coco_train2014_000000005004.npz and coco_val2014_000000005004.npz",
        f"{tmp_path / COCO_IMAGES[0] / LAYOUT.folder} has 4 images, the first 'coco_train2014_000000005000.npz'",
        "regions.image_db (all databases",
    ):
        assert part in str(caught.value)


def test_official_coco_captions_find_regions_of_2014(tmp_path: Path, tokenizer_folder: Path) -> None:
    """The files of 2017 name an image by its number alone."""
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in (11, 12)]
    captions = [{"id": number, "image_id": number, "caption": "a dog"} for number in (11, 12)]
    (tmp_path / "annotations").mkdir()
    nothing = {"images": [], "annotations": []}
    for split, content in {"train": nothing, "val": {"images": images, "annotations": captions}}.items():
        (tmp_path / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(content))
    write_images(tmp_path / "a", {"coco_train2014_000000000012.npz": 1})
    write_images(tmp_path / "b", {"coco_val2014_000000000011.npz": 2})
    files = region_files(texts=False, image_db=["a", "b"])
    data = COCO(str(tmp_path), captions="official", year="2017", regions=files, num_workers=0)
    data.prepare_data()
    data.connect(region_inputs(tokenizer_folder))
    names = [record.regions for record in data.records("val")]
    assert names == ["coco_val2014_000000000011.npz", "coco_train2014_000000000012.npz"]


def texts(path: Path, images: dict[str, list[str]], vocabulary: Vocabulary = VOCABULARY) -> None:
    """A text database with the ids 0, 1, ..."""
    with TextDatabaseWriter(path, word_ids, vocabulary) as writer:
        for image, captions in images.items():
            for text in captions:
                writer.add(str(len(writer._lengths)), image, text)


def test_text_databases_of_one_split_are_joined(tmp_path: Path) -> None:
    coco_root(tmp_path)
    train, rest = "coco_train2014_000000005000.npz", "coco_val2014_000000005004.npz"
    texts(tmp_path / "itm_coco_train.db", {train: ["a dog", "a cat"]})
    texts(tmp_path / "itm_coco_restval.db", {rest: ["the red tree"]})
    texts(tmp_path / "other.db", {rest: ["the red tree"]}, Vocabulary("others", 1, 2, 3, 1, 4, 99))

    def module(*names: str) -> ImageTextDataModule:
        return COCO(str(tmp_path), regions=region_files(image_db=COCO_IMAGES, text_db={"train": list(names)}), num_workers=0)

    data = module("itm_coco_train.db", "itm_coco_restval.db")
    records = data.records("train")
    assert [record.regions for record in records] == [train, rest]
    assert [[c.caption_id for c in record.captions] for record in records] == [["0", "1"], ["itm_coco_restval.db/0"]]
    with pytest.raises(InputError, match=rf"itm_coco_train\.db repeats image {train.removesuffix('.npz')}\S* of split train"):
        module("itm_coco_train.db", "itm_coco_train.db").records("train")
    with pytest.raises(
        InputError, match=r"different vocabularies: .*itm_coco_train\.db \(tiny words\).* and .*other\.db \(others\)"
    ):
        module("itm_coco_train.db", "other.db").records("train")


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("files", "inputs", "message"),
    [
        ({"image_db": "img_db/absent"}, {}, r"databases are missing: .*img_db/absent\. Fetch .*`crosslight data regions`"),
        ({"text_db": {"train": ["txt_db/absent.db"]}}, {}, r"databases are missing: .*txt_db/absent\.db"),
        ({"max_bb": 100}, {}, r"has no layout feat_th0\.2_max100_min2; it has feat_th0\.2_max9_min2"),
        ({}, {"width": 2048}, r"feat_th0\.2_max9_min2 has features of width 6, and the network takes 2048"),
        ({"text_db": None}, {}, r"names no tokenizer, so captions have to come as token ids .*regions\.text_db"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_batch(
    root: Path, files: dict[str, Any], inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        connected(root, region_inputs(**inputs), regions=region_files(**files))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_db": []}, "regions.image_db names no image database"),
        ({"text_db": {}}, r"regions\.text_db is \{\}; give each split"),
        ({"text_db": {"train": []}}, r"regions\.text_db is .* give each split"),
        ({"max_bb": 1, "min_bb": 5}, "1 <= min_bb <= max_bb"),
    ],
)
def test_region_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        region_files(**options)


def test_another_vocabulary_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    vocabulary = Vocabulary("others", 1, 2, 3, 1, 4, 20)
    root = write_root(tmp_path, vocabulary=vocabulary)
    with pytest.raises(InputError, match=r"itm_flickr30k_train\.db \(others\) has 20 ids, the network's token table 17 rows"):
        connected(root)
    data = connected(root, region_inputs(tokenizer_folder))
    for loaders in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(InputError, match=r"ids of .*itm_flickr30k_train\.db \(others\) \(up to \d+ of 20\), .* has 17 ids"):
            loaders()


def test_an_image_that_its_database_lacks(own_root: Path) -> None:
    path = own_root / "txt_db" / "itm_flickr30k_val.db"
    for name in ("txt2img.json", "img2txts.json"):
        (path / name).write_text((path / name).read_text().replace("1013", "7013"))
    with pytest.raises(
        InputError, match=r"flickr30k val: 1 of 5 images have no regions, .* looked for as flickr30k_000000007013\.npz"
    ):
        connected(own_root).records("val")
    data = connected(own_root)
    report = check(data, progress=False)
    assert [(problem.kind, problem.text) for problem in report.problems] == [
        ("missing image", "image flickr30k_000000007013 has no regions")
    ]
    assert report.splits["val"].captions == 15


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_value_is_one_message_from_any_process(own_root: Path, workers: int) -> None:
    name = "flickr30k_000000001002.npz"
    folder = own_root / "img_db" / "flickr30k" / LAYOUT.folder
    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        transaction.put(name.encode(), b"\xc1")
    data = connected(own_root, num_workers=workers)
    with pytest.raises(InputError) as caught:
        list(data.evaluation_loaders("train")[0])
    assert f"image {name}" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert [problem.kind for problem in check(data, progress=False).problems] == ["unreadable image"]


def test_a_sound_root_has_no_problems(root: Path) -> None:
    data = Flickr30k(str(root), regions=region_files(texts=False))
    report = check(data, progress=False)
    assert report.problems == []
    assert report.splits["train"].images == 12


# ------------------------------------------------------------------------------------------------------ fingerprint


def test_fingerprint_and_description_name_the_databases(root: Path, own_root: Path) -> None:
    data = connected(root, limits=Limits(val=2))
    described = data.describe()
    assert described["options"]["regions"] == {
        "image_db": ["flickr30k"],
        "layout": "feat_th0.2_max9_min2",
        "text_db": {split: [f"itm_flickr30k_{split}.db"] for split in ("train", "val", "test")},
    }
    assert described["splits"]["val[:2]"] == {"images": 2, "captions": 3 + 4}
    whole = connected(root).fingerprint()
    assert connected(own_root).fingerprint() == whole != data.fingerprint()
    by_file = Flickr30k(str(root), regions=region_files(texts=False)).fingerprint()
    lengths = own_root / "txt_db" / "itm_flickr30k_test.db" / "img2txts.json"
    lengths.write_text(lengths.read_text() + "\n")
    assert connected(own_root).fingerprint() != whole
    assert Flickr30k(str(own_root), regions=region_files(texts=False)).fingerprint() == by_file != whole
    counts = own_root / "img_db" / "flickr30k" / str(LAYOUT.counts_file)
    counts.write_text(counts.read_text().replace("9", "8", 1))
    assert Flickr30k(str(own_root), regions=region_files(texts=False)).fingerprint() != by_file
