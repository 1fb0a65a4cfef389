"""Visual Genome: phrases of regions, what stays out and why, what is fetched from where."""

from __future__ import annotations

import csv
import io
import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from local_server import Server, server
from tiny_data import karpathy, write_image

from datamodules.errors import InputError
from datamodules.formats.parsing import Parsed
from datamodules.formats.visual_genome import Exclusion, parse_visual_genome, read_image_data
from datamodules.inputs import Inputs
from datamodules.loading.captions import CaptionBatches, CaptionTokenizer, TrainCaptions
from datamodules.loading.loader import BatchLoader
from datamodules.sources import visual_genome as sources
from datamodules.sources.visual_genome import HeldOut, open_images_flickr_ids
from datamodules.visual_genome import VisualGenome

__all__ = ["server"]  # the fixture

WORDS = ["a", "dog", "cat", "runs", "sleeps", "on", "the", "red", "blue", "grass", "Zürich"]


def region(region_id: int, phrase: str, image_id: int = 0) -> dict[str, Any]:
    return {"region_id": region_id, "image_id": image_id, "x": 1, "y": 2, "width": 3, "height": 4, "phrase": phrase}


def image(image_id: int, coco_id: int | None = None, flickr_id: int | None = None) -> dict[str, Any]:
    folder = "VG_100K" if image_id % 2 else "VG_100K_2"
    url = f"https://cs.stanford.edu/people/rak248/{folder}/{image_id}.jpg"
    return {"image_id": image_id, "url": url, "width": 40, "height": 30, "coco_id": coco_id, "flickr_id": flickr_id}


def write(root: Path, images: list[Any], descriptions: list[Any]) -> tuple[Path, Path]:
    root.mkdir(parents=True, exist_ok=True)
    paths = root / "image_data.json", root / "region_descriptions.json"
    for path, content in zip(paths, (images, descriptions), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return paths


def test_phrases_equal_those_of_a_naive_reading(tmp_path: Path) -> None:
    rng = random.Random(0)
    images = [image(number, rng.choice([None, number]), rng.choice([None, 7000 + number])) for number in range(1, 60)]
    descriptions = []
    for number in range(1, 60):
        phrases = [
            " ".join(rng.choices(WORDS, k=rng.randrange(6))) + rng.choice(["", " ", "\n"]) for _ in range(rng.randrange(8))
        ]
        descriptions.append({"id": number, "regions": [region(100 * number + k, p, number) for k, p in enumerate(phrases)]})
    rng.shuffle(descriptions)
    coco, flickr = frozenset(map(str, range(5, 30))), frozenset(map(str, range(7020, 7040)))
    exclusions = [Exclusion("of COCO", coco_ids=coco), Exclusion("of Flickr", flickr_ids=flickr)]

    expected = []
    by_id = {entry["image_id"]: entry for entry in images}
    out = {"of COCO": 0, "of Flickr": 0}
    short = without = 0
    for entry in descriptions:
        data = by_id[entry["id"]]
        if str(data["coco_id"]) in coco:
            out["of COCO"] += 1
        elif str(data["flickr_id"]) in flickr:
            out["of Flickr"] += 1
        else:
            kept = [(str(r["region_id"]), r["phrase"].strip()) for r in entry["regions"] if len(r["phrase"].split()) >= 3]
            short += len(entry["regions"]) - len(kept)
            without += not kept
            if kept:
                folder = "VG_100K" if entry["id"] % 2 else "VG_100K_2"
                expected.append((str(entry["id"]), tmp_path / folder / f"{entry['id']}.jpg", kept))

    parsed, counts = parse_visual_genome(*write(tmp_path, images, descriptions), tmp_path, exclusions=exclusions)
    found = [(r.image_id, r.path, [(c.caption_id, c.text) for c in r.captions]) for r in parsed.valid()["train"]]
    assert found == expected
    assert (counts.excluded, counts.short, counts.without_phrases) == (out, short, without)
    assert (counts.images, counts.phrases) == (len(expected), sum(len(kept) for _, _, kept in expected))
    assert min(out.values()) > 0
    assert short > 0
    assert without > 0
    captions = parsed.splits["train"][3].captions
    every = tuple(captions)
    assert [captions[place] for place in range(-len(every), len(every))] == [*every, *every]
    assert captions[1:] == every[1:]
    with pytest.raises(IndexError):
        captions[len(every)]
    flat, _ = parse_visual_genome(
        tmp_path / "image_data.json", tmp_path / "region_descriptions.json", tmp_path / "all", flat=True
    )
    assert {record.path.parent for record in flat.splits["train"] if record.path} == {tmp_path / "all"}


@pytest.mark.parametrize(
    "entry",
    [
        {"image_id": 4, "regions": [region(1, "a red dog", 4)]},
        {"id": 4, "regions": [region(1, "a red dog", 4)]},
        {"id": 99, "regions": [region(1, "a red dog", 4)]},  # releases in which `id` is not the image's: its regions know
        {"id": 4, "regions": [{"id": 1, "image": 4, "phrase": "a red dog"}]},  # release 1.0
    ],
)
def test_entries_of_every_release(tmp_path: Path, entry: dict[str, Any]) -> None:
    parsed, _ = parse_visual_genome(*write(tmp_path, [image(4)], [entry]), tmp_path)
    (record,) = parsed.valid()["train"]
    assert (record.image_id, [(c.caption_id, c.text) for c in record.captions]) == ("4", [("1", "a red dog")])


def test_problems_are_collected_and_counts_are_not_problems(tmp_path: Path) -> None:
    odd = {**image(9), "url": "9.jpg"}
    images = [image(1), image(1), image(2), image(3), odd]
    descriptions = [
        {
            "id": 1,
            "regions": [
                region(1, "a red dog", 1),
                region(1, "a red dog", 1),
                region(2, "dog", 1),
                region(3, "", 1),
                region(5, "of another image", 2),
            ],
        },
        {"id": 1, "regions": [region(4, "a red dog", 1)]},
        {"id": 77, "regions": []},
        {"id": 2, "regions": []},
    ]
    parsed, counts = parse_visual_genome(*write(tmp_path, images, descriptions), tmp_path)
    assert [(problem.kind, problem.text) for problem in parsed.problems] == [
        ("duplicated id", "image_data.json[1] repeats image id 1"),
        ("unreadable annotation", "image_data.json[4]: url '9.jpg' names no folder and file"),
        ("caption without image", "[0].regions[4] (5) names image 2, among those of image 1"),
        ("duplicated id", "[1] repeats image id 1"),
        ("caption without image", "[2] describes image 77, which image_data.json does not list"),
    ]
    assert (counts.images, counts.phrases, counts.short, counts.repeated, counts.without_phrases) == (1, 1, 2, 1, 2)
    assert str(counts) == (
        "1 images with 1 phrases; left out: 2 images have no phrase, 2 phrases are short, 1 regions are repeated"
    )


@pytest.mark.parametrize(
    ("images", "descriptions", "message"),
    [
        ([{"url": "a/b/1.jpg"}], [], r"image_data\.json: \[0\]: has no 'id'"),
        ([{"image_id": 1}], [], r"image_data\.json: \[0\]: has no 'url'"),
        ([{**image(1), "coco_id": [1]}], [], "'coco_id' is a JSON list"),
        ([image(1)], [{"id": 1}], r"region_descriptions\.json: \[0\]: has no 'regions'"),
        ([image(1)], [{"id": 1, "regions": [region(1, "a b c", 1), {"region_id": 2}]}], r"\[0\]\.regions\[1\]: has no 'phrase'"),
        ([image(1)], [{"id": 1, "regions": [{"region_id": "x", "phrase": "a b c"}]}], "'region_id' is 'x', not a number"),
        ([image(1)], [{"id": 1, "regions": [5]}], r"regions\[0\] is a JSON number, not an object"),
        ([image(1)], ["a"], r"\[0\] is a JSON string, not an object"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, images: list[Any], descriptions: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_visual_genome(*write(tmp_path, images, descriptions), tmp_path)


def test_phrases_travel_to_other_processes(tmp_path: Path) -> None:
    descriptions = [{"id": n, "regions": [region(n, f"dog number {n}", n), region(9 + n, "a cat", n)]} for n in (1, 2)]
    parsed, _ = parse_visual_genome(*write(tmp_path, [image(1), image(2)], descriptions), tmp_path, min_words=2)
    again = pickle.loads(pickle.dumps(parsed.splits["train"]))
    assert [list(record.captions) for record in again] == [list(record.captions) for record in parsed.splits["train"]]


# --------------------------------------------------------------------------------------------------------- data module

OPEN_IMAGES_ROWS = [
    ("https://c1.staticflickr.com/5/4129/601_0a1b2c_o.jpg", "https://www.flickr.com/photos/some%20one/601"),
    ("https://farm2.staticflickr.com/5612/602_dd0f22ebf2_o.jpg", ""),  # the page is not always given
    ("https://elsewhere.org/603_aa_o.jpg", "https://elsewhere.org/603"),
]


def open_images(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageID", "Subset", "OriginalURL", "OriginalLandingURL", "Title"])
        writer.writerows([[f"{row:016x}", "validation", url, page, 'a "b", c'] for row, (url, page) in enumerate(rows)])
    return path


def genome(root: Path) -> Path:
    """Eleven images, six of them for evaluation elsewhere: two of COCO (5003, 5004), and by their Flickr ids one of Flickr30k
    (1003), one of Flickr8k (1001), two of Open Images."""
    coco = karpathy({"train": 2, "restval": 1, "val": 1, "test": 1}, folder="val2014")  # cocoid 5000, 5001, ...
    flickr = karpathy({"train": 2, "val": 1, "test": 1})  # 1000.jpg, 1001.jpg, ...
    flickr8k = karpathy({"train": 1, "test": 1})
    for entry in flickr8k["images"]:
        entry["filename"] = entry["filename"].replace(".jpg", "_d3e9c21170.jpg")
    ids: list[tuple[int | None, int | None]] = [
        (5000, None), (5002, 77), (5003, 78), (5004, None), (None, 1000), (None, 1003), (None, 601), (None, 602), (None, None),
        (1003, 5003),  # the numbers of COCO are not those of Flickr
        (None, 1001),
    ]  # fmt: skip
    images = [image(1 + number, *pair) for number, pair in enumerate(ids)]
    descriptions = [
        {"id": n, "regions": [region(100 * n + k, f"the red dog runs on grass {k}", n) for k in range(8)]} for n in range(1, 12)
    ]
    write(root, images, descriptions)
    for entry in images:
        write_image(root / "/".join(entry["url"].split("/")[-2:]), entry["image_id"])
    (root / "held_out").mkdir()
    (root / "held_out" / "dataset_coco.json").write_text(json.dumps(coco))
    (root / "held_out" / "dataset_flickr30k.json").write_text(json.dumps(flickr))
    (root / "held_out" / "dataset_flickr8k.json").write_text(json.dumps(flickr8k))
    open_images(root / "held_out" / "validation-images-with-rotation.csv", OPEN_IMAGES_ROWS[:1])
    open_images(root / "held_out" / "test-images-with-rotation.csv", OPEN_IMAGES_ROWS[1:])
    return root


def ids(data: VisualGenome) -> list[str]:
    return [record.image_id for record in data.records("train")]


def test_evaluation_images_of_others_stay_out_and_are_counted(tmp_path: Path) -> None:
    root = genome(tmp_path / "vg")
    data = VisualGenome(str(root), min_words=2)
    data.prepare_data()
    assert ids(data) == ["1", "2", "5", "9", "10"]
    described = data.describe()
    assert described["splits"] == {"train": {"images": 5, "captions": 40}}
    assert described["left_out"] == {
        "excluded": {
            "in an evaluation split of COCO": 2,
            "in an evaluation split of Flickr30k": 1,
            "in an evaluation split of Flickr8k": 1,
            "in Open Images' validation or test set, as NoCaps": 2,
        },
        "without_phrases": 0,
        "short": 0,
        "repeated": 0,
    }
    assert data.val_dataloader() == []
    with pytest.raises(InputError, match=r"visual_genome has no split 'val'.*train \(5 images\)"):
        data.records("val")


def test_what_stays_out_is_an_option_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    root = genome(tmp_path / "vg")
    every = VisualGenome(str(root), held_out=None)
    assert ids(every) == [str(number) for number in range(1, 12)]
    (root / "entities.txt").write_text("77\n1000\n")
    lists = HeldOut(None, None, None, flickr_ids=("entities.txt",), open_images=())
    assert ids(VisualGenome(str(root), held_out=lists)) == ["1", "3", "4", "6", "7", "8", "9", "10", "11"]
    restval = HeldOut(flickr30k=None, flickr8k=None, splits=("restval", "val", "test"), open_images=())
    assert ids(VisualGenome(str(root), held_out=restval)) == ["1", "5", "6", "7", "8", "9", "10", "11"]
    modules = [every, VisualGenome(str(root)), VisualGenome(str(root), held_out=lists), VisualGenome(str(root), min_words=2)]
    assert len({module.fingerprint() for module in modules}) == 4
    assert modules[1].fingerprint() == VisualGenome(str(root)).fingerprint()
    flat = tmp_path / "flat"
    for number in range(1, 12):
        write_image(flat / f"{number}.jpg", number)
    assert VisualGenome(str(root), str(flat)).records("train")[0].path == flat / "1.jpg"


def test_lists_that_keep_nothing_out_are_refused(tmp_path: Path) -> None:
    root = genome(tmp_path / "vg")
    with pytest.raises(InputError, match=r"dataset_coco\.json has no split 'tset' .* only restval, test, train, val"):
        VisualGenome(str(root), held_out=HeldOut(splits=("val", "tset"))).records("train")
    with pytest.raises(InputError, match=r"dataset_flickr30k\.json has no images of the splits restval"):
        VisualGenome(str(root), held_out=HeldOut(splits=("restval",))).records("train")
    (root / "names.txt").write_text("12\nCOCO_val2014_12.jpg\n")
    with pytest.raises(InputError, match=r"names\.txt should hold Flickr ids, one a line; 'COCO_val2014_12' is none"):
        VisualGenome(str(root), held_out=HeldOut(flickr_ids=("names.txt",))).records("train")
    with pytest.raises(InputError, match="min_words is 0"):
        VisualGenome(str(root), min_words=0)


def test_flickr_ids_of_open_images(tmp_path: Path) -> None:
    assert open_images_flickr_ids(open_images(tmp_path / "a.csv", OPEN_IMAGES_ROWS)) == {"601", "602", "603"}
    # A number before "_HASH_o.jpg" is Flickr's wherever its copy lies; a page elsewhere is not.
    none = [("https://elsewhere.org/picture.jpg", "https://elsewhere.org/603")]
    with pytest.raises(InputError, match=r"none\.csv names no image of Flickr"):
        open_images_flickr_ids(open_images(tmp_path / "none.csv", none))
    (tmp_path / "other.csv").write_text("ImageID,LabelName\n1,2\n")
    with pytest.raises(InputError, match=r"other\.csv has the columns 'ImageID, LabelName'; expected"):
        open_images_flickr_ids(tmp_path / "other.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.csv is not a text file in UTF-16"):
        open_images_flickr_ids(tmp_path / "binary.csv")


def test_captions_of_the_data_module_train(tmp_path: Path, inputs: Inputs) -> None:
    data = VisualGenome(str(genome(tmp_path / "vg")))
    assert inputs.text is not None
    samples = TrainCaptions(data.records("train"), None, CaptionTokenizer(inputs.text), 0)
    order = CaptionBatches(samples.counts, data.captioning, 5, 0)
    batches = list(BatchLoader(samples, batch_size=None, sampler=order, num_workers=1))
    assert len(batches) == 5  # five phrases of each of five images
    for batch in batches:
        assert len(batch.images) == 1
        assert len(set(batch.texts.caption_ids)) == 5
        assert torch.equal(batch.texts.tokens_BT[:, -1], torch.full((5,), 3))


# ------------------------------------------------------------------------------------------------------------ download


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    return buffer.getvalue()


def serve(server: Server, root: Path) -> None:
    """The archives of this root under their official paths."""
    for source in ("image_data.json", "region_descriptions.json"):
        server.files[f"/{source}.zip"] = zipped({source: (root / source).read_bytes()})
    for name, folder in (("images.zip", "VG_100K"), ("images2.zip", "VG_100K_2")):
        server.files[f"/{name}"] = zipped({f"{folder}/{p.name}": p.read_bytes() for p in (root / folder).iterdir()})
    lists = root / "held_out"
    names = ("dataset_coco.json", "dataset_flickr30k.json", "dataset_flickr8k.json")
    server.files["/caption_datasets.zip"] = zipped({name: (lists / name).read_bytes() for name in names})
    for split in ("validation", "test"):
        name = f"{split}-images-with-rotation.csv"
        server.files[f"/{split}/{name}"] = (lists / name).read_bytes()


def test_everything_is_fetched_once(tmp_path: Path, server: Server) -> None:
    whole = genome(tmp_path / "whole")
    serve(server, whole)
    root = tmp_path / "fetched"
    data = VisualGenome(str(root), download=True, mirror=server.url)
    data.prepare_data()
    assert ids(data) == ids(VisualGenome(str(whole)))
    assert data.fingerprint() == VisualGenome(str(whole)).fingerprint()
    assert sorted(path for path, _ in server.requests) == sorted(server.files)
    assert not list(root.glob("*.zip"))
    data.prepare_data()
    assert len(server.requests) == len(server.files)
    server.files["/images.zip"] = zipped({"elsewhere/1.jpg": b""})
    with pytest.raises(InputError, match=r"images\.zip did not bring .*VG_100K; unpack it by hand"):
        VisualGenome(str(tmp_path / "other"), download=True, mirror=server.url).prepare_data()


def test_what_is_missing_names_its_official_source(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        VisualGenome(str(tmp_path)).prepare_data()
    message = str(caught.value)
    assert message.startswith(f"Visual Genome is not complete under {tmp_path}. Set download to true")
    base = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"
    for part in (
        f"region_descriptions.json: from {base}/region_descriptions.json.zip",
        f"image_data.json: from {base}/image_data.json.zip",
        "VG_100K: from https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
        "VG_100K_2: from https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
        "dataset_coco.json: from https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        "only if you never evaluate there",
    ):
        assert part in message
    with pytest.raises(InputError, match=r"mine\.json: put it there yourself"):
        VisualGenome(str(tmp_path), held_out=HeldOut(coco="mine.json"), download=False).prepare_data()


def test_the_image_list_alone(tmp_path: Path) -> None:
    parsed = Parsed(tmp_path)
    paths = write(tmp_path, [image(3, 5, None), {**image(4), "url": "https://x.org/VG_100K/4.jpg?download=1"}], [])
    images = read_image_data(paths[0], parsed)
    assert images["3"].coco_id == "5"
    assert images["3"].flickr_id is None
    assert images["4"].file == "4.jpg"
    assert not parsed.problems
    assert sources._SOURCES["VG_100K"][1] == "images.zip"
