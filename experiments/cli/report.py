"""`crosslight report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from datamodules.errors import InputError
from experiments.papers.catalogue import exhibit_names
from experiments.papers.schema import PAPERS, SCALES

DEFAULT_RUNS = Path("runs/papers")  # of `crosslight sweep run EXHIBIT`


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See crosslight report --help.")


def main(arguments: Sequence[str]) -> int:
    """Exit status of `crosslight report`: 0.

    Raises:
        InputError: An argument names nothing, or an exhibit is wrong.
    """
    parser = _Parser(prog="crosslight report", allow_abbrev=False, add_help=False)
    parser.add_argument("what", nargs="*")
    parser.add_argument("--runs", nargs="+", type=Path)
    parser.add_argument("--scale", choices=SCALES, default="miniature")
    parser.add_argument("--out", type=Path, default=Path("report"))
    parser.add_argument("--maps", action="store_true")
    options = parser.parse_args(list(arguments))
    names, given = chosen(options.what)
    roots = options.runs if options.runs is not None else [DEFAULT_RUNS] if DEFAULT_RUNS.is_dir() else []
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file. Give a new folder, or that of an earlier report.")

    from experiments.report.collect import collect
    from experiments.report.site import build, judged
    from experiments.runs.store import RunFolders, read_run, run_folders_below

    folders = RunFolders(roots)
    views = collect(names, options.scale, folders)
    missing_maps: dict[str, list[str]] = {}
    if options.maps:
        from experiments.report.maps import make_view_maps

        for view in views:
            files, missing_maps[view.name] = make_view_maps(view)
            for text in (*map(str, files), *(f"not possible: {why}" for why in missing_maps[view.name])):
                print(f"attention maps: {text}", file=sys.stderr)
    extra = [read_run(folder) for folder in run_folders_below(given)]
    index = build(judged(views, missing_maps), extra, options.scale, options.out)
    rows = [variant for view in views for variant in view.variants]
    done = sum(variant.finished > 0 for variant in rows)
    print(f"report: {index} ({len(views)} exhibits, {done} of {len(rows)} rows measured, {options.scale} scale)")
    return 0


def chosen(what: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Exhibits and folders that are meant. Nothing means every exhibit.

    Raises:
        InputError: A word is none of them.
    """
    known = exhibit_names()
    names: list[str] = []
    folders: list[Path] = []
    for each in what:
        if each in PAPERS or each in known:
            names += [name for name in known if name == each or name.startswith(f"{each}/")]
        elif Path(each).is_dir():
            folders.append(Path(each))
        else:
            raise InputError(
                f"{each!r} is no paper, exhibit or folder. Papers: {', '.join(PAPERS)}; exhibits: {', '.join(known)}"
            )
    return (list(dict.fromkeys(names)) if what else known), folders
