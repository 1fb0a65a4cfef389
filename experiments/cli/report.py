"""Published numbers beside ours, claims judged, figures drawn: a site that opens from disk.

Lays what was measured beside what the papers print, with Markdown, CSV and LaTeX of every table. Without arguments all exhibits
are shown; what has not been run is shown too, with the command that runs it. Tables and figures are of one scale. The first page
has every claim on a line with the verdicts of all scales: from runs in the same folders, else from committed results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import InputError
from experiments.cli._parser import Parser, require_writable
from experiments.papers.schema import SCALES
from experiments.runs.headings import counted
from experiments.runs.records import opened, require_records_name

RUNS = Path("runs/papers")  # of `crosslight sweep run EXHIBIT`


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "what", nargs="*", metavar="PAPER|EXHIBIT|FOLDER",
        help="a paper (mwa), an exhibit (mwa/table1), or folders of other runs: beside exhibits they are listed, alone they are "
        "a report of their own, with scores and learning curves",
    )  # fmt: skip
    parser.add_argument(
        "--runs", nargs="+", type=Path, metavar="DIR",
        help=f"where `crosslight sweep run` wrote to, or files of --records; several, also of several machines, merge "
        f"(default: {RUNS})",
    )  # fmt: skip
    parser.add_argument(
        "--records", type=Path, metavar="FILE.tar.xz",
        help="write also what the report was made of: the finished runs without their weights, a file that --runs takes",
    )  # fmt: skip
    parser.add_argument(
        "--scale", choices=SCALES, default="miniature",
        help="of the tables and figures: the embedded world, photographs with small models, or the papers' own",
    )  # fmt: skip
    parser.add_argument("--title", metavar="TEXT", help="of a report of folders (default: their names)")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="where to")
    parser.add_argument(
        "--maps", action="store_true",
        help="load the models of the exhibits that show attention maps, and store the maps in RUN/attention_maps",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    names, given = chosen(options.what)
    roots = options.runs if options.runs is not None else [RUNS] if RUNS.is_dir() else []
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file. Give a new folder, or that of an earlier report.")
    require_writable(options.out / "index.html", "--out")
    if (options.out / "results.json").is_file():
        raise InputError(f"--out {options.out} is a run folder. Give a folder of the report's own.")
    page = options.out / "index.html"
    if page.is_file() and b"crosslight report" not in page.read_bytes():
        raise InputError(f"--out {options.out} holds an index.html of something else. Give another folder.")
    if options.records is not None:
        require_records_name(options.records)
        require_writable(options.records, "--records")

    if given and not names:
        if options.records is not None:
            raise InputError("--records is of exhibits: name a paper or an exhibit, or none for all of them.")
        if options.maps:
            raise InputError("--maps is of exhibits. `crosslight caption RUN IMAGE --maps DIR` draws those of a run.")
        return _own(given, options)
    if options.title is not None:
        raise InputError("--title is of a report of folders alone; exhibits have titles of their own.")

    with opened(roots) as folders:
        return _of_exhibits(names, given, folders, options)


def _of_exhibits(names: Sequence[str], given: Sequence[Path], roots: Sequence[Path], options: argparse.Namespace) -> int:
    """A report of exhibits, with folders of other runs listed beside them."""
    from experiments.report.collect import collect
    from experiments.report.scales import other_sides
    from experiments.report.site import build, judged
    from experiments.runs.records import write_records
    from experiments.runs.store import RunFolders, read_run, run_folders_below

    folders = RunFolders(roots)
    if options.runs is not None and folders.empty and not given:
        raise InputError(
            f"--runs {' '.join(map(str, options.runs))}: no run of `crosslight sweep run` is there. A report of other runs is "
            "`crosslight report FOLDER`."
        )
    views = collect(names, options.scale, folders)
    for why in {run.error: None for view in views for run in view.runs if run.status == "unreadable"}:
        print(f"cannot be read, and is shown so: {why}", file=sys.stderr)
    missing_maps: dict[str, list[str]] = {}
    if options.maps:
        from experiments.report.maps import make_view_maps

        for view in views:
            files, missing_maps[view.name] = make_view_maps(view)
            for text in (*map(str, files), *(f"not possible: {why}" for why in missing_maps[view.name])):
                print(f"attention maps: {text}", file=sys.stderr)
        views = collect(names, options.scale, folders)  # with the shares of attention that were just measured
    extra = [read_run(folder) for folder in run_folders_below(given)]
    others = other_sides(views, options.scale, folders)
    index = build(judged(views, missing_maps), extra, options.scale, options.out, others=others)
    rows = [variant for view in views for variant in view.variants]
    done = sum(variant.finished > 0 for variant in rows)
    exhibits, of_all = counted(len(views), "exhibit"), counted(len(rows), "row")
    print(f"report: {index} ({exhibits}, {done} of {of_all} measured, {options.scale} scale)")
    if options.records is not None:
        finished = {run.folder for view in views for run in view.runs if run.status == "finished" and run.folder is not None}
        write_records(finished, options.records)
        print(f"records: {options.records} ({counted(len(finished), 'run')})")
    return 0


def _own(folders: Sequence[Path], options: argparse.Namespace) -> int:
    """A report of folders of runs."""
    from experiments.report.own import build_own
    from experiments.report.table import find_runs

    runs = find_runs(folders)
    for why in {run.error: None for run in runs.values() if run.status == "unreadable"}:
        print(f"cannot be read, and is shown so: {why}", file=sys.stderr)
    title = options.title or f"Runs in {', '.join(str(folder) for folder in folders)}"
    index = build_own(runs, options.out, title)
    finished = sum(run.status == "finished" for run in runs.values())
    print(f"report: {index} ({counted(len(runs), 'run')}, {finished} finished)")
    return 0


def chosen(what: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Exhibits and folders that are meant. Nothing means every exhibit.

    Raises:
        InputError: A word is none of them.
    """
    from experiments.papers.catalogue import exhibit_names
    from experiments.papers.places import paper_folders

    known, papers = exhibit_names(), paper_folders()
    names: list[str] = []
    folders: list[Path] = []
    for word in what:
        if word in papers or word in known:
            names += [name for name in known if name == word or name.startswith(f"{word}/")]
        elif Path(word).is_dir():
            folders.append(Path(word))
        else:
            raise InputError(
                f"{word!r} is no paper, exhibit or folder. Papers: {', '.join(papers)}; exhibits: {', '.join(known)}"
            )
    return (list(dict.fromkeys(names)) if what else known), folders
