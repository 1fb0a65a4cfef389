"""Has the maps made that an exhibit shows."""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import InputError
from experiments.analysis.run_maps import make_maps
from experiments.report.collect import View


def make_view_maps(view: View) -> tuple[list[Path], list[str]]:
    """Makes the maps of an exhibit whose figure shows some: of the first finished run of each row.

    Returns the files, and for each run that has none why (its checkpoint was not copied, for example).
    """
    files: list[Path] = []
    missing: list[str] = []
    if view.exhibit.figure is None or view.exhibit.figure.kind != "maps":
        return files, missing
    for row in view.rows:
        run = next((run for runs in row.runs.values() for run in runs if run.status == "finished"), None)
        if run is not None and run.folder is not None:
            try:
                files.append(make_maps(run.folder))
            except InputError as error:
                missing.append(f"{row.row.label}: {error}")
    return files, missing
