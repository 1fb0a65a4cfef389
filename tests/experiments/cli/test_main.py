"""The command `crosslight` before anything heavy is imported: overview, help, mistakes."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import main as cli
from experiments.cli._parser import with_subcommands

HEAVY = "torch", "lightning", "transformers", "timm", "jsonargparse", "numpy", "wandb", "rich", "PIL"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str]:
    """Exit status and what stood on stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code, capsys.readouterr().err


def test_help_and_mistakes_import_nothing_heavy_and_cost_no_time() -> None:
    """Half a second of a processor for each command's help and the overview, of which this process makes all."""
    program = f"""
import sys, time
from experiments.cli import main as cli
def ends(*arguments):
    begun = time.process_time()
    try:
        cli.main(arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code
    assert time.process_time() - begun < 0.5, arguments
    return status
for arguments in [[], ["--help"], ["help"], ["--version"], *([name, "--help"] for name in cli.command_names())]:
    assert ends(*arguments) == 0
for arguments in (["data", "regions", "-h"], ["sweep", "run", "-h"], ["demo", "iais", "-h"]):
    assert ends(*arguments) == 0
assert ends("fitt") == 2
heavy = set({HEAVY}) & set(sys.modules)
assert not heavy, heavy
assert time.process_time() < 2
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: crosslight COMMAND") == 3
    assert done.stderr == "crosslight: error: no command 'fitt'. Did you mean 'fit'?\n"


def test_commands_are_the_files_of_the_folder() -> None:
    files = {file.stem for file in Path(cli.__file__).parent.glob("*.py")}
    assert set(cli.command_names()) == {name for name in files if not name.startswith("_")} - {"main"}
    assert {"run", "sweep", "table", "data", "score"} <= set(cli.command_names())


@pytest.mark.parametrize("command", cli.command_names())
def test_every_command_and_option_says_what_it_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli.build_parser(command)
    summary = str(parser.description).splitlines()[0]
    assert summary.endswith(".")
    assert f"\n  {command:<10}{summary}\n" in f"{cli.overview()}\n"
    for part in with_subcommands(parser):
        assert part.description
        for action in part._actions:
            below = isinstance(action, argparse._SubParsersAction)
            assert action.help or below, (part.prog, action.dest)
            text = part._get_formatter()._expand_help(action) if action.help else ""  # type: ignore[no-untyped-call]
            shown = not below and action.default not in (None, [], argparse.SUPPRESS) and action.default is not False
            assert not (shown and action.option_strings) or "default" in text, (part.prog, action.dest)
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "-h"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: crosslight {command} ")


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


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["table"], ["required: RUN", "crosslight table --help"]),
        (["table", ".", "--dat", "x"], ["unrecognized arguments: --dat x", "Did you mean --data?", "crosslight table --help"]),
        (["demo", "iias"], ["'iias'", "iais", "crosslight demo --help"]),
        (["demo", "iais", "--seed", "one"], ["--seed", "'one'"]),
        (["demo", "iais", "--runs", "r"], ["--runs is of `crosslight demo`", "crosslight demo --help"]),
        (["demo", "--runs", "r", "iais"], ["--runs is of the whole demo", "crosslight demo iais"]),
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
