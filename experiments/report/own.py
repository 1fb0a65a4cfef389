"""A report of one's own runs: a page with their scores, their learning curves and what they were made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError, some
from datamodules.files.atomic import write_atomically
from experiments.report.dials import Curve, curve_of, dial_csv, dial_picture, dial_rows
from experiments.report.site import environment, provenance
from experiments.report.table import Column, columns_of, markdown, rows, to_csv
from experiments.runs.metrics_csv import logged
from experiments.runs.seeds import configuration_of
from experiments.runs.store import Run

if TYPE_CHECKING:
    from experiments.report.drawing import Picture

_LINES = 16  # of a figure; more could not be told apart


@dataclass(frozen=True)
class Cell:
    """Of the table of scores: what stands there, and by what it is sorted."""

    text: str
    value: Any


def build_own(runs: Mapping[Path, Run], out: Path, title: str) -> Path:
    """Write the page and its table as Markdown and CSV: the page's path.

    Args:
        runs: What `find_runs` gives.
        out: Folder; files of an earlier report in it are replaced.
        title: Of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = rows(runs)
    columns, more = columns_of(table)
    says = next(column for column in columns if column.key == "data" and not column.option)  # how an unfinished one ended
    done = [row for row in table if row["status"] == "finished"]
    heads = [(each.title, each is says, any(isinstance(each.value(row), (int, float)) for row in done)) for each in columns]
    states = Counter(run.status for run in runs.values())
    dials = _dials(runs)
    page = environment().get_template("own.html").render(
        title=title, runs=list(runs.values()), states=states, more=some(more) if more else "", count=len(more), marks={},
        heads=heads,
        rows=[_cells(row, columns) for row in table],
        pictures=_pictures(runs, table), dial=dial_picture(dials, "dial"), dials=dials, dial_rows=dial_rows(dials),
        provenance=[*provenance(runs.values()), ("folder", Counter(str(folder.parent) for folder in runs).most_common())],
    )  # fmt: skip
    write_atomically(out / "index.html", page)
    write_atomically(out / "runs.md", markdown(table))
    write_atomically(out / "runs.csv", to_csv(runs))
    if dials:
        write_atomically(out / "dial.csv", dial_csv(dials))
    return out / "index.html"


def _cells(row: dict[str, Any], columns: Sequence[Column]) -> tuple[dict[str, Any], list[Cell]]:
    """A row with what stands in its columns; one that is not finished has its name, its options and its folder."""
    if row["status"] == "finished":
        return row, [Cell(column.text(row), _sorted_by(column.value(row))) for column in columns]
    shown = [column if column.option or column.key in ("name", "folder") else None for column in columns]
    return row, [Cell("", "") if column is None else Cell(column.text(row), _sorted_by(column.value(row))) for column in shown]


def _sorted_by(value: Any) -> Any:
    return "" if value is None else value


def _pictures(runs: Mapping[Path, Run], table: Sequence[dict[str, Any]]) -> list[Picture]:
    """The loss of the training and what chose the best checkpoint, over steps: a line a run, of many the best ones."""
    monitors = {run.results.fit.monitor: None for run in runs.values() if run.results is not None and run.results.fit is not None}
    places = {row["folder"].partition(" and ")[0]: place for place, row in enumerate(table)}
    trained = [folder for folder, run in runs.items() if run.status != "finished" or (run.results and run.results.fit)]
    ordered = sorted(trained, key=lambda folder: places.get(str(folder), len(places)))
    found: dict[str, dict[Path, list[tuple[int, float]]]] = {}
    for metric in ("train/loss", *filter(None, monitors)):
        for folder in ordered:
            with suppress(InputError):  # its row says so
                if line := logged(folder, metric):
                    found.setdefault(metric, {})[folder] = line
    drawn = [folder for folder in ordered if any(folder in lines for lines in found.values())]
    return [_picture(metric, lines, _labels(runs), drawn) for metric, lines in found.items()]


def _dials(runs: Mapping[Path, Run]) -> list[Curve]:
    """Of the runs that `crosslight dial` has measured; seeds of one configuration are one curve."""
    of_configuration: dict[str, list[Run]] = {}
    for folder, run in runs.items():
        if run.results is not None and run.status == "finished":
            of_configuration.setdefault(configuration_of(folder, run.results).digest, []).append(run)
    labels = _labels(runs)
    found = [curve_of(labels[each[0].folder or Path()], each) for each in of_configuration.values()]
    return [curve for curve in found if curve is not None]


def _labels(runs: Mapping[Path, Run]) -> dict[Path, str]:
    """Each run by its name where no other has it, else by its folder's."""
    names, folders = Counter(run.name for run in runs.values()), Counter(folder.name for folder in runs)
    return {
        folder: run.name if names[run.name] == 1 else folder.name if folders[folder.name] == 1 else str(folder)
        for folder, run in runs.items()
    }


def _picture(
    metric: str, lines: Mapping[Path, Sequence[tuple[int, float]]], labels: Mapping[Path, str], ordered: Sequence[Path]
) -> Picture:
    """A run has one color in all pictures: that of its place in `ordered`."""
    from matplotlib import rc_context  # it takes longer to import than a table to make
    from matplotlib.figure import Figure as Drawing

    from experiments.report.drawing import DASHES, LINES, MARKERS, STYLE, WIDTH, Picture, legend, thinned

    with rc_context(STYLE):
        drawing = Drawing(figsize=(WIDTH, 3.5), layout="constrained")
        axes = drawing.subplots()
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    words = []
    for folder, line in list(lines.items())[:_LINES]:
        number = ordered.index(folder)
        few: dict[str, Any] = {"marker": MARKERS[number % 8], "markersize": 4} if len(line) <= 30 else {}
        style: dict[str, Any] = {"color": LINES[number % 8], "linestyle": DASHES[number // 8 % 4], "linewidth": 1.6}
        axes.plot(*zip(*thinned(line), strict=True), label=labels[folder], **style, **few)
        words.append(f"{labels[folder]} from {line[0][1]:.4g} at step {line[0][0]} to {line[-1][1]:.4g} at step {line[-1][0]}")
    legend(drawing, axes)
    more = len(lines) - _LINES
    left_out = f"{more} further runs are left out: those whose validation was worse." if more > 0 else ""
    name = f"curve-{metric.replace('/', '-')}"
    return Picture(drawing, f"{metric} over steps: {'; '.join(words)}.", name, metric, bars=left_out)
