"""Has the maps made that an exhibit shows."""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import InputError
from experiments.analysis import run_maps
from experiments.report.collect import View


def make_view_maps(view: View) -> tuple[list[Path], list[str]]:
    """Makes the maps of an exhibit whose figure shows some, of the first finished run of each variant, and the shares of
    attention that its columns have, of every finished run.

    Returns the files, and for each run that has none why (its checkpoint was not copied, for example).
    """
    files: list[Path] = []
    missing: list[str] = []
    if view.exhibit.figure is None or view.exhibit.figure.kind != "maps":
        return files, missing
    measured = any(column.attention for column in view.exhibit.columns)
    for each in view.runs if measured else ():
        if each.status == "finished" and each.folder is not None:
            try:
                files.append(run_maps.make_shares(each.folder))
            except InputError as error:
                missing.append(f"{each.name}, seed {each.seed}, shares of attention: {error}")
    for variant in view.variants:
        run = next((run for runs in variant.runs.values() for run in runs if run.status == "finished"), None)
        if run is not None and run.folder is not None:
            try:
                files.append(run_maps.make_maps(run.folder))
            except InputError as error:
                missing.append(f"{variant.label}: {error}")
    return files, missing
