"""`crosslight sweep`: many runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from datamodules.errors import InputError
from experiments.papers.schema import SCALES
from experiments.sweep.points import Search, sweep_file
from experiments.sweep.runner import Runner
from experiments.sweep.slurm_script import read_options
from experiments.sweep.status import status_of_folder, without_running
from experiments.sweep.sweep_file import read_sweep
from experiments.sweep.targets import exhibit_tasks


class _Parser(argparse.ArgumentParser):
    def __init__(self) -> None:
        super().__init__(prog="crosslight sweep", allow_abbrev=False, add_help=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See {self.prog} --help.")


def main(arguments: list[str]) -> int:
    """`crosslight sweep ...`. Returns the exit status."""
    arguments, slurm_arguments = _apart(arguments)
    parser = _Parser()
    parser.add_argument("action", choices=("run", "status", "cancel"))
    parser.add_argument("target")
    parser.add_argument("--scale", choices=SCALES)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--count", type=int)
    parser.add_argument("--search-seed", type=int)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--submit", choices=("slurm",))
    options = parser.parse_args(arguments)
    if options.action != "run":
        _refuse_options_of_run(options, slurm_arguments)
    if slurm_arguments and options.submit is None:
        raise InputError(f"{slurm_arguments[0]} is of jobs: add --submit slurm.")
    if options.submit is not None and options.jobs is not None:
        raise InputError("--jobs is of this machine; --slurm.at_once says how many elements of an array run at once.")
    options.slurm = read_options(slurm_arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    file = sweep_file(options.target)
    if file is not None:
        for name, given in (("--scale", options.scale), ("--seeds", options.seeds)):
            if given is not None:
                raise InputError(f"{name} is of exhibits; a sweep file says itself what it sweeps over ({file}).")
        return Search(read_sweep(file), options).act(console)
    for name, given in (("--count", options.count), ("--search-seed", options.search_seed)):
        if given is not None:
            raise InputError(f"{name} is of sweep files, and {options.target} is none.")
    if options.action == "status" and Path(options.target).is_dir():
        for name, given in (("--scale", options.scale), ("--seeds", options.seeds), ("--out", options.out)):
            if given is not None:
                raise InputError(f"status {options.target} shows all runs of that folder; leave {name} out.")
        return status_of_folder(console, Path(options.target))
    root = (options.out or Path("runs/papers")).absolute()
    tasks = exhibit_tasks(options.target, options.scale or "miniature", options.seeds or [0], root)
    if not tasks:
        raise InputError(f"{options.target} has no run at scale {options.scale or 'miniature'}.")
    if options.action != "run" or options.dry_run or options.submit:
        return without_running(console, tasks, root, options)
    return Runner(tasks, root, jobs=options.jobs, retry_failed=options.retry_failed).run()


def _refuse_options_of_run(options: argparse.Namespace, slurm_arguments: Sequence[str]) -> None:
    given = {
        "--dry-run": options.dry_run, "--retry-failed": options.retry_failed, "--submit": options.submit is not None,
        "--jobs": options.jobs is not None, **dict.fromkeys(slurm_arguments[:1], True),
    }  # fmt: skip
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise InputError(f"{', '.join(wrong)}: of `sweep run` only, and this is `sweep {options.action}`; leave it out.")


def _apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments, and those of them that are options of Slurm: --slurm FILE, --slurm.NAME=VALUE, --slurm.NAME VALUE."""
    rest: list[str] = []
    slurm: list[str] = []
    place = 0
    while place < len(arguments):
        option = arguments[place]
        number = 1 if not option.startswith("--slurm") or "=" in option else 2
        (slurm if option.startswith("--slurm") else rest).extend(arguments[place : place + number])
        place += number
    return rest, slurm
