"""Has the maps made that an exhibit shows."""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import InputError
from experiments.analysis import run_maps
from experiments.analysis.stored_maps import SHARES_FILES
from experiments.report.collect import View


def make_view_maps(view: View) -> tuple[list[Path], list[str]]:
    """Makes the maps of an exhibit whose figure shows some, of the first finished run of each variant, and the shares of
    attention or gradients that its columns have, of every finished run.

    Returns the files, and for each run that has none why (its checkpoint was not copied, for example).
    """
    files: list[Path] = []
    missing: list[str] = []
    for by in SHARES_FILES:
        measured = any(getattr(column, by) for column in view.exhibit.columns)
        for each in view.runs if measured else ():
            if each.status == "finished" and each.folder is not None:
                try:
                    files.append(run_maps.make_shares(each.folder, by=by))
                except InputError as error:
                    missing.append(f"{each.name}, seed {each.seed}, shares of {by}: {error}")
    drawn = view.exhibit.figure is not None and view.exhibit.figure.kind == "maps"
    for variant in view.variants if drawn else ():
        run = next((run for runs in variant.runs.values() for run in runs if run.status == "finished"), None)
        if run is not None and run.folder is not None:
            try:
                files.append(run_maps.make_maps(run.folder))
            except InputError as error:
                missing.append(f"{variant.label}: {error}")
    return files, missing
