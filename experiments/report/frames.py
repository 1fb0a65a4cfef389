"""An exhibit as pandas frames, as notebooks show it: its table, its numbers, its claims."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.papers.schema import Scale
from experiments.report import exports
from experiments.report.collect import collect
from experiments.report.maps import make_view_maps
from experiments.report.site import Page, judged
from experiments.runs.frames import Runs
from experiments.runs.store import RunFolders

if TYPE_CHECKING:
    import pandas as pd


def exhibits(runs: str | Path, names: Sequence[str], scale: Scale = "miniature", maps: bool = False) -> dict[str, Page]:
    """Exhibits (PAPER/NAME) as the runs of a folder have them, with their figures and the verdicts on their claims.

    Args:
        runs: Where `crosslight demo` or `crosslight sweep run` wrote to.
        names: Which.
        scale: Of the runs.
        maps: Have the models make the attention maps that runs lack; they are kept in RUN/attention_maps.

    Raises:
        InputError: There is no such folder or exhibit.
    """
    folders = RunFolders([Path(runs)])
    views = collect(names, scale, folders)
    lacking: dict[str, list[str]] = {}
    if maps:
        for view in views:
            _, lacking[view.name] = make_view_maps(view)
        views = collect(names, scale, folders)  # with the shares of attention that were just measured
    return {page.view.name: page for page in judged(views, lacking)}


def table(page: Page, measured: bool = False) -> pd.DataFrame:
    """The table as the report has it: of each column ours (mean ± deviation over seeds [95 % interval over images]) and the
    paper's, where it prints one; how many runs, and what is missing.

    Args:
        page: The exhibit.
        measured: Only rows that have a finished run.
    """
    import pandas

    view = page.view
    rows = {}
    for variant in view.variants:
        if measured and not variant.finished:
            continue
        row = {}
        for column in view.exhibit.columns:
            cell = variant.cells[column.name]
            row[column.label, "ours"] = exports.ours(cell)
            if column.name in view.printed:
                row[column.label, "paper"] = exports.number(cell.published, column.digits)
        row["runs", ""], row["status", ""] = str(exports.seeds(variant)), variant.told
        rows[variant.label] = row
    frame = pandas.DataFrame.from_dict(rows, orient="index")
    frame.columns = pandas.MultiIndex.from_tuples(frame.columns) if rows else frame.columns
    return frame


def numbers(page: Page) -> pd.DataFrame:
    """The same as numbers: a line for each row and column, as the report's CSV."""
    import pandas

    return pandas.read_csv(io.StringIO(exports.to_csv(page.view)))


def claims(page: Page) -> pd.DataFrame:
    """What the paper says of the exhibit, and what our runs say of that."""
    import pandas

    rows = [(each.outcome, each.claim.text, each.summary) for each in page.verdicts]
    return pandas.DataFrame(rows, columns=["verdict", "claim", "why"])


def runs_of(page: Page) -> Runs:
    """Of each row of an exhibit the first finished run, in the order of the rows."""
    found = (
        next((run for runs in variant.runs.values() for run in runs if run.status == "finished"), None)
        for variant in page.view.variants
    )
    return Runs(tuple(run for run in found if run is not None))


def missing(pages: dict[str, Page]) -> str:
    """What the folder does not have, and what runs it; one line where everything is there."""
    told = []
    for name, page in pages.items():
        variants = page.view.variants
        done = sum(variant.status == "finished" for variant in variants)
        if page.view.incomplete:
            told.append(f"{name}: {done} of {len(variants)} rows are here. The others: {page.view.command}")
        told += [f"{name}: no attention maps of {why}" for why in page.missing_maps]
    return "\n".join(told) or "Every row of these exhibits is here."
