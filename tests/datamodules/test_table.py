"""Your own images: a folder with a table, in every layout that is promised; what is wrong is said with its line."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tiny_data import write_image

from datamodules.errors import InputError
from datamodules.formats.captioned_rows import Columns
from datamodules.formats.table import read_table
from datamodules.inputs import Inputs
from datamodules.prepare.check import run_check
from datamodules.sources.table import Draw, TableSource, drawn
from datamodules.table import Table


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(6):
        write_image(folder / "sea" / f"{number}.jpg", number)
    shutil.copy(folder / "sea" / "0.jpg", folder / "again.jpg")
    return folder


@pytest.fixture
def root(pictures: Path, tmp_path: Path) -> Path:
    """A folder with sea/0.jpg to sea/5.jpg and again.jpg, which is sea/0.jpg, and no table."""
    shutil.copytree(pictures, tmp_path / "mine")
    return tmp_path / "mine"


def captions(source: TableSource) -> dict[str, list[tuple[str, list[str]]]]:
    """By split the images' ids and captions."""
    splits = source.parse().valid()
    texts = {record: [caption.text for caption in record.captions] for its in splits.values() for record in its}
    return {split: [(record.image_id, texts[record]) for record in its] for split, its in splits.items()}


DOGS = {
    "train": [("sea/1.jpg", ["two dogs run", "dogs, wet"]), ("sea/3.jpg", ["a boat"])],
    "val": [("sea/2.jpg", ["a wave", "the sea"])],
    "test": [("sea/4.jpg", ["a shell", "a crab"])],
}
LISTS = [
    {"file": "sea/1.jpg", "texts": ["two dogs run", "dogs, wet"], "part": "train"},
    {"file": "sea/2.jpg", "texts": ["a wave", "the sea"], "part": "val"},
    {"file": "sea/3.jpg", "texts": ["a boat"], "part": "train"},
    {"file": "sea/4.jpg", "texts": ["a shell", "a crab"], "part": "test"},
]


def several_rows(root: Path) -> dict[str, Any]:
    rows = [f'{image},"{text}",{split}' for split, its in DOGS.items() for image, texts in its for text in texts]
    rows.append(rows.pop(0).replace("sea/1.jpg", f"{root}/./sea/../sea/1.jpg"))  # the same image by another way
    rows.insert(0, rows.pop())
    (root / "captions.csv").write_text("\n".join(["path,caption,split", *rows]))
    return {}


def several_columns(root: Path) -> dict[str, Any]:
    rows = [[split, *texts, *[""] * (2 - len(texts)), image] for split, its in DOGS.items() for image, texts in its]
    (root / "list.tsv").write_text("\n".join("\t".join(row) for row in [["split", "caption_1", "caption_2", "path"], *rows]))
    return {"columns": Columns(captions=("caption_1", "caption_2"))}


def json_lines(root: Path) -> dict[str, Any]:
    lines = [{**row, "texts": row["texts"][0] if len(row["texts"]) == 1 else row["texts"], "other": 1} for row in LISTS]
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"columns": Columns("file", "texts", "part")}


def parquet(root: Path) -> dict[str, Any]:
    (root / "tables").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(LISTS), root / "tables" / "captions.parquet")
    return {"columns": Columns("file", ("texts",), "part"), "table": "tables/captions.parquet"}


@pytest.mark.parametrize("write", [several_rows, several_columns, json_lines, parquet])
def test_every_layout_gives_the_same(root: Path, write: Any) -> None:
    assert captions(TableSource(str(root), **write(root))) == DOGS


def test_captions_have_ids_of_their_images(root: Path) -> None:
    record = TableSource(str(root), **json_lines(root)).parse().valid()["train"][0]
    assert [caption.caption_id for caption in record.captions] == ["sea/1.jpg#0", "sea/1.jpg#1"]
    assert record.path == root / "sea" / "1.jpg"


BAD = [
    ("sea/9.jpg,a dog,train", r"missing image: line 3: .*sea/9\.jpg does not exist"),
    ("sea\\2.jpg,a dog,train", r"does not exist: the table has \\ where a path has /; there is sea/2\.jpg"),
    ("sea/2.JPG,a dog,train", r"2\.JPG does not exist: there is 2\.jpg"),
    ("sea,a dog,train", "missing image: line 3: .*sea is no file"),
    (",a dog,train", "unreadable annotation: line 3: path is missing"),
    ("sea/2.jpg, ,train", "empty caption: line 3: caption is empty"),
    ("sea/2.jpg,,train", "empty caption: line 3: caption is empty"),
    ("sea/2.jpg,\"['a dog', 'b']\",train", "broken text: line 3: caption is .* looks like a list: write a row for each"),
    ("sea/2.jpg, ['a dog'],train", "broken text: line 3: caption is .* looks like a list: write a row for each"),
    ("sea/2.jpg,\"('a dog', 'b')\",train", "broken text: line 3: caption is .* looks like a list: write a row for each"),
    ("sea/2.jpg,NaN,train", "broken text: line 3: caption is 'NaN', which stands for nothing: leave the cell empty"),
    ("sea/2.jpg,None,train", "broken text: line 3: caption is 'None', which stands for nothing"),
    ("https://x.org/a.jpg,a dog,train", "missing image: line 3: 'https://x.org/a.jpg' is an address and no file; download it"),
    ("sea/cafe\u0301.jpg,a dog,train", r"does not exist: there is caf\u00e9\.jpg, which looks the same, in other Unicode"),
    ("sea/2.jpg,a dog,training", "unknown split: line 3: split is 'training'; write one of train, val, test"),
    ("sea/2.jpg,a dog,", "unknown split: line 3: split is empty"),
    ("sea/1.jpg,a dog,test", r"image in several splits: line 3: sea/1\.jpg is of test, and of train in line 2"),
    ("./sea/1.jpg,a dog,val", r"image in several splits: line 3: sea/1\.jpg is of val, and of train in line 2"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_what_is_wrong_is_said_with_its_line(root: Path, line: str, message: str) -> None:
    (root / "sea" / "caf\u00e9.jpg").touch()
    (root / "captions.csv").write_text(f"path,caption,split\nsea/1.jpg,a dog,train\n{line}\n")
    with pytest.raises(InputError, match=rf"captions\.csv has 1 problem\(s\).*\n.*{message}"):
        TableSource(str(root)).parse().valid()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "image without captions: line 1: caption hold"),
        (["a dog", ""], "empty caption: line 1: caption is empty"),
        (["a dog", 3], "broken text: line 1: caption is 3, which is no text"),
        ("a \ud83d dog", "broken text: line 1: caption has half a character"),
    ],
)
def test_lists_are_read_strictly(root: Path, value: Any, message: str) -> None:
    (root / "captions.jsonl").write_text(json.dumps({"path": "sea/1.jpg", "caption": value, "split": "test"}))
    with pytest.raises(InputError, match=message):
        TableSource(str(root)).parse().valid()


def test_the_same_picture_in_two_splits_is_refused(root: Path) -> None:
    (root / "captions.csv").write_text("path,caption,split\nsea/0.jpg,a dog,train\nsea/1.jpg,a cat,train\nagain.jpg,a dog,test\n")
    what = r"line 4: again\.jpg of test has the same content as sea/0\.jpg of train in line 2"
    with pytest.raises(InputError, match=f"image in several splits: {what}"):
        TableSource(str(root)).parse().valid()
    report = run_check("table", root, workers=1, progress=False)
    assert [problem.kind for problem in report.problems] == ["image in several splits"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {}, r"holds no table \(.csv, .tsv, .jsonl, .parquet\)\. Write captions\.csv with the columns path, caption, split"),
        ({"a.csv": "x", "b.tsv": "x"}, {}, r"holds 2 tables: a\.csv, b\.tsv\. Set table to one of them"),
        ({}, {"table": "t.csv"}, r"t\.csv does not exist\. Set root and table"),
        ({"a.csv": "x"}, {"image_dir": "photos"}, r"photos is no folder\. Set image_dir"),
        ({"a.csv": "file,caption\n1,2"}, {}, r"no column 'path'; its columns are 'file', 'caption'\. Set columns\.image"),
        (
            {"a.csv": "path;text\n1;2"},
            {},
            r"no column 'path'; its columns are 'path;text'\. It has ; between its columns: write it",
        ),
        (
            {"a.csv": "path\ttext\n1\t2"},
            {},
            r"its columns are 'path\\ttext'\. It has tabs between its columns: call it \.tsv\. Set",
        ),
        (
            {"a.tsv": "path,text\n1,2"},
            {},
            r"its columns are 'path,text'\. It has commas between its columns: call it \.csv\. Set",
        ),
        ({"a.csv": "path,text\n1,2"}, {}, r"no column 'caption'; .*Set columns\.captions"),
        ({"a.csv": "path,caption\n1,2"}, {"columns": Columns(split="fold")}, r"no column 'fold'; .*Set columns\.split"),
        ({"a.csv": "path,caption,split\n1,2,3"}, {"draw": Draw()}, "has the column 'split', so nothing is drawn"),
        ({"a.csv": "path,caption\nsea/1.jpg,2"}, {}, "has 1 different image"),
    ],
)
def test_what_is_missing_names_the_option(root: Path, files: dict[str, str], options: dict[str, Any], message: str) -> None:
    for name, content in files.items():
        (root / name).write_text(content)
    with pytest.raises(InputError, match=message):
        TableSource(str(root), **options).parse()


def test_options_out_of_range(root: Path) -> None:
    for make, message in (
        (lambda: Draw(val=-0.1), r"draw\.val is -0\.1"),
        (lambda: Draw(val=0.5, test=0.5), r"draw\.val \+ draw\.test is 1, which leaves nothing to train on"),
        (lambda: TableSource(str(root), columns=Columns(captions=())), "at least one for captions"),
        (lambda: TableSource(str(root), columns=Columns(captions=("path", "b"))), "no name twice"),
    ):
        with pytest.raises(InputError, match=message):
            make()


# -------------------------------------------------------------------------------------------------------------- drawn splits


def test_splits_are_drawn_over_images_and_never_over_copies(root: Path) -> None:
    rows = [f"sea/{number}.jpg,caption {turn},x" for turn in range(2) for number in range(6)]
    (root / "captions.csv").write_text("\n".join(["path,caption,split", *rows, "again.jpg,a copy,x"]))
    seen = set()
    for seed in range(12):
        source = TableSource(str(root), columns=Columns(split=None), draw=Draw(0.2, 0.2, seed))
        splits = captions(source)
        split_of = {image: split for split, its in splits.items() for image, _ in its}
        assert len(split_of) == 7
        assert {split_of["sea/0.jpg"]} == {split_of["again.jpg"]}
        assert all(len(texts) == (1 if image == "again.jpg" else 2) for its in splits.values() for image, texts in its)
        told = ", ".join(f"{len(splits[split])} {split}" for split in ("train", "val", "test"))
        assert source.notes() == [
            f"splits are drawn with seed {seed} ({told} images): the table does not say them",
            "1 image file(s) have the same content as another one, and are in its split",
        ]
        seen.add(tuple(sorted(split_of.items())))
    assert len(seen) > 6


def test_a_draw_depends_on_seed_and_names_alone() -> None:
    ids = [[f"{number}.jpg"] for number in range(60)]
    split_of = drawn(ids, Draw(), "t")
    counts = {split: list(split_of.values()).count(split) for split in ("train", "val", "test")}
    assert counts == {"train": 48, "val": 6, "test": 6}
    shuffled = random.Random(0).sample(ids, len(ids))
    assert drawn(shuffled, Draw(), "t") == split_of != drawn(ids, Draw(seed=1), "t")
    grown = drawn([*ids, *([f"new {number}.jpg"] for number in range(6))], Draw(), "t")
    assert sum(grown[name] != split for name, split in split_of.items()) <= 3
    assert set(drawn(ids, Draw(val=0, test=0.3), "t").values()) == {"train", "test"}
    for share in (0.05, 0.6):  # every split has an image, however few there are
        assert set(drawn(ids[:3], Draw(val=0.1, test=share), "t").values()) == {"train", "val", "test"}
    with pytest.raises(InputError, match="2 different image"):
        drawn([["a", "b", "c"], ["d"]], Draw(), "t")


# ------------------------------------------------------------------------------------------------------------ as a data module


def test_it_is_a_data_module(root: Path, inputs: Inputs) -> None:
    module = Table(str(root), num_workers=0, batch_size=2, **json_lines(root))
    module.connect(inputs)
    batch = next(iter(module.train_dataloader()))
    assert {caption.split("#")[0] for caption in batch.texts.caption_ids} <= {"sea/1.jpg", "sea/3.jpg"}
    described = module.describe()
    assert described["splits"]["train"] == {"images": 2, "captions": 3}
    assert described["options"] == {"columns": {"image": "file", "captions": ["texts"], "split": "part"}, "draw": None}
    moved = shutil.copytree(root, root.parent / "moved")
    other = Table(str(moved), num_workers=0, columns=Columns("file", "texts", "part"))
    other.connect(inputs)
    assert other.fingerprint() == module.fingerprint()
    write_image(moved / "sea" / "1.jpg", 77)
    changed = Table(str(moved), num_workers=0, columns=Columns("file", "texts", "part"))
    changed.connect(inputs)
    assert changed.fingerprint() != module.fingerprint()


def test_files_are_needed_only_where_pixels_are(root: Path) -> None:
    (root / "captions.csv").write_text("path,caption,split\na/1.jpg,a dog,train\nb/1.png,a cat,train\n")
    source = TableSource(str(root))
    source.only_annotations = True
    (problem,) = source.parse().problems
    assert problem.text.startswith("line 3: b/1.png and a/1.jpg (line 2) have one name in databases of regions")


def test_a_table_of_many_columns_is_read_for_a_few(root: Path) -> None:
    (root / "captions.csv").write_text("path,caption,width\nsea/1.jpg,a dog,640\n")
    assert read_table(root / "captions.csv", ("path",)).rows[0].values == {"path": "sea/1.jpg"}


@pytest.mark.parametrize("name", ["Split", "SPLIT", "set", "fold", "data_split", "phase"])
def test_a_column_that_may_be_the_splits_is_asked_for(tmp_path: Path, name: str) -> None:
    """Drawn splits would mix the test that somebody chose with what is trained on."""
    (tmp_path / "captions.csv").write_text(f"path,caption,{name}\n1.jpg,a dog,test\n")
    (tmp_path / "1.jpg").touch()
    with pytest.raises(InputError, match=f"no column 'split', and one that may be it: '{name}'. Set columns.split to {name}, or"):
        TableSource(str(tmp_path)).parse()


def test_a_cell_of_spaces_among_several_captions_is_none(root: Path) -> None:
    (root / "captions.csv").write_text("path,one,two,split\nsea/1.jpg,a dog, ,train\nsea/2.jpg,,a cat,train\n")
    (one, two) = TableSource(str(root), columns=Columns(captions=("one", "two"))).parse().valid()["train"]
    assert [[caption.text for caption in record.captions] for record in (one, two)] == [["a dog"], ["a cat"]]


def test_spaces_around_a_path_are_its_own_only_where_such_a_file_is_there(root: Path) -> None:
    (root / " 3.jpg").write_text("3")
    (root / "captions.csv").write_text('path,caption,split\n"sea/1.jpg ",a dog,train\n')
    (root / "more.jsonl").write_text(json.dumps({"path": " 3.jpg", "caption": "a cat", "split": "train"}))
    named = [TableSource(str(root), table=table).parse().valid()["train"][0].image_id for table in ("captions.csv", "more.jsonl")]
    assert named == ["sea/1.jpg", " 3.jpg"]


def test_copies_within_a_split_are_said_where_the_table_has_splits(root: Path) -> None:
    shutil.copy(root / "sea" / "1.jpg", root / "sea" / "copy.jpg")
    (root / "captions.csv").write_text("path,caption,split\nsea/1.jpg,a dog,test\nsea/copy.jpg,a cat,test\n")
    source = TableSource(str(root))
    source.parse().valid()
    assert source.notes() == ["1 image file(s) have the same content as another one of their split"]


def test_all_may_be_the_test_of_a_model_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("path,caption\n" + "".join(f"{row}.jpg,a dog {row}\n" for row in range(3)))
    for row in range(3):
        (tmp_path / f"{row}.jpg").write_text(str(row))
    source = TableSource(str(tmp_path), draw=Draw(val=0, test=1))
    assert {split: len(records) for split, records in source.parse().splits.items()} == {"test": 3}
    assert source.notes() == ["splits are drawn with seed 0 (0 train, 0 val, 3 test images): the table does not say them"]
    with pytest.raises(InputError, match="leaves nothing to train on"):
        Draw(val=0.5, test=0.5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path;caption;split\n1.jpg;a dog, a cat;train\n", "It has ; between its columns"),
        ("path\tcaption\n1.jpg\ta dog, a cat\n", "It has tabs between its columns: call it .tsv"),
        ("sep=;\npath;caption\n1.jpg;a dog, a cat\n", "Its first line is Excel's sep=: remove it"),
        ("# mine\npath,caption\n", "Its first line is a comment"),
    ],
)
def test_another_separator_is_named_also_where_captions_have_commas(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "captions.csv").write_text(content)
    with pytest.raises(InputError) as error:
        TableSource(str(tmp_path)).parse()
    assert said in str(error.value)
    assert "quotes" not in str(error.value)


def test_all_rows_of_another_number_of_fields_are_said_at_once(tmp_path: Path) -> None:
    rows = ["1.jpg,a dog, running", "2.jpg,a cat", *[f"{row}.jpg" for row in range(3, 12)]]
    for ending in ("\n", '\n12.jpg,"a bird\n'):  # also where a quote is not closed after them
        (tmp_path / "captions.csv").write_text("path,caption\n" + "\n".join(rows) + ending)
        with pytest.raises(InputError) as error:
            TableSource(str(tmp_path)).parse()
        assert "line 2 has 3 fields, and the first line names 2 columns ('path, caption')." in str(error.value)
        assert " 9 more have another number: line 4, line 5, " in str(error.value)
        assert str(error.value).count("line") <= 9


def test_a_row_of_too_few_fields_is_not_told_to_quote_commas(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("path,caption,split\n1.jpg,a dog\n")
    with pytest.raises(
        InputError, match=r"line 2 has 2 fields, and the first line names 3 columns \('path, caption, split'\)\.$"
    ):
        TableSource(str(tmp_path)).parse()
