"""Tables of any format give the same rows, and what is wrong with one is said with its line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from datamodules.errors import InputError
from datamodules.formats.table import read_table

WANTED = ("path", "caption")
ROWS: list[dict[str, Any]] = [
    {"path": "1.jpg", "caption": 'a "big" dog, wet', "score": "3"},
    {"path": "2.jpg", "caption": "two\nlines", "score": "4"},
    {"path": "3.jpg", "caption": None, "score": "5"},
]


def written(folder: Path, ending: str) -> Path:
    path = folder / f"captions{ending}"
    if ending == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    elif ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        cells = [["path", "caption", "score"], *([row["path"], row["caption"] or "", row["score"]] for row in ROWS)]
        quoted = ['"' + cell.replace('"', '""') + '"' for line in cells for cell in line]
        sign = "," if ending == ".csv" else "\t"
        lines = [sign.join(quoted[start : start + 3]) for start in range(0, len(quoted), 3)]
        path.write_text("\ufeff" + "\n".join(lines) + "\n\n", encoding="utf-8")  # as a spreadsheet saves it
    return path


@pytest.mark.parametrize(
    ("ending", "places"),
    [
        (".csv", ["line 2", "line 3", "line 5"]),
        (".tsv", ["line 2", "line 3", "line 5"]),
        (".jsonl", ["line 1", "line 2", "line 3"]),
        (".parquet", ["row 1", "row 2", "row 3"]),
    ],
)
def test_a_table_of_any_format(tmp_path: Path, ending: str, places: list[str]) -> None:
    table = read_table(written(tmp_path, ending), WANTED)
    assert table.columns == ("path", "caption", "score")
    assert [row.place for row in table.rows] == places
    assert [row.values for row in table.rows] == [{name: row[name] for name in WANTED} for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", "x", "ends in none of .csv, .tsv, .jsonl, .parquet"),
        ("t.csv", "path,caption\n", "has no rows"),
        ("t.csv", "path,caption,path\n", "has the column 'path' twice"),
        ("t.csv", "\npath,caption\n1.jpg,a dog\n", "line 1 is empty; it has to name the columns"),
        ("t.csv", "path,caption\n1.jpg,a dog, wet\n", "line 2 has 3 fields, .* names 2 columns .*double quotes"),
        ("t.csv", 'path,caption\n1.jpg,"a\nb"\n2.jpg\n', "line 4 has 1 fields"),
        ("t.csv", 'path,caption\n1.jpg,a\n2.jpg,"a dog\n3.jpg,b\n', "begins at line 3 is not sound CSV .*quote is not closed"),
        ("t.jsonl", '{"path": "1.jpg"}\n{"path": \n', "line 2 is not valid JSON"),
        ("t.jsonl", '["1.jpg"]\n', r"line 1 is \['1.jpg'\], not an object"),
        ("t.parquet", "PAR1 and no more", "is not a sound Parquet file"),
        ("t.parquet", "<html><body>", "is a web page"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        read_table(path, WANTED)
    assert str(path) in str(refused.value)


TWO_SIGNS = ('1.jpg{0}"Welcome to Ohio, says a sign', "2.jpg{0}a dog", '3.jpg{0}a sign reads STOP"')


def test_rows_between_two_quotes_are_not_a_caption(tmp_path: Path) -> None:
    """Else the images of all of them but the first would be gone."""
    (tmp_path / "t.csv").write_text(
        "path,caption\n0.jpg,a cat\n" + "\n".join(TWO_SIGNS[1:]).format(",").replace("2.jpg,", '2.jpg,"')
    )
    with pytest.raises(InputError, match=r"t\.csv: a double quote opens in line 3 and closes in line 4, though each line there"):
        read_table(tmp_path / "t.csv", WANTED)


@pytest.mark.parametrize("lines", [TWO_SIGNS, TWO_SIGNS[:2], TWO_SIGNS[1:], ('1.jpg{0}"Stop" it says', '2.jpg{0}"a dog"')])
def test_in_a_file_with_tabs_and_no_quoting_a_quote_is_a_sign(tmp_path: Path, lines: tuple[str, ...]) -> None:
    (tmp_path / "t.tsv").write_text("path\tcaption\n" + "\n".join(lines).format("\t") + "\n")
    rows = read_table(tmp_path / "t.tsv", WANTED).rows
    assert [[row.values["path"], row.values["caption"]] for row in rows] == [line.split("{0}") for line in lines]
    assert [row.place for row in rows] == [f"line {number}" for number in range(2, len(lines) + 2)]


def test_of_a_quoted_file_with_tabs_what_is_wrong_is_said(tmp_path: Path) -> None:
    """Read without its quoting, its columns would be called "path" and "caption", with the quotes."""
    (tmp_path / "t.tsv").write_text('"path"\t"caption"\n"1.jpg"\t"a dog\n"2.jpg"\t"a cat"\n')
    with pytest.raises(InputError, match="begins at line 2 is not sound CSV"):
        read_table(tmp_path / "t.tsv", WANTED)


def test_a_quoted_text_of_several_lines_with_commas_stays_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('path,caption\n1.jpg,"A dog.\nOh, a cat"\n2.jpg, "two dogs, running"\n')
    assert [row.values["caption"] for row in read_table(tmp_path / "t.csv", WANTED).rows] == [
        "A dog.\nOh, a cat",
        "two dogs, running",
    ]


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    column = pyarrow.array(["a"])
    pyarrow.parquet.write_table(pyarrow.table([column] * 3, names=["path", "caption", "caption"]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t.parquet has the column 'caption' twice"):
        read_table(tmp_path / "t.parquet", WANTED)


def test_parquet_needs_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, ".parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow .*uv pip install 'crosslight\[parquet\]', or save it as CSV"):
        read_table(path, WANTED)
