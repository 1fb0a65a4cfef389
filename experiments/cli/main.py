"""The `crosslight` command: finds a command's file, reads its options, runs it.

A command is a file of this folder. Its docstring is its description (the first line stands in the overview), its
`add_options(parser)` has its options with their help, and its `run(options)` returns the exit status. Files whose names begin
with `_` are no commands. What commands import at their top is light, so that help and mistakes cost no time; what is heavy they
import when they run.
"""

from __future__ import annotations

import codecs
import difflib
import importlib
import inspect
import io
import locale
import os
import pkgutil
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from datamodules.errors import AgreedError, InputError, chain, find_input_error, line_of
from experiments.cli._parser import Parser
from experiments.training.failures import is_disk_full, lost_worker, one_line, with_log
from experiments.training.starts import find_start, rank_here

_HERE = Path(__file__).parent
_SEVERAL = ("run", "fit", "validate", "test", "predict")  # commands of several processes; predict says what it takes


def command_names() -> list[str]:
    """All commands, by their files."""
    return sorted(
        file.name for file in pkgutil.iter_modules([str(_HERE)]) if not file.name.startswith("_") and file.name != "main"
    )


def build_parser(command: str) -> Parser:
    """The parser of one command. Its file alone is imported."""
    module = _module(command)
    parser = Parser(prog=f"crosslight {command}", description=inspect.getdoc(module))
    module.add_options(parser)
    return parser


def run_command(command: str, arguments: Sequence[str]) -> int:
    """`crosslight COMMAND ARGUMENTS`. Returns the exit status.

    Raises:
        InputError: There is no such command, or what it was given cannot be used.
    """
    names = command_names()
    if command not in names:
        close = difflib.get_close_matches(command, names, 1)
        raise InputError(f"no command {command!r}." + (f" Did you mean {close[0]!r}?" if close else " See crosslight --help."))
    if command not in _SEVERAL and "TORCHELASTIC_RUN_ID" in os.environ and (started := find_start().processes) > 1:
        raise AgreedError(f"crosslight {command} is one process, and torchrun started {started}: start it without.")
    return int(_module(command).run(build_parser(command).parse_args(list(arguments))))


def overview() -> str:
    """What `crosslight --help` prints."""
    lines = [f"  {name:<10}{(inspect.getdoc(_module(name)) or '').splitlines()[0]}" for name in command_names()]
    return "\n".join(
        [
            "usage: crosslight COMMAND [options]\n",
            "Train, test and explain light adaptations of vision-language models.\n",
            *lines,
            "\ncrosslight COMMAND --help says more.",
        ]
    )


def _take_utf8() -> None:
    """Start this process again in Python's UTF-8 mode, where the locale's encoding is another (a cluster's LANG=en_US is
    Latin-1): captions and names of files would be read otherwise than they were written. The terminal keeps its encoding."""
    encoding = locale.getencoding()
    if sys.flags.utf8_mode or "PYTHONUTF8" in os.environ or codecs.lookup(encoding).name == "utf-8":
        return
    changed = {"PYTHONUTF8": "1", "PYTHONIOENCODING": os.environ.get("PYTHONIOENCODING", f"{encoding}:backslashreplace")}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **changed})


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 the run failed or a check found problems, 2 bad input, 130 interrupted."""
    if argv is None:
        _take_utf8()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no accents ends no run
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            status = _answered(arguments)
        finally:
            if sys.stdout is not None:  # started without one
                sys.stdout.flush()
    except KeyboardInterrupt:
        print("crosslight: interrupted.", file=sys.stderr)
        status = 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():  # as by `| head`, which has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        known = find_input_error(error)
        message = _told(error) if known is None else str(known)
        if not isinstance(known, AgreedError) or rank_here() == 0:  # of many that say the same
            print(f"crosslight: error: {message}", file=sys.stderr)
        status = 1 if known is None else 2
    if status is not None:
        sys.exit(status)


def _answered(arguments: Sequence[str]) -> int | None:
    """Returns the exit status of a command; None where none was asked for."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return None
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("crosslight"))
        return None
    return run_command(arguments[0], arguments[1:])


def _is_unread() -> bool:
    """Whether nobody reads any more what is printed."""
    output = select.poll()
    output.register(sys.stdout, 0)
    return any(state & select.POLLERR for _, state in output.poll(0))


def _told(error: Exception) -> str:
    """What is wrong where it is no mistake in the input."""
    if (full := next((each for each in chain(error) if is_disk_full(each)), None)) is not None:
        place = getattr(full, "filename", None)
        return line_of(f"the disk is full ({place or 'while writing'}). Free some space and start again.")
    return lost_worker(error) or with_log(f"{type(error).__name__}: {one_line(error)}", error)


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"experiments.cli.{command}")


if __name__ == "__main__":
    main()
