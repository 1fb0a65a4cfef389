"""Where a model fails: means over parts of a test with intervals, the hardest queries, and what two runs disagree on. All of it
on `load_runs(...).per_query()`, after `experiments.analysis.queries.with_data` where captions or categories are asked for."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.errors import InputError
from experiments.report.bootstrap import PerImage, interval

if TYPE_CHECKING:
    import pandas as pd

_QUERY = ["data", "split", "kind", "query"]


def means_by(queries: pd.DataFrame, by: str, measure: str, factor: float = 100.0) -> pd.DataFrame:
    """The mean of a measure over the queries of each part, for each run: run, `by`, queries, images, mean, low, high. The
    interval is of 95 %, by resampled images: five captions of one image are no five independent queries.

    Args:
        queries: Rows of which each counts once; one whose `by` is several (categories) counts in each of them.
        by: Column of the parts.
        measure: Column of what is averaged, such as `found` (rank <= 1) or `cider`.
        factor: On it.
    """
    import pandas

    apart = queries.explode(by).dropna(subset=[by, measure])
    rows: list[dict[Hashable, Any]] = []
    for (run, part), group in apart.groupby(["run", by], sort=False, observed=True):
        image_Q = np.unique(group["image"].to_numpy(), return_inverse=True)[1]
        count_I = np.bincount(image_Q).astype(np.float64)
        total_I = np.bincount(image_Q, group[measure].to_numpy(np.float64)).astype(np.float64)
        found = PerImage(total_I[:, None], count_I[:, None], factor)
        low, high = interval(found.resamples()) if found.images > 1 else (float("nan"), float("nan"))
        rows.append({"run": run, by: part, "queries": len(group), "images": found.images, "mean": found.value(),
                     "low": low, "high": high})  # fmt: skip
    table = pandas.DataFrame(rows, columns=["run", by, "queries", "images", "mean", "low", "high"])
    if isinstance(queries[by].dtype, pandas.CategoricalDtype):  # parts that have an order
        table[by] = table[by].astype(queries[by].dtype)
    return table


def in_parts(values: pd.Series, parts: int = 4) -> pd.Series:
    """Whole numbers in about equal parts, as "7–9": ordered categories. Fewer parts where few values are there."""
    import pandas

    cut = pandas.qcut(values, parts, duplicates="drop")
    names = {}
    for piece in cut.cat.categories:
        inside = values[cut == piece]
        low, high = int(inside.min()), int(inside.max())
        names[piece] = f"{low}–{high}" if high > low else f"{low}"
    return cut.cat.rename_categories(names)


def hardest(queries: pd.DataFrame, count: int = 10) -> pd.DataFrame:
    """The queries with the worst ranks: the geometric mean over the runs that have it, so that one run's accident is none of all.
    Columns: those of the query, `rank` (that mean), and the rank in each run under its name."""
    wide = beside(queries)
    runs = list(dict.fromkeys(queries["run"]))
    wide.insert(wide.columns.get_loc("image") + 1, "rank", np.exp(np.log(wide[runs].astype(float)).mean(axis=1)).round(1))
    return wide.sort_values("rank", ascending=False, kind="stable").head(count).reset_index(drop=True)


def disagreements(queries: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """Queries that both runs were asked, those on which their ranks differ most first: `times` is how many times better `one`
    ranks (below 1: `other` does).

    Raises:
        InputError: A run is not there, or they were asked nothing alike.
    """
    ours = queries[queries["run"].isin([one, other])]
    for run in (one, other):
        if run not in set(ours["run"]):
            raise InputError(f"no queries of {run}; there are those of {', '.join(dict.fromkeys(queries['run']))}.")
    wide = beside(ours).dropna(subset=[one, other])
    if wide.empty:
        raise InputError(f"{one} and {other} were tested on no data that both have.")
    wide.insert(wide.columns.get_loc("image") + 1, "times", (wide[other] / wide[one]).astype(float))
    order = np.log(wide["times"]).abs().sort_values(ascending=False, kind="stable").index
    return wide.loc[order].reset_index(drop=True)


def beside(queries: pd.DataFrame) -> pd.DataFrame:
    """A row a query, with the rank of each run in a column of its own.

    Raises:
        InputError: There are no ranks; or, where `with_data` has said the images, queries of one place are of different ones.
    """
    ranked = queries.dropna(subset=["rank"])
    if ranked.empty:
        raise InputError("these queries have no ranks: they are of runs that write captions. Compare their scores instead.")
    if "image_id" in ranked and (ranked.groupby(_QUERY, observed=True)["image_id"].nunique() > 1).any():
        raise InputError(
            "these runs were tested on data of one name that are not the same images, so their queries are no pairs: compare "
            "runs of one data set."
        )
    about = [column for column in ("image", "image_id", "file", "caption", "words", "categories") if column in ranked]
    first = ranked.drop_duplicates(_QUERY).set_index(_QUERY)[about]
    return first.join(ranked.pivot(index=_QUERY, columns="run", values="rank")).reset_index()
