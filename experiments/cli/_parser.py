"""The parser of a command: its help is its only description, and a mistake is an InputError of one line."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from datamodules.errors import InputError

_KEEPS_OTHERS = " others"  # in a namespace, until the options are handed on


class _Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written; the default of an option behind its help, where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shows = action.option_strings and action.default not in (None, [], argparse.SUPPRESS) and action.default is not False
        return f"{text} (default: %(default)s)" if shows and "default" not in text else text


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, with errors that say what was meant.

    Args:
        options: Those of `argparse.ArgumentParser`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Help, **options})

    def keep_others(self, name: str) -> None:
        """Hand on what this parser does not know, in `name` of the namespace: another parser reads it. Of a sub-command too."""
        self.set_defaults(**{_KEEPS_OTHERS: name})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The options.

        Raises:
            InputError: They are not what this parser takes.
        """
        options, unknown = self.parse_known_args(args, namespace)
        if (name := getattr(options, _KEEPS_OTHERS, None)) is not None:
            delattr(options, _KEEPS_OTHERS)
            setattr(options, name, unknown)
        elif unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hint(unknown[0])}")
        return options

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Argparse's own; an empty word for a path, of a variable that is not set, would mean the working folder."""
        if not arg_string.strip() and (action.type is Path or action.metavar in ("RUN", "PATH")):
            raise argparse.ArgumentError(action, "is empty: give a path, or . for the working folder")
        return super()._get_value(action, arg_string)

    def error(self, message: str) -> NoReturn:
        stop = "" if message.endswith("?") else "."
        raise InputError(f"{message}{stop} See {self.prog} --help.")

    def _hint(self, word: str) -> str:
        """What a word may have meant: an option that is spelled nearly so, or one of another sub-command."""
        option = word.partition("=")[0]
        owners = [parser.prog for parser in with_subcommands(self) if option in parser._option_string_actions]
        if owners:
            return f" ({option} is of {' and '.join(f'`{owner}`' for owner in owners)})"
        every = [name for parser in with_subcommands(self) for name in parser._option_string_actions]
        close = difflib.get_close_matches(option, every, 1) if option.startswith("--") else []
        return f" (Did you mean {close[0]}?)" if close else ""


def add_backbone(parser: Parser) -> None:
    """Of commands that load a model."""
    parser.add_argument(
        "--backbone", metavar="PATH",
        help="where the weights lie that an export needs, or what a run names by a path and that has moved (the run it started "
        "from, weights): the file or folder itself, or a folder that holds all of them",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="a tokenizer in place of the one that a run or an export names: a folder, or a name"
    )


def with_subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        for below in (action.choices or {}).values() if isinstance(action, argparse._SubParsersAction) else ():
            yield from with_subcommands(below)


def add_fields(
    parser: argparse._ActionsContainer, record: type, prefix: str = "--", joint: str = "_", defaults: bool = True
) -> None:
    """An option for each field of a dataclass: its name, type and default, and its help from the docstring's `Args`. What is not
    given is left out of the namespace (see `given_fields`).

    Args:
        parser: To add them to.
        record: A dataclass of texts, numbers, booleans, literals and lists of texts.
        prefix: Of the options' names, such as "--slurm.".
        joint: What stands for "_" in the options' names.
        defaults: Whether the help says the fields' own, which hold where nothing else is known.
    """
    helps = dict(re.findall(r"^    (\w+): (.+(?:\n {8,}.+)*)", inspect.getdoc(record) or "", re.MULTILINE))
    kinds = get_type_hints(record)
    for field in fields(record):
        default = field.default if field.default is not MISSING else None
        known = f" (default: {default})" if defaults and default is not None else ""
        parser.add_argument(
            f"{prefix}{field.name.replace('_', joint)}",
            dest=f"{prefix}{field.name}",
            default=argparse.SUPPRESS,
            help=(" ".join(helps[field.name].split()) + known).replace("%", "%%"),
            **_reading(kinds[field.name]),
        )


def given_fields(options: argparse.Namespace, record: type, prefix: str = "--") -> dict[str, Any]:
    """The fields of a dataclass that were given on the command line, by name."""
    values = vars(options)
    return {field.name: values[key] for field in fields(record) if (key := f"{prefix}{field.name}") in values}


def _reading(kind: Any) -> Mapping[str, Any]:
    """How argparse reads a value of a type."""
    if get_origin(kind) in (UnionType,):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is list:
        return {"type": _texts, "metavar": "[TEXT, ...]"}
    return {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, "TEXT")}


def _texts(text: str) -> list[str]:
    """A YAML list of texts, or one text."""
    from datamodules.files.yaml_file import parse_yaml

    try:
        value = parse_yaml(text, "a list") if text.startswith("[") else [text]
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no YAML list ({error})") from None
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of texts, such as [module load cuda]")
    return value


def comma_list(text: str) -> list[str]:
    """Names with commas or spaces between them."""
    return [name for name in text.replace(",", " ").split() if name]


def number_or(*words: str) -> Any:
    """How argparse reads a number from 0, or one of some words."""

    def parse(text: str) -> int | str:
        if text in words:
            return text
        if not text.isdecimal():
            raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 0 nor {' or '.join(words)}")
        return int(text)

    return parse


def require_writable(file: Path | None, option: str) -> None:
    """See that a file can be written, in a folder that is made where it is not there, before what is written takes time.

    Raises:
        InputError: It cannot.
    """
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(file.parent, os.W_OK) and not file.is_dir()
    except OSError as error:
        raise InputError(f"{option} {file} cannot be written ({error.strerror}). Give another file.") from None
    if not writable:
        raise InputError(f"{option} {file} {'is a folder' if file.is_dir() else 'cannot be written'}. Give another file.")


def require_ours(file: Path | None, option: str, begins: str) -> None:
    """See that a file that is there is one that the same option wrote.

    Args:
        file: That will be written.
        option: That names it.
        begins: What such a file begins with.

    Raises:
        InputError: It is another one.
    """
    if file is None or not file.is_file():
        return
    with file.open("rb") as there:
        begun = there.read(len(begins.encode()))
    if begun and begun != begins.encode():
        raise InputError(f"{option} {file} is there, and {option} did not write it. Give another name, or delete it.")


PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")


def require_picture(file: Path | None, option: str) -> None:
    """See that a picture can be written.

    Raises:
        InputError: It cannot, or its name does not say what it is.
    """
    if file is not None and file.suffix.lower() not in PICTURES:
        raise InputError(f"{option} {file}: give a name that ends in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}.")
    require_writable(file, option)


def require_apart(out: Path | None, option: str, inputs: Iterable[Path]) -> None:
    """See that what is written is none of what is read.

    Raises:
        InputError: It is: by its path, or by a link.
    """
    if out is None or not out.exists():
        return
    for each in inputs:
        if each.exists() and out.samefile(each):
            raise InputError(f"{option} {out} is {each}, which is read: writing would destroy it. Give another file.")


def refuse_given(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises InputError where one of these options was given: --NAME WHY."""
    for name in names:
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} {why}")
