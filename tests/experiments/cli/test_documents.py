"""README.md and docs/*.md against the parsers: every command line in them is one, and every command stands in one of them."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from experiments.cli._parser import with_subcommands
from experiments.cli.main import build_parser, command_names
from experiments.training.configs import find_configs

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENTS = [
    file
    for file in (*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md")))
    if "_build" not in file.parts
]
TRAINING = ("run", "fit", "validate", "test", "predict", "params")
BLOCK = re.compile(
    r"^(?:\$|   ) (?:srun |[A-Z_]+=\S+ )?crosslight (.+)$", re.MULTILINE
)  # a console line or an indented one, also in helps
INLINE = re.compile(r"`(?:srun )?crosslight ([^`]+)`")


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """Command lines behind `crosslight`, without what stands for something else; and whether they are whole ones."""
    text = re.sub(r"\\\n\s*", " ", text)
    for pattern, whole in ((BLOCK, True), (INLINE, False)):
        for line in pattern.findall(text):
            words = shlex.split(line.partition(" | ")[0].partition(" && ")[0], comments=True)
            whole_line = whole and "..." not in words
            kept = [word for at, word in enumerate(words) if word != "..." or words[at - 1].startswith("--")]
            yield [word if word == "..." else word.removesuffix("...") for word in kept], whole_line


LINES = [(file.name, words, whole) for file in DOCUMENTS for words, whole in commands(file.read_text())]


def loosen(parser: argparse.ArgumentParser) -> None:
    """Let a parser do without what it requires."""
    for action in parser._actions:
        action.required = False
        if not action.option_strings and action.nargs in (None, "+"):
            action.nargs = "?" if action.nargs is None else "*"


@pytest.mark.parametrize(("document", "words", "whole"), LINES, ids=[f"{name} {' '.join(words)}" for name, words, _ in LINES])
def test_command_lines_of_the_documents_parse(document: str, words: list[str], whole: bool) -> None:
    command, *arguments = words
    if command in ("COMMAND", "--help", "--version"):
        return
    assert command in command_names(), f"{document}: there is no command {command!r}"
    if {"--help", "--help-all"} & set(arguments):
        arguments = [word for word in arguments if not word.startswith("--help")]
        whole = False
    parser = build_parser(command)
    if not whole:  # a mention may leave out what a command needs, and nothing else
        for part in with_subcommands(parser):
            loosen(part)
    options = parser.parse_args(arguments)
    if command in TRAINING:
        for file in options.config:
            if file.startswith(("configs/", "experiments/")) and "$" not in file:
                find_configs(["-c", file])


def test_every_command_stands_in_a_document() -> None:
    missing = set(command_names()) - {words[0] for _, words, _ in LINES}
    assert not missing, f"no document has a command line of {', '.join(sorted(missing))}"


@cache
def training_options(command: str) -> tuple[str, ...]:
    """Names of the options that jsonargparse gives a training command."""
    from experiments.training.lightning_cli import CrosslightCLI
    from experiments.training.parse_errors import option_names

    class Found(Exception):
        pass

    class ParserOnly(CrosslightCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise Found(option_names(parser, command))

    with pytest.raises(Found) as found:
        ParserOnly([command])
    return tuple(found.value.args[0])


def test_training_options_of_documents_and_help_exist() -> None:
    """What stands in a document or in the short help is an option, its class's arguments aside: the YAMLs name the classes."""
    texts = [(name, words[0], words[1:]) for name, words, _ in LINES if words[0] in TRAINING[:-1]]
    texts += [("--help", name, re.findall(r"--[\w.]+", build_parser(name).epilog or "")) for name in TRAINING[:-1]]
    for document, command, words in texts:
        known = training_options(command)
        for word in words:
            option = word.partition("=")[0].removeprefix("--").removesuffix(".KEY").removesuffix(".NAME")
            if not word.startswith("--") or option in ("help", "help-all", "config"):
                continue
            head = option.split(".")[0]
            inside = head in ("model", "data", "evaluate") or option.startswith(("trainer.callbacks.", "trainer.logger."))
            assert option in known or (inside and head in known) or any(name.startswith(f"{option}.") for name in known), (
                f"{document}: crosslight {command} has no option {word}"
            )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_whole_training_lines_compose(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real parser, where all their files are packaged ones."""
    from experiments.training.lightning_cli import ParsedCLI

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(REPOSITORY / "tests" / "end_to_end" / "own")  # the examples of docs/extend
    for name in ("WORLD", "DATA", "WEIGHTS", "REGIONS"):
        monkeypatch.setenv(f"CROSSLIGHT_{name}", f"/roots/{name.lower()}")
    for words, whole in commands(document.read_text()):
        packaged = [word for word in words if word.startswith(("configs/", "experiments/"))]
        if whole and words[0] in TRAINING[:-1] and packaged and "$" not in " ".join(words):
            assert ParsedCLI([words[0], *find_configs(words[1:])]).plain["model"]
    assert os.listdir(tmp_path) == []
