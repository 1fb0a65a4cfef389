"""BEiT-3's index files: written byte for byte as the official code does, read into the batches of the text they came from.

CROSSLIGHT_BEIT3_SPM=/path/beit3.spm adds the comparison of the files with the real tokenizer's ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_data import karpathy, write_image
from tiny_spm import train_spm

from datamodules.coco import COCO
from datamodules.errors import InputError
from datamodules.flickr30k import Flickr30k
from datamodules.formats.beit3_index import IndexKind, parse_index, read_index
from datamodules.image_text import ImageTextDataModule
from datamodules.inputs import ImageInput, Inputs, TextInput
from datamodules.loading.tokens import Tokenizer
from datamodules.prepare.beit3_index import index_lines, write_index
from datamodules.prepare.check import run_check
from experiments.cli import main as cli

RECORDED = json.loads((Path(__file__).parents[2] / "recordings" / "mwa" / "index_jsonl.json").read_text())
KINDS: list[IndexKind] = ["coco", "flickr30k"]


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_spm(tmp_path_factory.mktemp("spm") / "tiny.spm")


class RecordedIds:
    """Gives each caption the ids that the official files have for it."""

    def __init__(self, kind: IndexKind) -> None:
        content = RECORDED["inputs"][f"dataset_{kind}.json"]
        self.of: dict[str, list[int]] = {}
        for split in ("train", "val", "test"):
            own = [image for image in content["images"] if image["split"].replace("restval", "train") == split]
            raws = [sentence["raw"] for image in own for sentence in image["sentences"]]
            lines = next(text for name, text in RECORDED["outputs"].items() if name.startswith(kind) and f".{split}." in name)
            self.of |= dict(zip(raws, [json.loads(line)["text_segment"] for line in lines.splitlines()], strict=True))

    def ids(self, texts: list[str]) -> list[list[int]]:
        return [self.of[text] for text in texts]


def recorded_files(kind: IndexKind) -> dict[str, str]:
    return {name: text for name, text in RECORDED["outputs"].items() if name.startswith(kind)}


def recorded_input(folder: Path, kind: IndexKind) -> Path:
    path = folder / f"dataset_{kind}.json"
    path.write_text(json.dumps(RECORDED["inputs"][path.name]))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_files_equal_the_official_ones(tmp_path: Path, kind: IndexKind) -> None:
    tokenizer = cast(Tokenizer, RecordedIds(kind))
    written = write_index(recorded_input(tmp_path, kind), kind, tmp_path, tokenizer)
    assert {path.name: path.read_bytes().decode() for path in written} == recorded_files(kind)
    assert {path.name: pairs for path, pairs in written.items()} == {
        name: text.count("\n") for name, text in recorded_files(kind).items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_files_differ_from_the_official_ones_in_the_tokenizers_ids_alone(tmp_path: Path, spm: Path, kind: IndexKind) -> None:
    tokenizer = Tokenizer(TextInput(str(spm)))
    for path in write_index(recorded_input(tmp_path, kind), kind, tmp_path, tokenizer):
        found = [json.loads(line) for line in path.read_text().splitlines()]
        expected = [json.loads(line) for line in recorded_files(kind)[path.name].splitlines()]
        ids = [pair.pop("text_segment") for pair in found]
        assert [[*pair] for pair in expected] == [["image_path", "text_segment", "image_id"]] * len(found)
        assert found == [{"image_path": pair["image_path"], "image_id": pair["image_id"]} for pair in expected]
        assert all(of_one and 3 < max(of_one) < tokenizer.vocabulary_size for of_one in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_beit3_spm_gives_the_official_files(tmp_path: Path, kind: IndexKind) -> None:
    spm = os.environ.get("CROSSLIGHT_BEIT3_SPM")
    if not spm:
        pytest.skip("CROSSLIGHT_BEIT3_SPM does not name beit3.spm (1.3 MB, not in the repository)")
    written = write_index(recorded_input(tmp_path, kind), kind, tmp_path, Tokenizer(TextInput(spm)))
    assert {path.name: path.read_bytes().decode() for path in written} == recorded_files(kind)


def test_restval_trains_in_the_files_order_and_an_image_without_captions_has_a_number(tmp_path: Path, spm: Path) -> None:
    content = karpathy({"restval": 1, "train": 2, "val": 1, "test": 1}, folder="val2014")
    content["images"].insert(2, content["images"][1] | {"filename": "silent.jpg", "sentences": []})
    content["images"].append(content["images"].pop(0) | {"filename": "last.jpg"})
    (tmp_path / "dataset_coco.json").write_text(json.dumps(content))
    lines = index_lines(tmp_path / "dataset_coco.json", "coco", Tokenizer(TextInput(str(spm))))
    pairs = [json.loads(line) for line in lines["train"]]
    assert [(pair["image_path"], pair["image_id"]) for pair in pairs] == [
        *[("val2014/1001.jpg", 0)] * 2,
        *[("val2014/1002.jpg", 2)] * 3,
        ("val2014/last.jpg", 3),
    ]


def index(path: Path, *pairs: tuple[Any, Any, Any]) -> Path:
    keys = ("image_path", "text_segment", "image_id")
    path.write_text("".join(json.dumps(dict(zip(keys, pair, strict=True))) + "\n" for pair in pairs))
    return path


def test_lines_of_one_image_are_one_record(tmp_path: Path) -> None:
    path = index(tmp_path / "x.jsonl", ("a/1.jpg", [7, 8], 0), ("a/2.jpg", [9], 1), ("a/1.jpg", [70000], 0), ("b/1.jpg", [5], 2))
    first, second, third = read_index(path, tmp_path / "images")
    assert first.path == tmp_path / "images" / "a" / "1.jpg"
    assert [caption.token_ids for caption in first.captions] == [(7, 8), (70000,)]
    assert [caption.caption_id for caption in first.captions] == ["a/1.jpg#0", "a/1.jpg#1"]
    assert {caption.text for record in (first, second, third) for caption in record.captions} == {""}
    assert (first.image_id, second.image_id, third.image_id) == ("a/1.jpg", "a/2.jpg", "b/1.jpg")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line.replace("image_path", "path"), r"x\.jsonl: line 2: has no 'image_path'"),
        (lambda line: line.replace("[9]", '"a dog"'), r"line 2: 'text_segment' is a JSON string, not a list"),
        (lambda line: line.replace("[9]", "[9, true]"), r"line 2: 'text_segment' is not a list of token ids"),
        (lambda line: line.replace("[9]", "[-1]"), r"line 2: 'text_segment' is not a list of token ids"),
        (lambda line: line.replace(": 1}", ": 1.5}"), r"line 2: 'image_id' is a JSON number, not an integer"),
        (lambda line: line[:20], r"line 2 is not valid JSON \(.*ends too early"),
        (lambda line: "[1]\n", r"line 2 is a JSON list, not an object"),
        (lambda line: line.replace("[9]", "[]"), r"empty caption: caption a/2\.jpg#0 of image a/2\.jpg"),
        (lambda line: line.replace(": 1}", ": 0}"), r"line 2 gives a/2\.jpg the image_id 0 of a/1\.jpg"),
        (lambda line: line.replace("a/2", "a/1"), r"line 2 gives a/1\.jpg image_id 1, it had 0"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, damage: Callable[[str], str], message: str) -> None:
    path = index(tmp_path / "x.jsonl", ("a/1.jpg", [7, 8], 0), ("a/2.jpg", [9], 1))
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + damage(second))
    with pytest.raises(InputError, match=message):
        read_index(path, tmp_path)


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.jsonl does not exist.*crosslight data index"):
        parse_index(tmp_path / "x.jsonl", tmp_path)
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match=r"x\.jsonl is not a text file"):
        parse_index(tmp_path / "x.jsonl", tmp_path)
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(InputError, match=r"x\.jsonl is empty"):
        parse_index(tmp_path / "x.jsonl", tmp_path)
    (tmp_path / "x.jsonl").write_text("7")
    with pytest.raises(InputError, match=r"x\.jsonl: line 1 is a JSON number"):
        parse_index(tmp_path / "x.jsonl", tmp_path)
    with pytest.raises(InputError, match=r"x\.jsonl: the top level is a JSON number"):
        index_lines(tmp_path / "x.jsonl", "coco", cast(Tokenizer, None))


# ------------------------------------------------------------------------------------------- data modules and the command


def write_root(folder: Path, kind: IndexKind) -> Path:
    content = karpathy({"train": 5, "restval": 2, "val": 3, "test": 2}, "val2014" if kind == "coco" else None)
    if kind == "flickr30k":
        content["images"] = [image for image in content["images"] if image["split"] != "restval"]
    folder.mkdir()
    (folder / "train2014").mkdir()
    (folder / f"dataset_{kind}.json").write_text(json.dumps(content))
    for image in content["images"]:
        write_image(folder / image.get("filepath", "flickr30k-images") / image["filename"], image["imgid"])
    return folder


def tuned(spm: Path) -> Inputs:
    half = (0.5, 0.5, 0.5)
    return Inputs(ImageInput(16, half, half, resize="squash"), TextInput(str(spm), max_tokens=8))


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "index", *arguments])
    return int(caught.value.code or 0)


@pytest.mark.parametrize(("kind", "datamodule"), [("coco", COCO), ("flickr30k", Flickr30k)])
def test_the_index_gives_the_batches_of_its_text(
    tmp_path: Path, spm: Path, kind: IndexKind, datamodule: type[ImageTextDataModule], capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_root(tmp_path / kind, kind)
    from_index, from_text = (
        datamodule(root=str(root), captions=captions, batch_size=4, eval_batch_size=3, num_workers=0)  # type: ignore[call-arg]
        for captions in ("beit3_index", "karpathy")
    )
    with pytest.raises(InputError, match=rf"\.test\.jsonl(?s:.*)crosslight data index {kind} {root} --spm"):
        from_index.prepare_data()
    assert command(kind, str(root), "--spm", str(spm)) == 0
    assert "train.jsonl: " in capsys.readouterr().out

    assert from_index.splits() == from_text.splits()
    for data in (from_index, from_text):
        data.connect(tuned(spm))
    for split in ("train", "val", "test"):
        assert [record.path for record in from_index.records(split)] == [record.path for record in from_text.records(split)]
        images, captions = from_index.evaluation_loaders(split)
        texts = [caption for record in from_text.records(split) for caption in record.captions]
        seen = []
        for batch in captions:
            tokens_BT, mask_BT = Tokenizer(tuned(spm).text)([texts[row].text for row in batch.index_B])  # type: ignore[arg-type]
            assert torch.equal(batch.tokens_BT, tokens_BT)
            assert torch.equal(batch.mask_BT, mask_BT)
            seen += batch.index_B.tolist()
        assert sorted(seen) == list(range(len(texts)))
        assert sum(len(batch) for batch in images) == len(from_text.records(split))
    for found, expected in zip(from_index.train_dataloader(), from_text.train_dataloader(), strict=True):
        assert torch.equal(found.texts.tokens_BT, expected.texts.tokens_BT)
        assert torch.equal(found.images.pixels_B3HW, expected.images.pixels_B3HW)

    report = run_check(kind, root, workers=1, captions="beit3_index")
    assert report.problems == []
    assert not any("caption text" in note and note.startswith("1 ") for note in report.notes)
    assert from_index.describe()["splits"] == from_text.describe()["splits"]
    assert from_index.fingerprint() != from_text.fingerprint()

    # Captions that were replaced since are not taken for those of the index, and an index of somebody else's is taken as it is.
    annotations = next(root.rglob("dataset_*.json"))
    annotations.write_text(annotations.read_text().replace("dog", "cow"))
    again = datamodule(root=str(root), captions="beit3_index")  # type: ignore[call-arg]
    with pytest.raises(InputError, match=rf"made of another {annotations.name} than {annotations} is now\. .*--overwrite"):
        again.splits()
    assert command(kind, str(root), "--spm", str(spm), "--overwrite") == 0
    assert again.splits() == from_text.splits()
    annotations.write_text(annotations.read_text().replace("cow", "dog"))
    for path in root.glob("*.jsonl"):
        path.write_text(path.read_text().replace(": ", ":  "))
    assert datamodule(root=str(root), captions="beit3_index").splits() == from_text.splits()  # type: ignore[call-arg]


def test_another_tokenizer_is_refused_before_the_first_batch(tmp_path: Path, spm: Path, inputs: Inputs) -> None:
    root = write_root(tmp_path / "flickr30k", "flickr30k")
    write_index(root / "dataset_flickr30k.json", "flickr30k", root, Tokenizer(TextInput(str(spm))))
    data = Flickr30k(str(root), captions="beit3_index", batch_size=4, num_workers=0)
    data.connect(inputs)  # a word tokenizer with [pad] 0
    for loaders in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(InputError, match=r"token ids of BEiT-3's tokenizer .* tokenizer .* at \[2, 0, 3, 1\]"):
            loaders()
    line = json.dumps({"image_path": "flickr30k-images/1000.jpg", "text_segment": [63999], "image_id": 0})
    (root / "flickr30k.test.jsonl").write_text(line + "\n")
    data = Flickr30k(str(root), captions="beit3_index", files={"test": ["flickr30k.test.jsonl"]})
    assert data.splits() == {"test": 1}
    data.connect(tuned(spm))
    with pytest.raises(InputError, match=r"\(up to 63999\), but the network's tokenizer .*tiny\.spm has \d+ ids"):
        data.test_dataloader()


def test_index_options_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='with split "entities" set captions to "karpathy"'):
        Flickr30k(str(tmp_path), split="entities", captions="beit3_index")
    with pytest.raises(InputError, match=r"image_dir photos must end in that name"):
        Flickr30k(str(tmp_path), image_dir="photos", captions="beit3_index")
    with pytest.raises(InputError, match='set captions to "beit3_index"'):
        Flickr30k(str(tmp_path), files={"test": ["x.jsonl"]})
    own = COCO(str(tmp_path), captions="beit3_index", files={"test": ["x.jsonl"]})
    with pytest.raises(InputError, match=r"x\.jsonl: write it from Karpathy's split with `crosslight data index coco") as caught:
        own.prepare_data()
    assert "train2014" not in str(caught.value)  # an index of one's own may name other folders


def test_data_index_says_what_is_wrong(tmp_path: Path, spm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_root(tmp_path / "coco", "coco")
    for arguments, message in [
        (["coco", str(root)], "required: --spm"),
        (["flickr8k", str(root), "--spm", str(spm)], "coco and flickr30k only"),
        (["coco", str(root), "--spm", str(root / "absent.spm")], "absent.spm: there is no such file"),
        (["flickr30k", str(root), "--spm", str(spm)], "dataset_flickr30k.json does not exist"),
    ]:
        assert command(*arguments) == 2
        assert message in capsys.readouterr().err
    assert list(root.glob("*.jsonl*")) == []
    (root / "coco_retrieval.val.jsonl").write_text("mine")
    assert command("coco", str(root), "--spm", str(spm)) == 2
    assert "coco_retrieval.val.jsonl exist(s) already; give --overwrite" in capsys.readouterr().err
    assert [path.read_text() for path in root.glob("*.jsonl*")] == ["mine"]
    assert command("coco", str(root), "--spm", str(spm), "--overwrite") == 0
    assert len(read_index(root / "coco_retrieval.val.jsonl", root)) == 3
    assert len(list(root.glob("*.jsonl*"))) == 3
