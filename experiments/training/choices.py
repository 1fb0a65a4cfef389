"""What can be named where a class is an option: the package's own classes, and its YAMLs that choose one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import textwrap
import typing
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, callbacks, loggers
from lightning.pytorch.loggers import Logger

from datamodules.errors import InputError
from datamodules.files.yaml_file import parse_yaml
from experiments.training.configs import packaged_configs, packaged_text
from experiments.training.given import all_given, leaves

_OURS = ("lightning_modules", "datamodules")
# Where the classes of Lightning's kinds are; those of a kind of our own are beside it, or below.
_ROOMS: dict[type, tuple[str, bool]] = {
    LightningModule: ("lightning_modules", False), LightningDataModule: ("datamodules", False),
    Callback: ("lightning_modules.callbacks", True),
}  # fmt: skip
_THEIRS = {Callback: callbacks, Logger: loggers}
_WIDTH = 120


def offered(base: type) -> list[type]:
    """Our classes of a kind that can be named, in the order of their modules."""
    room, deep = _ROOMS.get(base, (base.__module__.rpartition(".")[0], True))
    if room.split(".")[0] not in _OURS:
        return []
    found: dict[type, None] = {}
    for module in _modules(room, deep):
        for kind in vars(module).values():
            ours = inspect.isclass(kind) and issubclass(kind, base) and kind.__module__ == module.__name__
            if ours and not inspect.isabstract(kind) and not kind.__name__.startswith("_"):
                found[kind] = None
    # what all others derive from is no choice, but what one's own may derive from
    return [kind for kind in found if len(found) == 1 or not all(issubclass(other, kind) for other in found)]


def load_choices() -> None:
    """Import what options can name."""
    for room, deep in (
        *_ROOMS.values(),
        *((f"lightning_modules.{part}", True) for part in ("adapters", "networks", "objectives")),
    ):
        _modules(room, deep)


def _modules(room: str, deep: bool) -> list[ModuleType]:
    path = importlib.import_module(room).__path__
    found = pkgutil.walk_packages(path, f"{room}.") if deep else pkgutil.iter_modules(path, f"{room}.")
    return [importlib.import_module(name) for name in sorted(each.name for each in found if deep or not each.ispkg)]


def answer(arguments: Sequence[str]) -> str | list[str]:
    """What `--NAME.help` without a class asks for: a list to print, or, where an option or a file has chosen the class, the
    arguments with that class. Others are given back as they are.

    Args:
        arguments: The command line, sub-command first, with files that exist.

    Raises:
        InputError: The option is of a model or data module, and takes no class.
    """
    for place, word in enumerate(arguments):
        follows = arguments[place + 1] if place + 1 < len(arguments) else "-"
        if not (word.startswith("--") and word.endswith(".help") and follows.startswith("-")):
            continue
        name = word.removeprefix("--").removesuffix(".help")
        given = [each for each in all_given(list(arguments)) if not each[0].endswith(".help")]
        if (path := _chosen(name, given)) is not None:
            return [*arguments[: place + 1], path, *arguments[place + 1 :]]
        if bases := _bases(name, given):
            return listing(name, bases)
        if name.partition(".")[0] in ("model", "data", "evaluate"):
            raise InputError(
                f"{word}: no class can be named there, as far as the files and options before it say. --model.help and "
                "--data.help list the classes; with one of them behind it they print its options."
            )
    return list(arguments)


def listing(name: str, bases: Sequence[type]) -> str:
    """The classes and files that can be given for an option, with their first lines."""
    kinds = [kind for base in bases for kind in offered(base)]
    theirs = [room for base, room in _THEIRS.items() if base in bases]
    lines = [f"--{name}.help CLASS prints the options of a class; after a file that chooses one (-c FILE), --{name}.help does."]
    lines += ["", f"classes for --{name}:", *_entries((_path(kind), _about(kind)) for kind in kinds)]
    lines += [f"  of {room.__name__}: {', '.join(room.__all__)}" for room in theirs]
    lines += [f"  your own, in a file on PYTHONPATH, which derives from {_path(base)}" for base in bases]
    for part, parts in _parts(kinds).items():
        lines += ["", f"for --{name}.init_args.{part} of these:", *_entries((_path(kind), "") for kind in parts)]
    if files := _files(name):
        lines += ["", "packaged files that choose one (-c FILE):", *_entries(files)]
    return "\n".join(lines)


def _chosen(name: str, given: Sequence[tuple[str, Any, str]]) -> str | None:
    """The class that is chosen for an option."""
    wanted = (name, f"{name}.class_path")
    paths = (value for key, value, _ in given if key in wanted and isinstance(value, str))
    return next((path for path in paths if re.fullmatch(r"\w+(\.\w+)+", path)), None)


def _bases(name: str, given: Sequence[tuple[str, Any, str]]) -> list[type]:
    """The kinds that an option takes; empty where it takes no classes, or nobody knows."""
    known: dict[str, type] = {
        "model": LightningModule, "data": LightningDataModule, "trainer.callbacks": Callback, "trainer.logger": Logger
    }  # fmt: skip
    if name in known:
        return [known[name]]
    if name == "evaluate" or (name.startswith("evaluate.") and name.count(".") == 1):
        return [LightningDataModule]
    owner, _, argument = name.rpartition(".init_args.")
    path = _chosen(owner, given)
    module, _, tail = (path or "").rpartition(".")
    if not module:
        return []
    try:
        kind = getattr(importlib.import_module(module), tail, None)
    except ImportError:  # the parser says so
        return []
    return _classes_of(kind, argument) if inspect.isclass(kind) else []


def _classes_of(kind: type, argument: str) -> list[type]:
    """Our classes in the annotation of an argument that is given by class path."""
    try:
        annotation = typing.get_type_hints(kind.__init__).get(argument)  # type: ignore[misc]
    except (NameError, TypeError):  # of a class of the user's own
        return []
    found = [each for each in (annotation, *typing.get_args(annotation)) if inspect.isclass(each)]
    return [each for each in found if each.__module__.split(".")[0] in _OURS and not hasattr(each, "__dataclass_fields__")]


def _parts(kinds: Sequence[type]) -> dict[str, list[type]]:
    """What the arguments of these classes that are classes themselves can be."""
    parts: dict[str, dict[type, None]] = {}
    for kind in kinds:
        for argument in inspect.signature(kind).parameters:
            for base in _classes_of(kind, argument):
                parts.setdefault(argument, {}).update(dict.fromkeys(offered(base)))
    return {argument: list(found) for argument, found in parts.items() if found}


def _files(name: str) -> list[tuple[str, str]]:
    """Packaged files that choose a class for an option, with what they say of themselves."""
    found = []
    for file in packaged_configs():
        text = packaged_text(file)
        if _chosen(name, [(key, value, "") for key, value in leaves(parse_yaml(text, file))]) is not None:
            found.append((file, _first_line(text.lstrip("# ") if text.startswith("#") else "")))
    return found


def _entries(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Names beside what they are, which is cut to a line."""
    known = list(rows)
    wide = max((len(name) for name, _ in known), default=0)
    room = max(30, _WIDTH - wide)
    return [f"  {name:<{wide}}  {textwrap.shorten(text, room, placeholder=' ...')}".rstrip() for name, text in known]


def _about(kind: type) -> str:
    """The first line of its docstring, or of its file's where that says so."""
    text = _first_line(inspect.getdoc(kind))
    return _first_line(inspect.getdoc(inspect.getmodule(kind))) if text.startswith("See the top of the file") else text


def _first_line(text: str | None) -> str:
    return text.strip().splitlines()[0] if text and text.strip() else ""


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
