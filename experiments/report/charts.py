"""Figures of frames of runs, for notebooks: learning curves, means by part, what two runs disagree on, sweeps. They look as those
of exhibits do."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure as Drawing

from datamodules.errors import InputError
from experiments.report.drawing import DASHES, FAINT, INK, LINES, MARKERS, STYLE, WIDTH, Gallery, Picture, label_points, legend
from experiments.report.importance import is_logarithmic, is_numeric
from experiments.runs.identity import SEED_AND_KEY

if TYPE_CHECKING:
    import pandas as pd

_COLORS = "cividis"  # one hue's way from dark to light, for every kind of eye
_LETTERS = 26  # of a name at an axis, a line


def short_labels(runs: Sequence[str]) -> dict[str, str]:
    """Runs by their names without key, and without seed where that leaves them apart; and without what all begin with."""
    names = list(dict.fromkeys(runs))
    for pattern in ("", r" s\1"):
        short = [SEED_AND_KEY.sub(pattern, name) for name in names]
        if len(set(short)) == len(names):
            break
    else:
        short = names
    parts = [name.split("-") for name in short]
    shared = 0
    while len(names) > 1 and all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return dict(zip(names, ["-".join(each[shared:]) for each in parts], strict=True))


def curves(history: pd.DataFrame, metrics: str | Sequence[str], smooth: int = 1) -> Gallery:
    """Logged metrics over steps, a picture a metric and a line a run.

    Args:
        history: `runs.history()`.
        metrics: Names as in metrics.csv.
        smooth: Mean of so many values that follow each other.

    Raises:
        InputError: No run logged the metric.
    """
    pictures = []
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        rows = history[history["metric"] == metric]
        if rows.empty:
            near = [name for name in dict.fromkeys(history["metric"]) if name.split("/")[0] == metric.split("/")[0]]
            raise InputError(f"no run logged {metric}; of its kind there are {', '.join(near) or 'none'}.")
        drawing, axes = _axes("step", metric)
        labels, words = short_labels(list(rows["run"])), []
        for number, (run, line) in enumerate(rows.groupby("run", sort=False)):
            line = line.sort_values("step")
            values = line["value"].rolling(smooth, min_periods=1).mean()
            few: dict[str, Any] = {"marker": MARKERS[number % 8], "markersize": 4} if len(line) <= 30 else {}
            style: dict[str, Any] = {"color": LINES[number % 8], "linestyle": DASHES[number // 8 % 4], "linewidth": 1.6}
            axes.plot(line["step"], values, label=labels[str(run)], **style, **few)
            words.append(f"{labels[str(run)]} from {values.iloc[0]:.4g} to {values.iloc[-1]:.4g}")
        legend(drawing, axes)
        told = f"Means of {smooth} values that follow each other." if smooth > 1 else ""
        pictures.append(Picture(drawing, f"{metric} over steps: {'; '.join(words)}.", f"curves-{_slug(metric)}", bars=told))
    return Gallery(tuple(pictures))


def intervals(table: pd.DataFrame, label: str, name: str = "means") -> Picture:
    """Means with their intervals, a row a part and a point a run.

    Args:
        table: Of `slices.means_by`.
        label: Of the numbers.
        name: Of the picture.
    """
    by = str(table.columns[1])
    ordered = getattr(table[by], "cat", None)
    there = list(dict.fromkeys(table[by]))
    parts = there if ordered is None else [part for part in ordered.categories if part in there]
    runs = short_labels(list(table["run"]))
    height = 0.9 + len(parts) * (0.2 + 0.13 * len(runs))
    drawing, axes = _axes(label, "", height=height)
    words = []
    for number, (run, short) in enumerate(runs.items()):
        rows = table[table["run"] == run].set_index(by)
        places = [(place, rows.loc[part]) for place, part in enumerate(parts) if part in rows.index]
        at = [place + 0.16 * (number - (len(runs) - 1) / 2) * min(1.0, 4 / len(runs)) for place, _ in places]
        axes.hlines(
            at, [row["low"] for _, row in places], [row["high"] for _, row in places], color=LINES[number % 8], linewidth=1.4
        )
        axes.plot([row["mean"] for _, row in places], at, MARKERS[number % 8], color=LINES[number % 8], label=short, markersize=5)
        means = ", ".join(f"{parts[place]} {row['mean']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" for place, row in places)
        words.append(f"{short}: {means}")
    counts = table.groupby(by, observed=True)["queries"].agg(["min", "max"])
    told = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high in counts.loc[parts].to_numpy().tolist()]
    axes.set_yticks(range(len(parts)), [f"{part} ({count})" for part, count in zip(parts, told, strict=True)])
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    legend(drawing, axes)
    bars = "Bars: 95 % intervals by resampled images; in brackets how many queries."
    return Picture(drawing, f"{label} by {by}. {'; '.join(words)}.", name, bars=bars)


def agreement(queries: pd.DataFrame, one: str, other: str) -> Picture:
    """How often each pair of ranks comes, of two runs that were asked the same.

    Args:
        queries: Of `slices.disagreements` or `slices.beside`.
        one: The run along x.
        other: The run along y.
    """
    both = queries.dropna(subset=[one, other])
    labels = short_labels([one, other])
    most = float(both[[one, other]].to_numpy().max())
    edges = np.concatenate([[0.75], 2.0 ** np.arange(0.5, math.log2(most) + 1.0)])
    drawing, axes = _axes(f"rank, {labels[one]}", f"rank, {labels[other]}", width=5.2, height=4.4)
    counts_YX = np.histogram2d(both[other], both[one], [edges, edges])[0]
    mesh = axes.pcolormesh(
        edges, edges, np.where(counts_YX > 0, counts_YX, np.nan), cmap=_COLORS, norm=LogNorm(1, counts_YX.max())
    )
    mesh.set_rasterized(True)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ticks = [2**power for power in range(0, int(math.log2(most)) + 1, 2)]
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(ticks, [f"{tick:,}" for tick in ticks])
        set_ticks([], minor=True)
    axes.plot([edges[0], edges[-1]], [edges[0], edges[-1]], color=LINES[1], linewidth=1.2, linestyle="--")
    axes.set_aspect("equal")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(edges[0], edges[-1])
    _logarithmic_bar(drawing, axes, mesh, "queries")
    better, worse = int((both[one] < both[other]).sum()), int((both[one] > both[other]).sum())
    told = (
        f"Of {len(both):,} queries {labels[one]} ranks {better:,} better (above the dashed line), {labels[other]} {worse:,} "
        f"(below it), {len(both) - better - worse:,} are ranked alike"
    )
    correlation = float(np.corrcoef(np.log(both[one]), np.log(both[other]))[0, 1])
    return Picture(drawing, f"Ranks of two runs against each other. {told}.", "agreement",
                   bars=f"{told}. Correlation of the logarithms {correlation:.2f}.")  # fmt: skip


def scatter(
    frame: pd.DataFrame, x: str, y: str, labels: Mapping[str, str] | None = None, names: Mapping[str, str] | None = None
) -> Picture:
    """A point a run, with its name.

    Args:
        frame: Of runs.
        x: Column along x; on a logarithmic axis where it spans more than ten times.
        y: Column along y.
        labels: Of the two columns.
        names: Of the runs; default: short ones.
    """
    rows = frame.dropna(subset=[x, y]) if {x, y} <= {*frame.columns} else frame[:0]
    if rows.empty:
        raise InputError(f"no run has both {x} and {y}.")
    names = short_labels(list(rows["run"])) if names is None else names
    told = {x: x, y: y} | dict(labels or {})
    drawing, axes = _axes(told[x], told[y])
    axes.plot(rows[x], rows[y], "o", color=LINES[0])
    axes.margins(x=0.25, y=0.15)
    if rows[x].min() >= 0:
        axes.set_xlim(left=max(axes.get_xlim()[0], -0.06 * float(rows[x].max())))
    if is_logarithmic([float(value) for value in rows[x]]):
        axes.set_xscale("log")
    label_points(drawing, axes, [(names[run], a, b) for run, a, b in zip(rows["run"], rows[x], rows[y], strict=True)], [])
    words = "; ".join(f"{names[run]} at {a:.4g}, {b:.4g}" for run, a, b in zip(rows["run"], rows[x], rows[y], strict=True))
    return Picture(drawing, f"{told[y]} against {told[x]}: {words}.", f"scatter-{_slug(y)}")


def relative(frame: pd.DataFrame, columns: Mapping[str, str], base: str) -> Picture:
    """What runs cost in percent of what one of them costs: a row a cost and a point a run.

    Args:
        frame: Of runs.
        columns: Columns of costs, with what they are called.
        base: The run that is 100 %.

    Raises:
        InputError: There is no such run.
    """
    rows = frame.set_index("run")
    if base not in rows.index:
        raise InputError(f"no run is called {base}; there are {', '.join(rows.index)}.")
    names = short_labels(list(rows.index))
    drawing, axes = _axes(f"% of {names[base]}", "", height=1.0 + 0.5 * len(columns))
    axes.axvline(100, color=INK, linewidth=1.0)
    words = []
    for number, run in enumerate(run for run in rows.index if run != base):
        shares = [100 * rows.loc[run, column] / rows.loc[base, column] for column in columns]
        at = np.arange(len(columns)) + 0.12 * (number - (len(rows) - 2) / 2)
        axes.plot(shares, at, MARKERS[number % 8], color=LINES[number % 8], markersize=6, label=names[run])
        told = ", ".join(f"{label} {share:.0f} %" for label, share in zip(columns.values(), shares, strict=True))
        words.append(f"{names[run]}: {told}")
    axes.set_yticks(range(len(columns)), list(columns.values()))
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    legend(drawing, axes)
    return Picture(drawing, f"Costs in percent of {names[base]}. {'; '.join(words)}.", "relative-costs")


def parallel(frame: pd.DataFrame, options: Sequence[str], metric: str) -> Picture:
    """A line a run through its options to its metric, which colors it: the best are light.

    Args:
        frame: Of runs.
        options: Columns of options, from left to right.
        metric: The last axis.
    """
    rows = frame.dropna(subset=[metric]).sort_values(metric, kind="stable") if metric in frame else frame[:0]
    if rows.empty:
        raise InputError(f"no run has {metric}.")
    columns = [*options, metric]
    with rc_context({**STYLE, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        drawing = Drawing(figsize=(max(WIDTH, 1.7 * len(columns)), 3.8), layout="constrained")
        axes = drawing.subplots()
    norm = Normalize(float(rows[metric].min()), float(rows[metric].max()))
    places = {column: _scale(axes, number, list(rows[column])) for number, column in enumerate(columns)}
    shift = np.linspace(-0.012, 0.012, len(rows)) if len(rows) > 1 else np.zeros(1)  # equal options would hide each other
    for number, row in enumerate(rows.to_dict("records")):
        heights = [places[column](row[column]) + (0 if column == metric else shift[number]) for column in columns]
        axes.plot(range(len(columns)), heights, color=colormaps[_COLORS](norm(row[metric])), linewidth=1.8, alpha=0.9)
    axes.set_xlim(-0.15, len(columns) - 0.45)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    axes.set_xticks(range(len(columns)), ["\n".join(_lines(column, 16)) for column in columns], fontsize=8.5)
    axes.tick_params(axis="x", length=0)
    best = rows.iloc[-1]
    told = ", ".join(f"{option} {_text(best[option])}" for option in options)
    text = f"{len(rows)} runs through {', '.join(options)} to {metric}. The largest {metric}, {best[metric]:.4g}: {told}."
    return Picture(
        drawing, text, f"parallel-{_slug(metric)}", bars=f"A line is a run; its color is its {metric}, light where it is large."
    )


def importances(table: pd.DataFrame, metric: str) -> Picture:
    """Shares of the metric's variance that options explain alone, each beside what chance gives.

    Args:
        table: Of `importance.importance`.
        metric: Its name.
    """
    drawing, axes = _axes(f"share of the variance of {metric}", "", height=0.9 + 0.42 * max(len(table), 1))
    at = np.arange(len(table))
    axes.barh(at, table["share"], height=0.5, color=LINES[0], label="explained alone")
    axes.vlines(table["chance"], at - 0.36, at + 0.36, color=LINES[1], linewidth=2, label="chance reaches it in 5 of 100")
    axes.set_yticks(at, ["\n".join(_lines(name, _LETTERS)) for name in table["option"]])
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="y")
    legend(drawing, axes)
    words = "; ".join(f"{row.option} {row.share:.2f} (chance {row.chance:.2f})" for row in table.itertuples())
    runs = int(table["runs"].max()) if len(table) else 0
    bars = f"Of {runs} runs. A bar that ends left of its line says nothing."
    return Picture(drawing, f"{axes.get_xlabel()}, by option: {words}.", f"importance-{_slug(metric)}", bars=bars)


def captions_beside(runs: Sequence[Path], data: str | None = None, images: int = 6) -> Picture:
    """What runs wrote about the same images, beside what a person wrote.

    Raises:
        InputError: A run has no captions of this data, or of other images.
    """
    from experiments.analysis.retrieved import captions_sheet

    drawing = captions_sheet(runs, data, images)
    return Picture(drawing, "Images with captions: " + " | ".join(text.get_text() for text in drawing.texts), "captions")


def found_for(records: Sequence[Any], found: Mapping[str, Any], chosen: str) -> Picture:
    """A contact sheet of what a retrieval run found.

    Args:
        records: Images.
        found: Further arguments of `experiments.analysis.retrieved.contact_sheet`, as `queries.found_instead` gives them.
        chosen: How the queries were chosen.
    """
    from experiments.analysis.retrieved import contact_sheet

    drawing = contact_sheet(records, **found, chosen=chosen)
    return Picture(drawing, "Queries with what was found: " + " | ".join(text.get_text() for text in drawing.texts), "found")


def _axes(x_label: str, y_label: str, width: float = WIDTH, height: float = 3.4) -> tuple[Drawing, Axes]:
    with rc_context(STYLE):
        drawing = Drawing(figsize=(width, height), layout="constrained")
        axes = drawing.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return drawing, axes


def _logarithmic_bar(drawing: Drawing, axes: Axes, colors: ScalarMappable, label: str) -> None:
    with rc_context({**STYLE, "axes.grid": False}):
        bar = drawing.colorbar(colors, ax=axes, shrink=0.8, pad=0.02)
    low, high = colors.get_clim()
    bar.set_ticks(ticks := [10**power for power in range(10) if low <= 10**power <= high], labels=[f"{tick:,}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label(label, color=INK)
    bar.ax.tick_params(labelsize=8, labelcolor=INK, color=INK)


def _scale(axes: Axes, at: int, values: Sequence[Any]) -> Any:
    """Draws an axis of parallel coordinates; gives back where on it (0 to 1) a value is."""
    axes.plot([at, at], [0, 1], color=INK, linewidth=0.9, zorder=0.5)
    box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": FAINT, "linewidth": 0.5}
    side: dict[str, Any] = {"fontsize": 8, "color": INK, "va": "center", "zorder": 5, "bbox": box}
    if is_numeric(values) and len(set(values)) > 1:
        low, high, log = min(values), max(values), is_logarithmic(values)

        def place(value: float) -> float:
            return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)

        for part in (0.0, 0.5, 1.0):
            axes.text(at + 0.03, part, _text(low * (high / low) ** part if log else low + (high - low) * part), **side)
        return place
    words = sorted({_text(value) for value in values})
    for number, word in enumerate(words):
        axes.text(at + 0.03, _height(number, len(words)), "\n".join(_lines(word, 18)), **side)
    return lambda value: _height(words.index(_text(value)), len(words))


def _height(number: int, words: int) -> float:
    return 0.5 if words == 1 else number / (words - 1)


def _text(value: Any) -> str:
    """A class by its name; what is not set as "–"."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value).rpartition(".")[2] if str(value).count(".") > 1 else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _lines(name: str, letters: int) -> list[str]:
    """On several lines, broken after dots, slashes and low lines."""
    spaced = name.replace(".", ".\u200b").replace("/", "/\u200b").replace("_", "_\u200b").replace("\u200b", " ")
    return [line.replace(". ", ".").replace("/ ", "/").replace("_ ", "_") for line in textwrap.wrap(spaced, letters)] or [name]


def _slug(metric: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in metric)
