"""The command `crosslight` before anything heavy is imported, and `data check` through it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.miniworld.write import write_world
from experiments.cli import main as cli

TRAINING = ("run", "fit", "validate", "test", "predict")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str]:
    """Exit status and what stood on stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code, capsys.readouterr().err


def test_help_and_mistakes_in_the_command_import_nothing_heavy() -> None:
    program = """
import sys
from experiments.cli import main as cli
for arguments in [[], ["--help"], ["help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)]:
    cli.main(arguments)
try:
    cli.main(["fitt"])
except SystemExit as stop:
    assert stop.code == 2
heavy = {"torch", "lightning", "transformers", "timm", "jsonargparse", "numpy", "wandb"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: crosslight COMMAND") == 3
    assert done.stderr == "crosslight: error: no command 'fitt'. Did you mean 'fit'?\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_is_in_the_overview_and_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"\n  {command} " in cli.OVERVIEW
    cli.main([command, "-h"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: crosslight {command} ")
    if command in TRAINING:
        assert "configs/model/dual_tiny.yaml" in text
        assert "experiments/papers/mwa/variants/mwa.yaml" in text
        assert ("--evaluate." in text) == (command in ("run", "test"))


def test_the_demo_of_iais_is_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["demo", "iais", "--help"])
    text = capsys.readouterr().out
    assert "crosslight demo iais [--out DIR] [--seed N [N ...]]" in text
    assert "UNITER" in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("tabel", "no command 'tabel'. Did you mean 'table'?"),
        ("predcit", "no command 'predcit'. Did you mean 'predict'?"),
        ("xyzzy", "no command 'xyzzy'. See crosslight --help."),
        ("--model", "no command '--model'. See crosslight --help."),
    ],
)
def test_unknown_command(wrong: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, wrong) == (2, f"crosslight: error: {message}\n")


def test_packaged_configurations_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = cli.find_configs(
        ["-c", "configs/trainer/cpu.yaml", "--config=experiments/papers/mwa/variants/mwa.yaml", "--name", "x"]
    )
    assert Path(found[1]).is_file()
    assert Path(found[2].removeprefix("--config=")).is_file()
    assert found[3:] == ["--name", "x"]
    own = tmp_path / "configs" / "trainer" / "cpu.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("trainer: {}\n")
    assert cli.find_configs(["-c", "configs/trainer/cpu.yaml"]) == ["-c", "configs/trainer/cpu.yaml"]  # a file here wins


@pytest.mark.parametrize("form", [["-c", "{}"], ["--config", "{}"], ["--config={}"]])
def test_a_missing_file_suggests_the_packaged_one(form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"configs/model/dual_tinny\.yaml: .* Did you mean configs/model/dual_tiny\.yaml"):
        cli.find_configs([part.format("configs/model/dual_tinny.yaml") for part in form])
    code, error = fails(capsys, "fit", *(part.format("experiments/papers/mwa/variant/mwa.yaml") for part in form))
    assert code == 2
    assert "Did you mean experiments/papers/mwa/variants/mwa.yaml" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["table"], ["required: runs", "crosslight table --help"]),
        (["table", ".", "--dat", "x"], ["unrecognized arguments: --dat", "crosslight table --help"]),
        (["demo", "iias"], ["'iias'", "iais", "crosslight demo --help"]),
        (["demo", "iais", "--seed", "one"], ["--seed", "'one'"]),
        (["demo", "iais", "--runs", "r"], ["--runs is of the whole demo", "crosslight demo iais"]),
        (["world", "w", "--scenes", "many"], ["--scenes", "'many'", "crosslight world --help"]),
        (["world", "w", "--style", "blue"], ["--style", "'blue'", "source", "target"]),
        (["data", "chek", "coco", "."], ["'chek'", "check"]),
        (["data", "check", "imagenet", "."], ["'imagenet'", "flickr8k"]),
        (["export", "no-such-run", "out"], ["no-such-run", "Give one of these"]),
        (["table", "no-such-folder"], ["no-such-folder is not a folder"]),
    ],
)
def test_mistakes_of_other_commands_are_one_line(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, error = fails(capsys, *arguments)
    assert code == 2
    assert error.startswith("crosslight: error: ")
    assert error.count("\n") == 1
    assert all(part in error for part in parts), error
    assert not list(tmp_path.iterdir())


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
