"""`crosslight data text-db`: Karpathy's captions as UNITER's word pieces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_flickr8k

from datamodules.errors import InputError
from datamodules.formats.uniter.text_database import TextDatabase
from datamodules.inputs import TextInput
from datamodules.loading.region_files import RegionFiles
from datamodules.loading.splits import RegionSplits
from datamodules.loading.tokens import Tokenizer
from datamodules.miniworld.write import write_world
from datamodules.prepare.text_databases import region_name, write_text_databases
from datamodules.sources.flickr30k import Flickr30kSource
from experiments.cli import main as cli

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "!", ".", "-", "run", "##ning", "##s", "a", "dog"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "w", scenes=20, image_size=32, workers=1)


@pytest.fixture(scope="module")
def word_piece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cased tokenizer of BERT's kind with hardly any words."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    return folder


def write_karpathy(root: Path, *raw: str) -> Path:
    images = [
        {"filename": f"{36979 + i}.jpg", "imgid": i, "split": "test", "sentences": [{"raw": text, "sentid": 10 + i}]}
        for i, text in enumerate(raw)
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    return root


@pytest.mark.parametrize("kind", ["coco", "flickr30k"])
def test_the_command_writes_the_databases_that_a_world_has(
    world: Path, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        cli.run_command("data", ["text-db", kind, str(world / kind), "--tokenizer", str(world / "tokenizer"), "--out", str(out)])
        == 0
    )
    there = {path.name for path in (world / kind / "txt_db").iterdir()}
    assert {path.name for path in out.iterdir()} == there
    printed = capsys.readouterr().out
    for name in there:
        ours = TextDatabase(out / name)
        theirs = TextDatabase(world / kind / "txt_db" / name, expected=ours.vocabulary)
        assert (ours.text_ids, ours.image_texts) == (theirs.text_ids, theirs.image_texts)
        assert [ours.read(text_id) for text_id in ours.text_ids] == [theirs.read(text_id) for text_id in ours.text_ids]
        assert f"{name}: {len(ours.text_ids)} texts" in printed


def test_words_are_tokenized_one_by_one_without_special_tokens(word_piece_folder: Path, tmp_path: Path) -> None:
    root = write_karpathy(tmp_path, " a dog  running.", "A run-runs [SEP]\u00a0dog!")
    arguments = ["text-db", "flickr30k", str(root), "--tokenizer", str(word_piece_folder), "--names", "stem"]
    assert cli.run_command("data", arguments) == 0
    texts = TextDatabase(root / "txt_db" / "itm_flickr30k_test.db")
    assert (texts.vocabulary.unk, texts.vocabulary.cls, texts.vocabulary.sep, texts.vocabulary.mask) == (1, 2, 3, 4)
    assert (texts.vocabulary.first_word, texts.vocabulary.size) == (PIECES.index("!"), len(PIECES))
    pieces = {text_id: [PIECES[number] for number in texts.read(text_id).input_ids] for text_id in texts.text_ids}
    assert pieces["10"] == ["a", "dog", "run", "##ning", "."]
    assert pieces["11"] == ["[UNK]", "run", "-", "run", "##s", *["[UNK]"] * 3, "dog", "!"]  # "[SEP]" is text
    assert texts.image_names == {"10": "36979.npz", "11": "36980.npz"}


def test_the_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "text-db", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    usage = "crosslight data text-db [-h] --tokenizer NAME [--out DIR] [--names {released,stem}] KIND ROOT"
    assert usage in " ".join(text.split())
    assert "itm_KIND_SPLIT.db" in text


def test_names_of_images() -> None:
    assert region_name(Path("/x/36979.jpg")) == "flickr30k_000000036979.npz"
    assert region_name(Path("/x/COCO_train2014_000000000042.jpg")) == "coco_train2014_000000000042.npz"
    assert region_name(Path("/x/36979.jpg"), "stem") == "36979.npz"
    with pytest.raises(InputError, match=r"1000268201_693b08cb0e\.jpg .*names: stem"):
        region_name(Path("1000268201_693b08cb0e.jpg"))


def test_what_cannot_be_written_is_named(word_piece_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    root = write_karpathy(tmp_path / "flickr30k", "a dog", "\ufffd\ufffd")
    arguments = ["text-db", "flickr30k", str(root)]
    with pytest.raises(InputError, match="required: --tokenizer"):
        cli.run_command("data", arguments)
    with pytest.raises(InputError, match="are those of flickr30k"):
        cli.run_command("data", ["text-db", "flickr30k_entities", str(root), "--tokenizer", str(word_piece_folder)])
    with pytest.raises(InputError, match=r"text '11' .*has the word pieces \[\]"):
        cli.run_command("data", [*arguments, "--tokenizer", str(word_piece_folder)])
    assert not list((root / "txt_db").iterdir())  # not the half of it either
    write_karpathy(root, "a dog")
    with pytest.raises(InputError, match="has no mask token"):
        cli.run_command("data", [*arguments, "--tokenizer", str(tokenizer_folder)])
    assert cli.run_command("data", [*arguments, "--tokenizer", str(word_piece_folder)]) == 0
    with pytest.raises(InputError, match=r"itm_flickr30k_test\.db exist\(s\) already; .*--out"):
        cli.run_command("data", [*arguments, "--tokenizer", str(word_piece_folder)])
    with pytest.raises(InputError, match=r"dataset_coco\.json does not exist"):
        cli.run_command("data", ["text-db", "coco", str(root), "--tokenizer", str(word_piece_folder)])

    flickr8k = write_flickr8k(tmp_path / "flickr8k", {"train": 1})
    annotations = flickr8k / "dataset_flickr8k.json"
    annotations.write_text(annotations.read_text().replace("1000.jpg", "1000_a.jpg"))
    with pytest.raises(InputError, match="names: stem"):
        write_text_databases(annotations, "flickr8k", Tokenizer(TextInput(str(word_piece_folder))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_databases_of_captions_that_were_replaced_are_refused(world: Path, tmp_path: Path) -> None:
    root = tmp_path / "flickr30k"
    shutil.copytree(world / "flickr30k", root)
    annotations, tokenizer = root / "dataset_flickr30k.json", Tokenizer(TextInput(str(world / "tokenizer")))
    out = root / "mine"
    write_text_databases(annotations, "flickr30k", tokenizer, out)
    texts = {split: [f"mine/itm_flickr30k_{split}.db"] for split in ("train", "val", "test")}

    def read(**options: Any) -> dict[str, int]:
        files = RegionFiles("img_db/flickr30k", "all", **options)
        return {split: len(records) for split, records in RegionSplits(Flickr30kSource(str(root)), files).read().items()}

    expected = read(text_db=texts)
    content = json.loads(annotations.read_text())
    next(image for image in content["images"] if image["split"] == "test")["sentences"][0]["raw"] = "a dog"
    annotations.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"train\.db: data\.mdb: made of another .*than {annotations} is now\. Build"):
        read(text_db=texts)
    released = {split: [f"txt_db/itm_flickr30k_{split}.db"] for split in texts}  # which do not say
    assert read(text_db=released) == expected
    annotations.unlink()  # which text databases do without
    assert read(text_db=texts) == expected
