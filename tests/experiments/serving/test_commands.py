"""`crosslight index`, `search`, `embed` and `caption` as a person runs them: what they print, where, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kept_figures import keep_figures
from tiny_data import write_image

import lightning_modules
from datamodules.errors import InputError
from experiments.cli.main import run_command


@pytest.fixture
def here(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in this folder, and the model is loaded once for all of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: model)
    return tmp_path


def test_index_then_search(here: Path, photos: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    (photos / "broken.jpg").write_text("no image")
    (photos / "clip.mp4").write_bytes(b"film")
    assert run_command("index", [str(photos), "--run", str(run), "--workers", "0"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith(f"crosslight-index: 9 images of {photos} (8 encoded, 0 kept, 0 gone) in ")
    assert said.err.splitlines() == [
        "left out, no images by their endings, hidden, or links to folders: 1 .mp4",
        "1 images cannot be read, and the rest is done:",
        f"  {photos / 'broken.jpg'} is not an image that PIL can read.",
    ]
    (photos / "broken.jpg").unlink()
    assert run_command("index", ["--workers", "0"]) == 0  # of the folder and the run that it has
    assert "(0 encoded, 9 kept, 0 gone)" in capsys.readouterr().out

    figures = keep_figures(monkeypatch)
    image = photos / "a" / "4.jpg"
    asked = ["a cat", "--image", str(image), "--top", "3"]
    assert run_command("search", [*asked, "--sheet", "new/found.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '"a cat", of 9 images:'
    assert lines[4:6] == [f"like {image}, of 9 images:", f"   1  1.000  {image}"]
    assert len(lines) == 8
    assert Path("new/found.png").exists()
    assert len(figures[0].axes) == 3 + 1 + 3  # what was found, and the image that was asked for

    assert run_command("search", [*asked, "--json"]) == 0
    text, like = json.loads(capsys.readouterr().out)
    assert (text["text"], like["image"], text["images"]) == ("a cat", str(image), 9)
    assert [f"{one['rank']:4}  {one['score']:.3f}  {one['file']}" for one in text["found"]] == lines[1:4]


def test_an_index_remembers_where_its_models_weights_lie(
    here: Path, model: Any, photos: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made with --backbone and --tokenizer, it is searched and brought up to date without; another --run is on its own."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: asked.append(options) or model)
    (here / "base").mkdir()
    made = ["--run", str(run), "--backbone", "base", "--tokenizer", "OWNER/NAME", "--workers", "0"]
    assert run_command("index", [str(photos), *made]) == 0
    there = {"backbone": str(here / "base"), "tokenizer": "OWNER/NAME"}
    assert asked.pop() == {"backbone": "base", "tokenizer": "OWNER/NAME"}
    assert run_command("search", ["a cat"]) == 0
    assert run_command("index", ["--workers", "0"]) == 0
    assert run_command("search", ["a cat", "--tokenizer", "mine"]) == 0
    assert asked == [there, there, {**there, "tokenizer": "mine"}]
    assert run_command("search", ["a cat", "--run", str(run)]) == 0
    assert asked[-1] == {"backbone": None, "tokenizer": None}


def test_the_name_of_a_file_is_on_one_line(here: Path, model: Any, run: Path, capsys: Any) -> None:
    photos = here / "photos"
    write_image(photos / "a\nb.jpg", 1)
    (photos / "no\nimage.jpg").write_text("words")
    assert run_command("index", [str(photos), "--run", str(run), "--workers", "0"]) == 1
    assert f"\n  {photos}/no\\nimage.jpg is not an image" in capsys.readouterr().err
    assert run_command("search", ["--image", str(photos / "a\nb.jpg")]) == 0
    name = f"{photos}/a\\nb.jpg"
    assert capsys.readouterr().out == f"like {name}, of 1 images:\n   1  1.000  {name}\n"


def test_words_that_the_model_does_not_know_are_said(here: Path, photos: Path, run: Path, capsys: Any) -> None:
    run_command("index", [str(photos), "--run", str(run), "--workers", "0"])
    assert run_command("search", ["a dog", "--top", "1"]) == 0
    assert "crosslight: 'a dog': the model does not know all of its words, and reads 'a [UNK]'\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("index", [], "crosslight-index does not exist yet: crosslight index DIR --run RUN makes it"),
        ("index", ["gone", "--run", "run"], "gone is not a folder"),
        ("search", [], "search needs something to look for"),
        ("search", [" "], "a text to look for is empty"),
        ("search", ["a", "--top", "0"], "--top is 0"),
        (
            "search",
            ["a dog.JPG"],
            "the text 'a dog.JPG' is the name of an image. To look for images like it: --image 'a dog.JPG'.",
        ),
        ("search", ["--image", "gone.jpg"], "--image gone.jpg does not exist"),
        ("search", ["a dog", "--sheet", "found.xyz"], "--sheet found.xyz: give a name that ends in .png"),
        ("search", ["a dog", "--run", ""], "--run: is empty: give a path"),
        ("index", ["", "--run", "run"], "DIR: is empty: give a path, or . for the working folder"),
        ("embed", ["photo.jpg", "--run", "run", "--out", "o.npz"], "photo.jpg is an image: give the folder that it is in"),
        ("embed", ["captions.csv", "--run", "run", "--out", "o.npz"], "captions.csv is a table: give a file with a text on"),
        ("score", ["c.jsonl", "--references", "r.json"], "c.jsonl: what is scored is a .json with all captions"),
        ("search", ["a dog"], r"crosslight-index is no index: it has no index.json. `crosslight index DIR --run RUN"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(here: Path, command: str, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        run_command(command, arguments)
    assert "\n" not in str(error.value)
