"""Has the maps made that an exhibit shows."""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import InputError
from experiments.analysis.run_maps import look
from experiments.report.collect import View


def look_at(view: View) -> tuple[list[Path], list[str]]:
    """Makes the maps of an exhibit whose figure shows some: of the first finished run of each row.

    Returns the files, and for each run that has none why (its checkpoint was not copied, for example).
    """
    files: list[Path] = []
    unseen: list[str] = []
    if view.exhibit.figure is None or view.exhibit.figure.kind != "maps":
        return files, unseen
    for row in view.rows:
        run = next((run for runs in row.runs.values() for run in runs if run.status == "finished"), None)
        if run is not None and run.folder is not None:
            try:
                files.append(look(run.folder))
            except InputError as error:
                unseen.append(f"{row.row.label}: {error}")
    return files, unseen
