"""`crosslight embed`: folders and text files to Parquet and npz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

import lightning_modules
from datamodules.errors import InputError
from experiments.cli.main import run_command


@pytest.fixture(autouse=True)
def loaded(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: model)


def read(file: Path, kind: str) -> tuple[list[str], Any]:
    if file.suffix == ".npz":
        content = np.load(file)
        return content[f"{kind}_ids"].tolist(), content[f"{kind}s"]
    table = parquet.read_table(file)
    assert table.column_names == [kind, "vector"]
    return table[kind].to_pylist(), np.array(table["vector"].to_pylist(), np.float32)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_vectors_with_what_they_are_of(photos: Path, model: Any, tmp_path: Path, ending: str, capsys: Any) -> None:
    (photos / "b" / "words.jpg").write_text("no image")
    out = tmp_path / "new" / f"images.{ending}"
    assert run_command("embed", [str(photos), "--run", "run", "--out", str(out), "--workers", "0", "--batch-size", "4"]) == 1
    assert "words.jpg is not an image" in capsys.readouterr().err
    names, vectors = read(out, "image")
    assert names == sorted(str(path.relative_to(photos)) for path in photos.rglob("[0-9].jpg"))
    np.testing.assert_allclose(vectors, model.encode_images([photos / name for name in names]), atol=1e-6)

    (tmp_path / "lines.txt").write_bytes(b"a cat\r\n\nthe red boat")
    texts = tmp_path / f"texts.{ending}"
    assert run_command("embed", ["lines.txt", "--run", "run", "--out", str(texts)]) == 0
    lines, vectors = read(texts, "text")
    assert lines == ["a cat", "", "the red boat"]
    np.testing.assert_allclose(vectors, model.encode_texts(lines), atol=1e-6)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_vectors_of_what_is_no_result_say_so(
    model: Any, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "lines.txt").write_text("a cat")
    out = tmp_path / f"texts.{ending}"
    for why in (None, "a run on stand-ins"):
        monkeypatch.setattr(model, "no_result", why, raising=False)
        assert run_command("embed", ["lines.txt", "--run", "run", "--out", str(out)]) == 0
        told = "crosslight: nothing that run computes is a result (a run on stand-ins)\n" if why else ""
        assert capsys.readouterr().err == told
        if ending == "npz":
            assert str(np.load(out).get("no_result")) == str(why)
        else:
            assert (parquet.read_schema(out).metadata or {}).get(b"no_result") == (why.encode() if why else None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--out", "a.csv"], r"--out a.csv: give a name that ends in .parquet or .npz"),
        (["gone", "--out", "a.npz"], "gone does not exist"),
        (["photos/a/1.jpg", "--out", "a.npz"], "1.jpg is an image: give the folder that it is in"),
        ([".", "--out", "photos"], "--out photos: give a name"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(photos: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        run_command("embed", [*arguments, "--run", "run"])
    assert "\n" not in str(error.value)
    assert not Path("a.npz").exists()


def test_names_that_would_blow_an_array_up_are_refused_before_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a dog\n" * 2000 + "x" * 40_000 + "\n")
    with pytest.raises(InputError, match=r"gives each of 2,001 names the room of the longest, which has 40,000 .* in \.parquet"):
        run_command("embed", [str(tmp_path / "texts.txt"), "--out", str(tmp_path / "a.npz"), "--run", "nowhere"])


def test_one_text_or_one_file_is_no_list(model: Any, photos: Path) -> None:
    """Its letters would be read as texts, and as files."""
    for texts, message in (
        ("a dog", r"'a dog' is one text: give a list, \['a dog'\]"),
        ([None], "None is no text: give a list of texts"),
        (7, "7 is no text"),
    ):
        with pytest.raises(InputError, match=message):
            model.encode_texts(texts)
    file = photos / "a" / "1.jpg"
    for files, message in (
        (file, f"'{file}' is one file: give a list"),
        (str(file), f"'{file}' is one file: give a list"),
        ([3], "a int is no image file: give a list of paths"),
    ):
        with pytest.raises(InputError, match=message):
            model.encode_images(files)
    assert len(model.encode_texts(text for text in ("a dog", "snow"))) == 2
    assert len(model.encode_images(path for path in [file])) == 1
