"""`crosslight caption` on folders: rows with probabilities that are gone on with, and are never of two models or two contents."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_captioner import captioner
from tiny_data import write_image

import lightning_modules
from datamodules.errors import InputError
from experiments.cli import caption
from experiments.cli.main import run_command
from experiments.serving.caption_file import CaptionFile, Row
from lightning_modules.adapters.i_tuning import ITuning, ITuningModule
from lightning_modules.captioning import CaptioningModule
from lightning_modules.networks.language_model import Decoding


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> CaptioningModule:
    """What the commands load; its captions are token ids."""
    torch.manual_seed(0)
    model = CaptioningModule(captioner(), ITuning(init_std=0.3), decoding=Decoding(num_beams=2, max_new_tokens=6)).eval()
    monkeypatch.setattr(model.network.language, "decode", lambda ids: [",".join(map(str, row)) + ' "é"' for row in ids])
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: model)
    return model


def rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".csv":
        return list(csv.DictReader(file.open(newline="")))
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_folder_is_gone_on_with(writer: Any, photos: Path, tmp_path: Path, ending: str, capsys: Any) -> None:
    whole, out = tmp_path / f"whole.{ending}", tmp_path / f"captions.{ending}"
    (photos / "words.jpg").write_text("no image")
    asked = ["run", str(photos), "--workers", "0", "--batch-size", "4"]
    assert run_command("caption", [*asked, "--out", str(whole)]) == 1
    printed = capsys.readouterr().out.splitlines()
    names = sorted(str(path) for path in photos.rglob("[0-9].jpg"))
    assert [row["file"] for row in rows(whole)] == names
    assert printed == [f"{row['file']}: {row['caption']}" for row in rows(whole)]
    for row, written in zip(rows(whole), writer.caption(names), strict=True):
        assert row["caption"] == written
        assert float(row["log_prob"]) < 0

    content = whole.read_bytes()
    out.write_bytes(content[: len(content) // 2])  # killed within a row
    there = out.read_bytes().count(b"\n") - (ending == "csv")
    run_command("caption", [*asked, "--out", str(out)])
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 9 - there
    assert f"{out}: {9 - there} captions written, {there} were there" in said.err
    alike = [{**row, "log_prob": round(float(row["log_prob"]), 3)} for row in rows(whole)]
    assert [{**row, "log_prob": round(float(row["log_prob"]), 3)} for row in rows(out)] == alike


def test_a_folder_by_another_name_is_the_same_folder(
    writer: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "captions.jsonl"
    monkeypatch.chdir(photos.parent)
    run_command("caption", ["run", photos.name, "--workers", "0", "--out", str(out)])
    written = rows(out)
    run_command("caption", ["run", str(photos), "--workers", "0", "--out", str(out)])
    assert f"0 captions written, {len(written)} were there" in capsys.readouterr().err
    assert rows(out) == written


def test_a_row_is_of_the_image_and_model_that_are_there_now(writer: Any, photos: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "captions.jsonl"
    asked = ["run", str(photos), "--workers", "0", "--out", str(out)]
    assert run_command("caption", asked) == 0
    before = rows(out)
    write_image(photos / "a" / "4.jpg", 99)
    assert run_command("caption", asked) == 0
    changed = [row["file"] for row in rows(out) if row not in before]
    assert changed == [str(photos / "a" / "4.jpg")]
    assert len(rows(out)) == 9
    one = ["run", str(photos / "a" / "1.jpg"), "--out", str(out), "--maps", str(tmp_path / "maps")]
    assert run_command("caption", one) == 0  # a picture of a caption that is there
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["1.png"]
    assert len(rows(out)) == 9
    for other in (["--num-beams", "1"], ["--sample", "--seed", "2"]):
        with pytest.raises(InputError, match=r"has captions of another model or decoding. Give another --out"):
            run_command("caption", [*asked, *other])
    assert run_command("caption", [*asked, "--batch-size", "3"]) == 0  # which decides nothing
    module = next(each for each in writer.network.modules() if isinstance(each, ITuningModule))
    module.lambda_ += 1  # of equal weights
    with pytest.raises(InputError, match=r"has captions of another model or decoding"):
        run_command("caption", asked)


def test_an_image_that_changes_while_it_is_read_has_no_row(
    writer: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out, file = tmp_path / "captions.jsonl", photos / "a" / "1.jpg"
    encode = writer.network.encode_images

    def replacing(images: Any) -> Any:
        write_image(file, 99)
        return encode(images)

    monkeypatch.setattr(writer.network, "encode_images", replacing)
    assert run_command("caption", ["run", str(photos), "--workers", "0", "--out", str(out)]) == 1
    assert f"  {file} changed while it was read: caption it again." in capsys.readouterr().err
    assert len(rows(out)) == 8


def test_results_of_coco_are_not_written_with_every_batch(
    writer: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = caption.write_caption_results

    def counting(path: Path, captions: Any, image_ids: Any) -> None:
        written.append(len(captions))
        write(path, captions, image_ids)

    monkeypatch.setattr(caption, "write_caption_results", counting)
    for number in range(20, 36):
        write_image(photos / f"{number}.jpg", number)
    out = tmp_path / "captions.json"
    assert run_command("caption", ["run", str(photos), "--workers", "0", "--batch-size", "1", "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())) == written[-1] == 25
    assert len(written) < 21


def test_two_processes_never_write_one_file(writer: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    asked = ["run", str(photos), "--workers", "0", "--out", str(out)]
    other = CaptionFile(out, "job")
    with pytest.raises(InputError, match=f"--out {out} is being written by another process; wait for it, or give another --out"):
        run_command("caption", asked)
    assert not out.exists()
    other.close()
    assert run_command("caption", asked) == 0
    assert run_command("caption", asked) == 0
    assert len(rows(out)) == 9


@pytest.mark.parametrize(
    ("name", "content", "row"),
    [("a.jsonl", '{"file": "a"}\n', 1), ("b.jsonl", "words\n", 1), ("a.csv", "file,caption\na,b\n", 1), ("b.csv", "\0\n", 1)],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, name: str, content: str, row: int) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name} holds no captions of this command \(row {row}\)"):
        CaptionFile(tmp_path / name, "job")
    assert (tmp_path / name).read_text() == content


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = [Row('a,\n"b".jpg', "", -0.5, 0, True, "c", "job"), Row("é", "a \u2028 dog", -1e-5, 3, False, "d", "job")]
    for name in ("a.jsonl", "a.csv"):
        for row in written:
            CaptionFile(tmp_path / name, "job").add([row])
        assert CaptionFile(tmp_path / name, "job").rows == written
        shutil.copy(tmp_path / name, tmp_path / "copy")
        assert CaptionFile(tmp_path / name, "job").keep({"é": "d", "new": "e"}) == {"é"}
        assert (tmp_path / name).read_bytes() == (tmp_path / "copy").read_bytes()
