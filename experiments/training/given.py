"""Where on the command line and in its files an option was given, and as what."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from datamodules.errors import InputError
from datamodules.files.yaml_file import parse_yaml, read_yaml

_OBJECTS = ("trainer.callbacks", "trainer.logger", "trainer.plugins")  # lists of classes


def all_given(arguments: list[str]) -> Iterator[tuple[str, Any, str]]:
    """(dotted name, value, place) of everything given, what wins first: the command line, then its files, the last first."""
    for place, argument in reversed(list(enumerate(arguments))):
        if argument.startswith("--") and not argument.startswith("--config"):
            name, equals, value = argument.removeprefix("--").partition("=")
            follows = arguments[place + 1] if place + 1 < len(arguments) else ""
            value = value if equals else follows
            yield name, value, "on the command line"
            if value.startswith(("{", "[")):  # options of a class, or a list of classes, in one word
                with contextlib.suppress(InputError):
                    yield from ((inner, its, "on the command line") for inner, its in leaves(parse_yaml(value, name), f"{name}."))
    for file in files(arguments):
        try:
            content = read_yaml(Path(file))
        except InputError:
            continue
        yield from ((name, value, f"in {file}") for name, value in leaves(content))


def leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a YAML with its dotted name, inner ones after the one that holds them."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield f"{prefix}{key}", value
            yield from leaves(value, f"{prefix}{key}.")
    elif isinstance(content, list):  # of classes, whose options the command line names without a number
        for value in content:
            yield from leaves(value, prefix)


def find(tail: str, given: list[tuple[str, Any, str]], value: str | None = None) -> tuple[str, str] | None:
    """Whole name and place of the option that ends in `tail` (and has that value, where one is known)."""
    for name, its_value, place in given:
        if (name == tail or name.endswith(f".{tail}")) and (value is None or str(its_value) == value):
            return name, place
    return None


def holder(class_path: str, given: list[tuple[str, Any, str]]) -> tuple[str, str] | None:
    """Name and place of the option that names a class."""
    held = next(((name, place) for name, value, place in given if value == class_path), None)
    return None if held is None else (held[0].removesuffix("+").removesuffix(".class_path"), held[1])


def files(arguments: list[str]) -> Iterator[str]:
    """The configuration files of a command line, the last first."""
    for place, argument in reversed(list(enumerate(arguments))):
        if argument in ("-c", "--config") and place + 1 < len(arguments):
            yield arguments[place + 1]
        elif argument.startswith("--config="):
            yield argument.partition("=")[2]


def as_written(options: Any, owner: type, given: Sequence[tuple[str, Any, str]], section: str = "trainer") -> None:
    """Give options that take integers and other numbers alike the kind that was written: 2 is two batches, 2.0 is not.

    jsonargparse tries the kinds in the order of the type, and typing has one object for both orders: which came first in this
    process decides, and with it the hash of the configuration.

    Args:
        options: Parsed ones of the section, changed in place.
        owner: The class whose constructor takes them.
        given: All that was given, see `all_given`.
        section: Their name there.
    """
    kinds = get_type_hints(owner.__init__)  # type: ignore[misc]
    both = {name for name in inspect.signature(owner).parameters if {int, float} <= set(_flat(kinds.get(name)))}
    written: dict[str, Any] = {}
    for name, value, _ in given:
        written.setdefault(name, value)
    for name in both:
        value, raw = options.get(name), written.get(f"{section}.{name}")
        raw = parse_yaml(raw, name) if isinstance(raw, str) and isinstance(value, (int, float)) else raw
        if type(value) in (int, float) and type(raw) in (int, float) and value == raw:
            options[name] = raw


def _flat(kind: Any) -> Iterator[Any]:
    yield kind
    for part in get_args(kind):
        yield from _flat(part)


def replaced_lists(given: Sequence[tuple[str, Any, str]]) -> Iterator[str]:
    """A remark on every list of objects (callbacks, loggers) from which a later file or option drops some by giving its own.

    This is how lists merge, and `+` appends instead; but a callback should not get lost unsaid.
    """
    held: dict[str, tuple[list[str], str]] = {}
    for name, value, place in reversed(given):  # what wins comes last
        key = name.removesuffix("+")
        if key not in _OBJECTS:
            continue
        before, earlier = held.get(key, ([], ""))
        paths = list(_paths(value))
        if name.endswith("+"):
            held[key] = ([*before, *paths], place)
            continue
        lost = [path for path in before if path not in paths]
        if lost and paths:
            yield (
                f"{key} ({place}) replaces what was given {earlier}: {', '.join(lost)} is dropped. "
                f"Write {key.rpartition('.')[2]}+ to add to the list."
            )
        held[key] = (paths, place)


def _paths(value: Any) -> Iterator[str]:
    """Class paths of a list of classes, of one, or of a text that names one."""
    if isinstance(value, str):
        try:
            value = parse_yaml(value, "a list")
        except InputError:
            return
    for each in value if isinstance(value, list) else [value]:
        path = each.get("class_path") if isinstance(each, dict) else each
        if isinstance(path, str):
            yield path
