"""The command `crosslight` before anything heavy is imported, and `data check` through it."""

from __future__ import annotations

import argparse
import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fresh_process import modules_after

from datamodules.errors import InputError
from datamodules.miniworld.write import write_world
from experiments.cli import main as cli
from experiments.cli._parser import with_subcommands
from experiments.training.configs import find_configs

TRAINING = ("run", "fit", "validate", "test", "predict")
HEAVY = {"torch", "lightning", "transformers", "timm", "jsonargparse", "numpy", "wandb", "PIL", "pandas", "matplotlib"}
ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Options that a training command hands on: `_training.py` lists them.
OF_CONFIGURATIONS = (
    "--run_dir", "--name", "--seed_everything", "--model.", "--data.", "--trainer.", "--checkpoint.", "--wandb.", "--evaluate.",
    "--ckpt_path",
)  # fmt: skip


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str]:
    """Exit status and what stood on stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code, capsys.readouterr().err


def helps() -> list[list[str]]:
    """The arguments of every help there is: of commands and of their sub-commands."""
    parsers = [parser for name in cli.command_names() for parser in with_subcommands(cli.build_parser(name))]
    return [[*parser.prog.split()[1:], "--help"] for parser in parsers]


def test_help_and_mistakes_in_the_command_import_nothing_heavy() -> None:
    program = """
import json, sys
from experiments.cli import main as cli
from experiments.cli._parser import with_subcommands
from experiments.training.configs import find_configs
for arguments in [[], ["--help"], ["help"], ["--version"]]:
    cli.main(arguments)
for arguments in [*json.loads(sys.argv[1]), ["fitt"], ["table"], ["sweep", "run", "mwa", "--dryrun"]]:
    try:
        cli.main(arguments)
    except SystemExit as stop:
        assert stop.code == (0 if "--help" in arguments else 2), arguments
    heavy = HEAVY & set(sys.modules)
    assert not heavy, (arguments, heavy)
""".replace("HEAVY", repr(HEAVY))
    done = subprocess.run([sys.executable, "-c", program, json.dumps(helps())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: crosslight COMMAND") == 3
    assert done.stdout.count("usage: crosslight ") == 3 + len(helps())
    assert done.stderr.startswith("crosslight: error: no command 'fitt'. Did you mean 'fit'?\n")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["caption", "--help"], ["sweep", "run", "--help"]])
def test_help_costs_less_than_half_a_second(arguments: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "experiments.cli", *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_a_plan_and_its_status_import_no_torch(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    out = ("--out", str(tmp_path / "runs"))
    for arguments in (("run", "all", "--dry-run"), ("run", "all", "--scale", "full", "--dry-run"), ("status", "mwa")):
        modules = modules_after("sweep", *arguments, *out, folder=tmp_path)
        assert not HEAVY & modules, arguments
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("command", cli.command_names())
def test_every_command_is_in_the_overview_and_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"\n  {command} " in cli.overview()
    for parser in with_subcommands(cli.build_parser(command)):
        with pytest.raises(SystemExit) as stop:
            cli.main([*parser.prog.split()[1:], "-h"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: {parser.prog} ")
        assert len(parser.description or "") > 20, parser.prog
        for action in parser._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), (parser.prog, action.dest)
            assert all(option in text for option in action.option_strings)
    if command in TRAINING:
        assert "configs/model/dual_tiny.yaml" in text
        assert "experiments/papers/mwa/variants/mwa.yaml" in text
        assert ("--evaluate." in text) == (command in ("run", "test"))


def test_defaults_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, shown in {
        ("world",): ["(default: 2000)", "(default: source)", "(default: 96)"],
        ("sweep", "run"): ["(default: runs/papers, or runs/sweeps/NAME of a sweep file)", "(default: miniature)"],
        ("demo", "iais"): ["(default: runs/demo)", "(default: 0)"],
        ("data", "regions"): ["(default: 0.2)", "(default: 100)", "(default: 32)"],
    }.items():
        with pytest.raises(SystemExit):
            cli.main([*arguments, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert all(each in text for each in shown), arguments


def test_the_demo_of_iais_is_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", "iais", "--help"])
    text = capsys.readouterr().out
    assert "crosslight demo iais [-h] [--out DIR] [--seed N [N ...]]" in text
    assert "UNITER" in text


# --------------------------------------------------------------------------------------------------------------- documents


def command_lines() -> list[tuple[str, list[str]]]:
    """Whole command lines of the README and docs: where each is, and its words behind `crosslight`."""
    lines = []
    for file in DOCUMENTS:
        text = file.read_text().replace("\\\n", " ")
        found = re.findall(r"^(?:\$ | {4})crosslight (.+)$", text, re.MULTILINE)
        lines += [(f"{file.name}: {line}", shlex.split(line, comments=True)) for line in found]
    return lines


def mentions() -> list[tuple[str, list[str]]]:
    """Commands in running text and tables, of which the arguments may be left out."""
    return [
        (f"{file.name}: {span}", span.replace("[", " ").replace("]", " ").split()[1:])
        for file in DOCUMENTS
        for span in re.findall(r"`(crosslight [^`]+)`", file.read_text())
    ]


def test_every_command_line_of_the_documents_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(command_lines()) > 30
    for where, words in command_lines():
        options = cli.build_parser(words[0]).parse_args(words[1:])
        if words[0] in TRAINING:
            packaged = [file for file in options.config if file.startswith(("configs/", "experiments/")) and "$" not in file]
            find_configs([f"--config={file}" for file in packaged])
            unknown = [word for word in options.overrides if word.startswith("--") and not word.startswith(OF_CONFIGURATIONS)]
            assert not unknown, where


def test_every_command_that_the_documents_mention_exists() -> None:
    assert len(mentions()) > 20
    for where, words in mentions():
        parsers = {parser.prog.split()[-1]: parser for parser in with_subcommands(cli.build_parser(words[0]))}
        known = {option for parser in parsers.values() for option in parser._option_string_actions}
        for word in words[1:]:
            option = word.partition("=")[0]
            if option.startswith("--") and not (words[0] in TRAINING and option.startswith(OF_CONFIGURATIONS)):
                assert option in known or option.startswith("--slurm."), where
        subcommands = cli.build_parser(words[0])._subparsers
        if subcommands is not None and words[1:] and re.match(r"[a-z]", words[1]):
            assert words[1] in parsers, where


def test_documents_have_every_command() -> None:
    assert set(cli.command_names()) == {words[0] for _, words in [*command_lines(), *mentions()]}


# ---------------------------------------------------------------------------------------------------------------- mistakes


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
    found = find_configs(["-c", "configs/trainer/cpu.yaml", "--config=experiments/papers/mwa/variants/mwa.yaml", "--name", "x"])
    assert Path(found[1]).is_file()
    assert Path(found[2].removeprefix("--config=")).is_file()
    assert found[3:] == ["--name", "x"]
    own = tmp_path / "configs" / "trainer" / "cpu.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("trainer: {}\n")
    assert find_configs(["-c", "configs/trainer/cpu.yaml"]) == ["-c", "configs/trainer/cpu.yaml"]  # a file here wins


@pytest.mark.parametrize("form", [["-c", "{}"], ["--config", "{}"], ["--config={}"]])
def test_a_missing_file_suggests_the_packaged_one(form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"configs/model/dual_tinny\.yaml: .* Did you mean configs/model/dual_tiny\.yaml"):
        find_configs([part.format("configs/model/dual_tinny.yaml") for part in form])
    code, error = fails(capsys, "fit", *(part.format("experiments/papers/mwa/variant/mwa.yaml") for part in form))
    assert code == 2
    assert "Did you mean experiments/papers/mwa/variants/mwa.yaml" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["table"], ["required: RUN", "crosslight table --help"]),
        (["table", ".", "--dat", "x"], ["unrecognized arguments: --dat", "crosslight table --help"]),
        (["demo", "iias"], ["'iias'", "iais", "crosslight demo --help"]),
        (["demo", "iais", "--seed", "one"], ["--seed", "'one'"]),
        (["demo", "iais", "--runs", "r"], ["--runs is of `crosslight demo`", "crosslight demo --help"]),
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
