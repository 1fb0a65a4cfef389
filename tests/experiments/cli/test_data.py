"""`crosslight data check` through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from datamodules.miniworld.write import write_world
from experiments.cli import main as cli


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str]:
    """Exit status and what stood on stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code, capsys.readouterr().err


def test_data_check_tells_a_sound_root_from_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = write_world(tmp_path / "world", scenes=40, image_size=32)
    flickr, coco = world / "flickr30k", world / "coco"

    def check(kind: str, root: Path) -> tuple[int | str | None, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["data", "check", kind, str(root), "--workers", "1"])
        return stop.value.code, capsys.readouterr().out

    code, report = check("flickr30k", flickr)
    assert code == 0
    assert report.endswith("no problems found\n")
    assert "train: 11 images, 55 captions" in report  # 70 % of the Flickr30k part, five captions each
    assert check("coco", coco)[0] == 0

    photographs = sorted((flickr / "flickr30k-images").glob("*.jpg"))
    photographs[0].write_bytes(photographs[0].read_bytes()[:-80])
    photographs[1].unlink()
    code, report = check("flickr30k", flickr)
    assert code == 1
    assert report.endswith("2 problem(s)\n")
    assert "unreadable image: 1" in report
    assert photographs[0].name in report
    assert "missing image: 1" in report
    assert photographs[1].name in report

    shutil.rmtree(flickr / "flickr30k-images")
    code, error = fails(capsys, "data", "check", "flickr30k", str(flickr))
    assert code == 2
    assert str(flickr / "flickr30k-images") in error

    annotations = coco / "annotations" / "dataset_coco.json"
    content = json.loads(annotations.read_text())
    content["images"][0]["sentences"] = []
    annotations.write_text(json.dumps(content))
    code, report = check("coco", coco)
    assert code == 1
    assert "image without captions: 1" in report


def test_data_check_of_an_empty_root_says_what_belongs_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "check", "flickr30k", str(tmp_path)])
    said = capsys.readouterr()
    assert stop.value.code in (1, 2)
    assert "dataset_flickr30k.json" in said.out + said.err
