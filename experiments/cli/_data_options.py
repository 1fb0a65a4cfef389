"""The options of a data set on the command line: those of its class, read by its typed signature as a run reads them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from datamodules.errors import InputError
from datamodules.loading.region_files import RegionFiles
from datamodules.prepare.data_sets import source_of


def data_options(kind: str, arguments: Sequence[str], action: str, own: Sequence[str]) -> dict[str, Any]:
    """Arguments of the class of a data set; nothing is imported where there are none. `--help-all` prints them and ends.

    Args:
        kind: Of the data set.
        arguments: Of the command line, those that are not the action's.
        action: For messages: check, regions.
        own: The action's options, for what was misspelled.

    Raises:
        InputError: The class has no such option, or it takes no such value.
    """
    if not arguments:
        return {}
    import jsonargparse

    if kind == "folder":
        raise InputError(f"data {action} folder: unrecognized arguments: {' '.join(arguments)}.")
    source = source_of(kind)
    parser = jsonargparse.ArgumentParser(prog=f"crosslight data {action} {kind} ROOT", exit_on_error=False, add_help=False)
    parser.add_class_arguments(source, skip={"root"})
    has_regions = any("--regions" in known.option_strings for known in parser._actions)  # a data module has, files alone have not
    if action == "check" and not has_regions and any(word.startswith(("--regions", "--help-all")) for word in arguments):
        parser.add_argument("--regions", type=RegionFiles, help="databases of region features, to check in place of images")
    if "--help-all" in arguments:
        print(parser.format_help())
        raise SystemExit(0)
    names = [name for act in parser._actions for name in act.option_strings if name.startswith("--")]
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("-") and not any(_key(name) == known or _key(name).startswith(f"{known}.") for known in names):
            close = difflib.get_close_matches(_key(name), [*names, *(f"--{word.replace('_', '-')}" for word in own)], 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise InputError(f"data {action} {kind}: unrecognized argument {name}.{hint} --help-all lists the options of {kind}.")
    try:
        given = [_key(word.partition("=")[0]) + "".join(word.partition("=")[1:]) for word in arguments]
        read = parser.instantiate_classes(parser.parse_args(given))
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        reason = re.sub(r"(?:a )?typing\.Literal\[(.*?)\]", r"one of \1", " ".join(str(error).split()))
        # of a Union what the first kind lacks: the others are None
        reason = re.sub(r"Does not validate against any of the Union subtypes.*? Errors: - (.*?) - Expected .*", r"\1", reason)
        reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", reason)
        raise InputError(f"data {action} {kind}: {reason}. --help-all lists the options.") from None
    return dict(vars(read))


def _key(word: str) -> str:
    """An option as the class spells it: --image-dir is --image_dir."""
    return f"--{word[2:].replace('-', '_')}" if word.startswith("--") else word
