"""Turns what jsonargparse says about a mistake into a few lines: which option, given where, what is wrong, what was meant.

jsonargparse nests its messages (a class inside a class inside a Union repeats the cause at every level, with the types and
values of all of them) and names an option by its last part only. Here the innermost cause is taken out, and the option is
looked up in the command line and its files, so that the user reads its whole name and its place.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, callbacks, loggers
from omegaconf.errors import OmegaConfBaseException

from experiments.training.choices import load_choices, offered
from experiments.training.failures import one_line, own_reasons
from experiments.training.given import all_given, find, holder

_UNKNOWN = re.compile(r"Option '([^']+)' is not accepted|does not accept option '([^']+)'|Key '([^']+)' is not expected")
_UNRECOGNISED = re.compile(r"unrecognized arguments: (.+)")
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_NEEDS = re.compile(r"Problem with given class_path '([^']+)':\s+the following arguments are required: (.+)")
_CLASS = re.compile(  # a class that is there but was given something wrong is "a problem with its class_path" too
    r"Problem with given class_path '([^']+)':\s+(?=\S)(?!Parser key|the following arg|Option |unrecognized)(.+)"
    r"|Expected a dot import path string: (\S+)"
)
_OTHER_KIND = re.compile(r"Import path .*?does not correspond to a subclass of (\w+)")
_KEY = re.compile(r'^( *(?:- )?)Parser key "([^"]+)":(.*)$', re.MULTILINE)
_EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: (.*))?$", re.MULTILINE)
_NO_CLASS = re.compile(r"Not a valid subclass of (\w+)(?:\. Got value: (.*))?$", re.MULTILINE)
_WHOLE = re.compile(r'Parser key "([^"]+)":\s+Unable to load config "(.*)"')
_GIVEN = re.compile(r"^ *Given value: (?:NestedArg\(key='[^']*', val='(.*)'\)|(.*))$", re.MULTILINE)
_OURS = ("lightning_modules", "datamodules")


def explain(message: str, parser: Any, arguments: list[str]) -> str:
    """At most six lines about a failed parse.

    Args:
        message: What jsonargparse said.
        parser: The parser of the whole command line.
        arguments: The command line that it parsed, sub-command first.
    """
    given = list(all_given(arguments))
    if "is abstract" in message and (lacking := _unwritten(given)):
        return lacking
    if found := _UNRECOGNISED.search(message):
        return _unknown(found[1].split()[0], parser, arguments, given)
    if found := _UNKNOWN.search(message):
        return _unknown(next(group for group in found.groups() if group), parser, arguments, given)
    if found := _CLASS.search(message):
        return _bad_class(found[1] or found[3], found[2], given)
    if found := _NEEDS.search(message):
        owner, place = holder(found[1], given) or holder(found[1].rpartition(".")[2], given) or ("", "")
        needed = ", ".join(f"--{owner}.init_args.{name.strip()}" if owner else name.strip() for name in found[2].split(","))
        return f"{found[1]}{f' ({place})' if place else ''} needs {needed}."
    if found := _REQUIRED.search(message):
        names = [name.strip().removeprefix(f"{arguments[0]}.") for name in found[1].split(",")]
        text = f"not given: {', '.join(names)}."
        files = [f"-c configs/{name}/NAME.yaml" for name in names if name in ("model", "data")]
        return (
            f"{text}\nTake a packaged configuration ({' '.join(files)}; --help lists them) or write your own." if files else text
        )
    if "Problems parsing config" in message or "Unexpected config" in message or "File does not exist" in message:
        return _first_lines(message)
    if found := _WHOLE.search(message):
        name, place = find(found[1], given) or (found[1], "")
        return (
            f"{name}{f' ({place})' if place else ''} is {found[2][:80]!r}, but has options of its own: give them by name "
            f"(--{name}.NAME=...), or a YAML file of them."
        )
    if keys := list(_KEY.finditer(message)):
        return _bad_value(message, max(keys, key=lambda key: len(key[1])), given)
    return _first_lines(message)


def explain_interpolation(error: OmegaConfBaseException, arguments: list[str]) -> str:
    """One line about a `${...}` that does not resolve."""
    name = str(error.full_key or "").removeprefix(f"{arguments[0]}.")
    place = next((f" ({place})" for option, _, place in all_given(arguments) if option == name), "")
    reason = str(error).splitlines()[0].split(" (resolved to")[0]
    if variable := re.search(r"Environment variable '(\w+)' not found", reason):
        return (
            f"{name or 'a value'}{place}: the environment variable {variable[1]} is not set.\n"
            f"Set it, or write a default: ${{oc.env:{variable[1]},default}}."
        )
    return (
        f"{name or 'a value'}{place}: {reason}.\n"
        "Inside ${...} stand whole names (${data.init_args.batch_size}) or ${oc.env:VARIABLE,default}."
    )


def _unwritten(given: list[tuple[str, Any, str]]) -> str | None:
    """What classes that were given, which the parser has imported, do not write of what their base class asks for."""
    for path in (value for _, value, _ in given if isinstance(value, str)):
        module, _, name = path.rpartition(".")
        owner: Any = getattr(sys.modules.get(module), name, None)
        if inspect.isabstract(owner):
            bases = ", ".join(f"{base.__module__}.{base.__name__}" for base in owner.__bases__)
            names = ", ".join(sorted(owner.__abstractmethods__))
            return f"{path} does not write {names}, which {bases} asks for."
    return None


def _first_lines(message: str) -> str:
    lines = list(dict.fromkeys(line.rstrip() for line in message.splitlines() if line.strip()))
    return "\n".join(line if len(line) <= 200 else line[:200] + " ..." for line in lines[:5])


# ------------------------------------------------------------------------------------------------- kinds of mistakes


def _unknown(option: str, parser: Any, arguments: list[str], given: list[tuple[str, Any, str]]) -> str:
    if not option.startswith("-") and find(option, given) is None:
        return f"{option!r} is not an option (options begin with --, files follow -c)."
    name = option.removeprefix("--").partition("=")[0]
    name, place = find(name, given) or (name, "")
    command = arguments[0] if arguments else ""
    dashes = "--" if place == "on the command line" else ""
    hint = f"\nSee crosslight {command} --help-all."
    parent, tail, kind = _taker(name, given)
    if kind is not None:
        takes = _parameters(kind)
        if tail in takes:  # its type decides how a text is read
            return (
                f"{name}{f' ({place})' if place else ''}: {_path(kind)} does not say of what type {tail} is. Annotate it there."
            )
        close = [f"{parent}.{argument}" for argument in difflib.get_close_matches(tail, takes, 1, 0.7)]
        hint = f"\n{kind.__name__} {'takes: ' + ', '.join(takes) if takes else 'takes no options'}."
    else:
        close = _closest(name, option_names(parser, command), _class_arguments())
    if close:
        hint = f"\nDid you mean {dashes}{close[0]}?"
    return f"there is no option {dashes}{name}{f' ({place})' if place else ''}.{hint}"


def _taker(name: str, given: list[tuple[str, Any, str]]) -> tuple[str, str, type | None]:
    """Where a name goes wrong: what is before, the part, and the class that does not take it, where that is known. Of
    model.init_args.rerank.k_test it is `rerank` where the module has no such option."""
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        kind = _class_at(".".join(parts[:place]), given) if part == "init_args" else None
        if kind is not None and (place + 2 == len(parts) or parts[place + 1] not in _parameters(kind)):
            return ".".join(parts[: place + 1]), parts[place + 1], kind
    parent, _, tail = name.rpartition(".")
    return parent, tail, None


def _bad_class(path: str, reason: str | None, given: list[tuple[str, Any, str]]) -> str:
    held = holder(path, given)
    option = f"{held[0]} ({held[1]}): " if held else ""
    load_choices()  # what is not loaded can be meant too
    names = [_path(kind) for kind in _classes()]
    names += [f"{room.__name__}.{name}" for room in (callbacks, loggers) for name in room.__all__]
    tails = {name.split(".")[-1]: name for name in reversed(names)}
    close = difflib.get_close_matches(path, names, 1) or [
        tails[tail] for tail in difflib.get_close_matches(path.split(".")[-1], tails, 1, 0.75)
    ]
    hint = f"\nDid you mean {close[0]}?" if close else ""
    because = f" ({' '.join(reason.split())[:120]})" if reason else ""
    if close and close[0] == path:  # it is there
        return f"{option}{path} cannot be made of what it is given{because}: give its options by name, below init_args."
    return f"{option}there is no class {path!r}{because}.{hint}"


def _other_kind(kinds: list[str], tail: str, given: list[tuple[str, Any, str]]) -> str:
    option = next(((name, value, place) for name, value, place in given if name == tail or name.endswith(f".{tail}")), None)
    name, value, place = option or (tail, "that class", "")
    value = value.get("class_path") if isinstance(value, dict) else value
    bases = [kind for kind in _classes() if kind.__name__ in kinds]
    takes = _listed([_path(kind) for base in bases for kind in offered(base)])
    takes += [f"your own that derives from {_path(base)}" for base in bases if inspect.isabstract(base)]
    choice = f"\nIt takes: {', '.join(takes)}." if takes else ""
    module, _, tail = str(value).rpartition(".")
    if inspect.isfunction(getattr(sys.modules.get(module), tail, None)):
        choice += f"\n{tail} is a function: say in its annotation what it gives back (-> {kinds[0]})."
    return f"{name}{f' ({place})' if place else ''}: {value} is no {' or '.join(dict.fromkeys(kinds))}.{choice}"


def _listed(paths: list[str]) -> list[str]:
    """Class paths; of more than three the room that all are in is told once."""
    room = paths[0].rsplit(".", 2)[0] if paths else ""
    if len(paths) <= 3 or not all(path.startswith(f"{room}.") for path in paths):
        return paths
    first, *others = (path.removeprefix(f"{room}.") for path in paths)
    return [f"of {room} {first}", *others]


def _bad_value(message: str, key: re.Match[str], given: list[tuple[str, Any, str]]) -> str:
    depth = len(key[1]) - len(key[1].lstrip())
    rest = ""
    for line in message[key.end() :].splitlines(keepends=True):  # what is indented deeper belongs to this key
        if line.strip() and len(line) - len(line.lstrip()) <= depth:
            break
        rest += line
    if key[3].strip():  # the reason stands on the line of the key
        return f"{key[2]}: {key[3].strip()[:200]}"
    if kinds := _OTHER_KIND.findall(rest):
        return _other_kind(kinds, key[2], given)
    if reasons := own_reasons(rest):  # a module that cannot be imported
        name, place = find(key[2], given) or (key[2], "")
        return f"{name}{f' ({place})' if place else ''}: {one_line(Exception(reasons[0]))}"
    value_line = _GIVEN.search(rest)
    block = rest[: value_line.start()] if value_line else rest
    expected = list(_EXPECTED.finditer(block))
    classes = list(_NO_CLASS.finditer(block))
    if not expected and not classes:
        return f"{key[2]}: {_first_lines(block)}"
    got = next((match[2] for match in [*expected, *classes] if match[2] is not None), None)
    if got is None and value_line:
        got = value_line[1] if value_line[1] is not None else value_line[2]
    got = (got or "").strip()
    name, place = find(key[2], given, got) or find(key[2], given) or (key[2], "")
    wanted = [f"the class path of a {match[1]}" for match in classes]
    wanted += [_readable(match[1]) for match in expected if not match[1].startswith("path but ")]  # a file is tried first
    text = f"{name}{f' ({place})' if place else ''} must be {' or '.join(dict.fromkeys(wanted))}, not {got[:80]!r}."
    if got in ("None", "none") and "null" in wanted:
        text += "\nYAML's word for nothing is null."
    if misplaced := _misplaced(name, given):
        where = f"{name}{f' ({place})' if place else ''}"
        text = f"{where} has {', '.join(misplaced)} beside class_path: options of a class stand below init_args."
    choices = [choice for match in expected for choice in re.findall(r"'([^']*)'", match[1]) if "Literal" in match[1]]
    if close := difflib.get_close_matches(got, choices, 1):
        text += f"\nDid you mean {close[0]}?"
    return text


def _misplaced(name: str, given: list[tuple[str, Any, str]]) -> list[str]:
    """Options of a class that are written where its class_path is."""
    value = next((value for key, value, _ in given if key == name and isinstance(value, dict)), {})
    return [key for key in value if key not in ("class_path", "init_args", "dict_kwargs")] if "class_path" in value else []


def _readable(kind: str) -> str:
    """`<class 'int'>` -> int, `typing.Literal['a', 'b']` -> one of a, b, `<class 'NoneType'>` -> null."""
    kind = kind.strip().rstrip(".")
    if kind.startswith("typing.Literal["):
        return "one of " + ", ".join(kind.removeprefix("typing.Literal[").removesuffix("]").replace("'", "").split(", "))
    name = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", kind).replace("typing.", "")
    return {"NoneType": "null", "str": "text", "bool": "true or false", "float": "a number", "int": "an integer"}.get(name, name)


# ------------------------------------------------------------------------------------------------------ what there is


def option_names(parser: Any, command: str) -> list[str]:
    """Options of the sub-command's parser."""
    choices = (getattr(action, "choices", None) for action in parser._actions)
    parsers = [each[command] for each in choices if isinstance(each, dict) and command in each]
    actions = [action for each in parsers or [parser] for action in each._actions]
    return [option.removeprefix("--") for action in actions for option in action.option_strings if option.startswith("--")]


def _classes() -> list[type]:
    """Our own classes that are loaded: what configurations name."""
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in _OURS and module is not None]
    found = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    return sorted(
        (kind for kind in found if kind.__module__.split(".")[0] in _OURS and not issubclass(kind, BaseException)),
        key=_path,
    )


def _class_at(name: str, given: list[tuple[str, Any, str]]) -> type | None:
    """The class that is configured under a dotted name, if it is one of ours or loaded."""
    path = next((value for key, value, _ in given if key in (name, f"{name}.class_path") and isinstance(value, str)), None)
    module, _, tail = (path or "").rpartition(".")
    loaded = getattr(sys.modules.get(module), tail, None)  # somebody's own
    ours = next((kind for kind in _classes() if path == _path(kind)), None)
    return ours or (loaded if inspect.isclass(loaded) else None)


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _parameters(kind: type) -> list[str]:
    """Arguments of a class, with those of its bases where it hands on what it does not know."""
    names: list[str] = []
    for base in kind.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is None:
            continue
        try:
            parameters = list(inspect.signature(constructor).parameters.values())[1:]
        except (ValueError, TypeError):  # a constructor without a readable signature
            break
        names += [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return list(dict.fromkeys(names))


def _class_arguments() -> dict[str, str]:
    """Arguments of our classes; those of modules and data modules with the name they have on the command line."""
    names: dict[str, str] = {}
    for kind in _classes():
        section = "model" if issubclass(kind, LightningModule) else "data" if issubclass(kind, LightningDataModule) else None
        for argument in _parameters(kind):
            if section is not None or argument not in names:
                names[argument] = f"{section}.init_args.{argument}" if section else argument
    return names


def _closest(name: str, options: list[str], class_arguments: dict[str, str]) -> list[str]:
    """The existing option nearest to a name, or none: in the same section first, then by its last part."""
    parent, _, tail = name.rpartition(".")
    if parent.split(".")[0] in ("model", "data", "evaluate"):  # inside a class
        begun = sorted((each for each in class_arguments if len(tail) > 2 and each.startswith(tail)), key=len)
        close = begun[:1] or difflib.get_close_matches(tail, class_arguments, 1, 0.7)
        if close and "init_args" not in parent.split("."):  # left out or mistyped
            return [class_arguments[close[0]]]
        return [f"{parent}.{each}" for each in close]
    siblings = [option for option in options if option.rpartition(".")[0] == parent]
    if close := difflib.get_close_matches(name, siblings, 1):
        return close
    tails = {argument: full for argument, full in class_arguments.items() if "." in full}
    tails |= {option.split(".")[-1]: option for option in reversed(options)}
    return [tails[each] for each in difflib.get_close_matches(tail, tails, 1)]
