"""The command `crosslight` before anything heavy is imported: overview, help, mistakes."""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from end_to_end import torchrun
from tiny_data import write_image

from experiments.cli import main as cli
from experiments.cli._parser import with_subcommands

HEAVY = {"torch", "lightning", "transformers", "timm", "jsonargparse", "numpy", "wandb", "PIL", "pandas", "matplotlib"}


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


def test_commands_are_the_files_of_the_folder() -> None:
    files = {file.stem for file in Path(cli.__file__).parent.glob("*.py")}
    assert set(cli.command_names()) == {name for name in files if not name.startswith("_")} - {"main"}
    assert {"run", "sweep", "table", "data", "score"} <= set(cli.command_names())


def test_defaults_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, shown in {
        ("world",): ["(default: 2000)", "(default: source)", "(default: 96)"],
        ("sweep", "run"): ["(default: runs/papers, or runs/sweeps/NAME of a sweep file)", "(default: miniature)"],
        ("demo",): ["(default: runs/demo)", "(default: runs/papers)", "(default: 0)", "(default: all)"],
        ("data", "regions"): ["(default: 0.2)", "(default: 100)", "(default: 32)"],
    }.items():
        with pytest.raises(SystemExit):
            cli.main([*arguments, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert all(each in text for each in shown), arguments


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


def test_a_command_of_one_process_under_torchrun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them says it."""
    for name, value in torchrun(0, 2, 29400).items():
        monkeypatch.setenv(name, value)
    said = "crosslight: error: crosslight table is one process, and torchrun started 2: start it without.\n"
    assert fails(capsys, "table", "run") == (2, said)
    monkeypatch.setenv("RANK", "1")
    assert fails(capsys, "table", "run") == (2, "")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert "is one process" not in fails(capsys, "table", "nowhere")[1]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["table"], ["required: RUN", "crosslight table --help"]),
        (["table", ".", "--dat", "x"], ["unrecognized arguments: --dat x", "Did you mean --data?", "crosslight table --help"]),
        (["demo", "iias"], ["'iias'", "iais", "crosslight demo --help"]),
        (["demo", "iais", "--seed", "one"], ["--seed", "'one'"]),
        (["world", "w", "--scenes", "many"], ["--scenes", "'many'", "crosslight world --help"]),
        (["world", "w", "--style", "blue"], ["--style", "'blue'", "source", "target"]),
        (["data", "chek", "coco", "."], ["'chek'", "check"]),
        (["data", "check", "imagenet", "."], ["'imagenet'", "flickr8k"]),
        (["export", "no-such-run", "out"], ["no-such-run", "is no run folder"]),
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


def test_a_full_disk_is_one_line_of_every_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(command: str, arguments: object) -> int:
        raise RuntimeError("the writer failed") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x.npz")

    monkeypatch.setattr(cli, "run_command", full)
    expected = "crosslight: error: the disk is full (/data/x.npz). Free some space and start again.\n"
    assert fails(capsys, "embed") == (1, expected)


@pytest.mark.parametrize("arguments", [["--version"], ["search", "--help"]])
def test_who_has_read_enough_ends_it_without_a_word(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert fails(capsys, *arguments) == (128 + signal.SIGPIPE, "")


def test_another_pipe_that_breaks_is_an_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(command: str, arguments: object) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(cli, "run_command", broken)
        status, said = fails(capsys, "embed")
    assert status == 1
    assert "BrokenPipeError: [Errno 32] Broken pipe" in said


@pytest.fixture
def latin(tmp_path: Path) -> dict[str, str]:
    """An environment whose encoding is Latin-1, as LANG=en_US is on some clusters."""
    made = shutil.which("localedef")
    if (
        made is None
        or subprocess.run(
            [made, "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / "en_US.ISO-8859-1")], capture_output=True, check=False
        ).returncode
        > 1
    ):  # 1: with warnings
        pytest.skip("localedef or its sources are not installed, so there is no locale of another encoding to try")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8", "PYTHONIO"))}
    return {**kept, "LOCPATH": str(tmp_path), "LC_ALL": "en_US.ISO-8859-1"}


def test_texts_and_names_are_utf8_whatever_the_locale(latin: dict[str, str], tmp_path: Path) -> None:
    """Else the image is not found by its name, and where it is found its caption is another text."""
    write_image(tmp_path / "photos" / "caf\u00e9.jpg", 1)
    (tmp_path / "photos" / "a.csv").write_text(
        "path,caption,split\ncaf\u00e9.jpg,a caf\u00e9 \u2013 open,train\n", encoding="utf-8"
    )
    for command in ([sys.executable, "-m", "experiments.cli"], [str(Path(sys.executable).with_name("crosslight"))]):
        done = subprocess.run(
            [*command, "data", "check", "table", tmp_path / "photos"], env=latin, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr.strip()) == (0, b"")
        assert done.stdout.endswith(b"no problems found\n")
        asked = subprocess.run([*command, "caf\u00e9 \u2013".encode()], env=latin, capture_output=True, check=False)
        assert b"no command 'caf\xe9 \\u2013'" in asked.stderr  # the terminal's encoding, and what it lacks as an escape


@pytest.mark.parametrize(
    ("encoding", "environment", "again"),
    [("ISO-8859-1", {}, True), ("utf-8", {}, False), ("UTF8", {}, False), ("cp1252", {"PYTHONUTF8": "0"}, False)],
)
def test_utf8_is_taken_where_the_locale_has_another_encoding(
    encoding: str, environment: dict[str, str], again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(cli.os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(cli.locale, "getencoding", lambda: encoding)
    monkeypatch.setattr(cli.sys, "orig_argv", ["python", "-m", "experiments.cli", "demo"])
    for name in ("PYTHONUTF8", "PYTHONIOENCODING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cli._take_utf8()
    assert [arguments[:2] for arguments in started] == [
        (sys.executable, [sys.executable, "-m", "experiments.cli", "demo"])
    ] * again
    if again:
        assert started[0][2]["PYTHONUTF8"] == "1"
        assert started[0][2]["PYTHONIOENCODING"] == "ISO-8859-1:backslashreplace"
