"""An exhibit as pandas frames, as notebooks show it: its table, its numbers, its claims."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.papers.schema import Scale
from experiments.report import exports
from experiments.report.collect import collect
from experiments.report.site import Page, judged
from experiments.runs.store import RunFolders

if TYPE_CHECKING:
    import pandas as pd


def exhibits(runs: str | Path, names: Sequence[str], scale: Scale = "miniature") -> dict[str, Page]:
    """Exhibits (PAPER/NAME) as the runs of a folder have them, with their figures and the verdicts on their claims.

    Args:
        runs: Where `crosslight demo` or `crosslight sweep run` wrote to.
        names: Which.
        scale: Of the runs.

    Raises:
        InputError: There is no such folder or exhibit.
    """
    return {page.view.name: page for page in judged(collect(names, scale, RunFolders([Path(runs)])))}


def table(page: Page) -> pd.DataFrame:
    """The table as the report has it: of each column ours (mean ± deviation over seeds [95 % interval over images]) and the
    paper's, where it prints one; how many runs, and what is missing."""
    import pandas

    view = page.view
    rows = {}
    for variant in view.variants:
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


def missing(pages: dict[str, Page]) -> str:
    """What the folder does not have, and what runs it; one line where everything is there."""
    told = []
    for name, page in pages.items():
        variants = page.view.variants
        done = sum(variant.status == "finished" for variant in variants)
        if page.view.incomplete:
            told.append(f"{name}: {done} of {len(variants)} rows are here. The others: {page.view.command}")
    return "\n".join(told) or "Every row of these exhibits is here."
