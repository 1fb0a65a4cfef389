"""The figures of exhibits: each kind from the same cells as the table."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation

from experiments.analysis.draw_maps import color_scale, overlay
from experiments.analysis.stored_maps import AttentionMaps, BoxedMaps, Maps, WordMaps, stored
from experiments.papers.schema import Column
from experiments.report import exports
from experiments.report.bootstrap import interval
from experiments.report.collect import Cell, View
from experiments.report.dials import dial_picture, dials_of
from experiments.report.drawing import (
    DASHES,
    INK,
    LINES,
    MARKERS,
    STYLE,
    TITLE_PAD,
    WIDTH,
    Picture,
    label_points,
    legend,
    plain_ticks,
    thinned,
)
from experiments.report.means import resamples
from experiments.report.verdicts import checkpoints
from experiments.runs.metrics_csv import logged
from lightning_modules.objectives.annealing import Annealing

_BARS = (
    "Bars: the 95 % interval of the mean over seeds, with images and several seeds resampled; of what is no mean over images one "
    "standard deviation over seeds; no bar where there is but one seed of it."
)
_NAMED = 5  # points that a scatter has names beside; more have numbers, which its key explains


def draw(view: View) -> list[Picture]:
    """The pictures of an exhibit's figure; none where nothing of it has been measured, or where it is no drawing."""
    figure = view.exhibit.figure
    if figure is None or figure.kind == "captions":
        return []
    if figure.kind == "maps":
        return _maps(view)
    if figure.kind == "dial":
        drawn = dial_picture(dials_of(view), f"{view.slug}-0", f"{view.scale.capitalize()} scale")
        return [] if drawn is None else [drawn]
    if figure.kind == "schedules":
        return [_schedules(view)]
    if figure.kind == "curves":
        return _curves(view)
    if figure.kind == "scatter":
        return _checkpoint_scatter(view) if figure.logged else _scatter(view)
    return _lines(view)


# ---------------------------------------------------------------------------------------------------------------- kinds


def _lines(view: View) -> list[Picture]:
    """Every column over the variants, units in panels one above the other; the paper's own dashed, where there are any."""
    figure = view.exhibit.figure
    assert figure is not None
    series = {column: points for column in view.exhibit.columns if (points := _points(view, column.name))}
    if not series:
        return []
    units = list(dict.fromkeys(_unit(column) for column in series))
    drawing, panels = _axes(view, panels=len(units))
    for number, (column, points) in enumerate(series.items()):
        axes = panels[units.index(_unit(column))]
        xs = [x for x, _ in points]
        means = [float(cell.mean or 0) for _, cell in points]
        bars = [(x, *found) for x, cell in points if (found := band(cell)) is not None]
        line: dict[str, Any] = {"color": LINES[number % 8], "linestyle": "" if figure.categories else "-", "markersize": 5}
        if paper := [(x, float(cell.published or 0)) for x, cell in _points(view, column.name, "published")]:
            hollow = {"markerfacecolor": "none", "marker": MARKERS[number % 8]}
            axes.plot(
                *zip(*paper, strict=True), label=f"{column.label}, paper", linewidth=1.2,
                **(line | (hollow if figure.categories else {"linestyle": "--"})),
            )  # fmt: skip
        # series have the same places: each stands a little beside the others, or one's bars would hide another's
        moved = axes.transData + ScaledTranslation((number - (len(series) - 1) / 2) * 3.5 / 72, 0, drawing.dpi_scale_trans)
        ours = Line2D(xs, means, marker=MARKERS[number % 8], label=column.label, linewidth=1.6, transform=moved, **line)
        axes.add_artist(ours)
        ends = [((x, low), (x, high)) for x, low, high in bars]
        axes.add_artist(LineCollection(ends, colors=[LINES[number % 8]], linewidths=1.4, transform=moved))
        axes.update_datalim([*zip(xs, means, strict=True), *(end for each in ends for end in each)])
        axes.autoscale_view()
        alone = len(units) > 1 and [_unit(each) for each in series].count(_unit(column)) == 1
        axes.set_ylabel(column.label if alone else figure.y_label)
    if figure.categories:
        panels[-1].set_xticks(range(len(view.variants)), [variant.label for variant in view.variants])
        panels[-1].set_xlim(-0.5, len(view.variants) - 0.5)
    plain_ticks(panels[-1], [x for points in series.values() for x, _ in points])
    legend(drawing, *panels)
    words = [
        f"{column.label}: " + ", ".join(f"{_place(view, x)} → {_number(cell)}" for x, cell in points)
        for column, points in series.items()
    ]
    start = "Points by" if figure.categories else "Lines over"
    drawn = _picture(view, drawing, f"{start} {panels[-1].get_xlabel() or 'the rows'}. {'; '.join(words)}.")
    return [replace(drawn, bars=_BARS)]


def _unit(column: Column) -> str:
    """Recalls share an axis; another metric or cost is by itself."""
    return "recall" if re.fullmatch(r"(i2t|t2i)_r\d+", column.metric or "") else str(column.metric or column.cost or column.name)


def _points(view: View, column: str, number: Literal["mean", "published"] = "mean") -> list[tuple[float, Cell]]:
    """Cells that have the number, by their place: `x` of the variant, or of categories its index."""
    figure = view.exhibit.figure
    categories = figure is not None and figure.categories
    places = [
        (float(index) if categories else variant.declared.x, variant.cells[column]) for index, variant in enumerate(view.variants)
    ]
    return sorted(
        ((float(x), cell) for x, cell in places if x is not None and getattr(cell, number) is not None), key=lambda each: each[0]
    )


def _place(view: View, x: float) -> str:
    categories = view.exhibit.figure is not None and view.exhibit.figure.categories
    return view.variants[int(x)].label if categories else f"{x:g}"


def band(cell: Cell) -> tuple[float, float] | None:
    """The interval of a mean over seeds: of resampled images and, where there are several, seeds; of what is no mean over images
    one standard deviation over seeds."""
    if cell.by_image is not None:
        return interval(resamples(cell))
    return None if cell.deviation is None or cell.mean is None else (cell.mean - cell.deviation, cell.mean + cell.deviation)


def _curves(view: View) -> list[Picture]:
    """A logged metric of each variant over its steps, one picture a metric: the mean over seeds, and one standard deviation."""
    figure = view.exhibit.figure
    assert figure is not None
    pictures: list[Picture] = []
    for name in figure.logged:
        drawing, (axes,) = _axes(view, y_label=figure.y_label or name)
        words = []
        for number, variant in enumerate(view.variants):
            runs = [run for runs in variant.runs.values() for run in runs if run.status == "finished" and run.folder is not None]
            lines = [line for run in runs if run.folder is not None and (line := logged(run.folder, name))]
            for part, curve in enumerate(_of_seeds(lines)):
                xs, ys, spread = (np.array(values) for values in zip(*curve, strict=True))
                style: dict[str, Any] = {"color": LINES[number % 8], "linestyle": DASHES[number // 8 % 4], "linewidth": 1.6}
                few: dict[str, Any] = {"marker": MARKERS[number % 8], "markersize": 4} if len(xs) <= 30 else {}
                axes.plot(xs, ys, label=None if part else variant.label, **style, **few)
                if spread.any():
                    axes.fill_between(xs, ys - spread, ys + spread, color=LINES[number % 8], alpha=0.18, linewidth=0)
            if lines:
                first, last = lines[0][0], lines[0][-1]
                told = f"{variant.label}: from {first[1]:.4g} at step {first[0]:g} to {last[1]:.4g} at step {last[0]:g}"
                without = f"; {len(runs) - len(lines)} of {len(runs)} seeds did not log it" if len(lines) < len(runs) else ""
                words.append(told + f" (the first of {len(lines)} seeds)" * (len(lines) > 1) + without)
        if words:
            legend(drawing, axes)
            title = name if len(figure.logged) > 1 else ""
            drawn = _picture(view, drawing, f"{name} over steps. " + "; ".join(words) + ".", title, len(pictures))
            shade = (
                "Lines: the mean over seeds at the steps that all have, shaded one standard deviation, where there are several."
            )
            pictures.append(replace(drawn, bars=shade))
    return pictures


def _of_seeds(lines: Sequence[Sequence[tuple[float, float]]]) -> list[list[tuple[float, float, float]]]:
    """The mean over seeds with its standard deviation at the steps that all have; each seed by itself where they share none."""
    thin = [dict(thinned(line)) for line in lines]
    shared = sorted(set.intersection(*map(set, thin))) if len(thin) > 1 else []
    if not shared:
        return [[(x, y, 0.0) for x, y in line.items()] for line in thin]
    at_step = [[line[x] for line in thin] for x in shared]
    return [[(x, statistics.fmean(ys), statistics.stdev(ys)) for x, ys in zip(shared, at_step, strict=True)]]


def _scatter(view: View) -> list[Picture]:
    """One column against another, a point a variant; the paper's points hollow."""
    figure = view.exhibit.figure
    assert figure is not None
    x_name, y_name = figure.x_column or "", figure.y_column or ""
    pairs = [(variant.label, variant.cells[x_name], variant.cells[y_name]) for variant in view.variants]
    ours = [(label, x.mean, y.mean) for label, x, y in pairs if x.mean is not None and y.mean is not None]
    paper = [(label, x.published, y.published) for label, x, y in pairs if x.published is not None and y.published is not None]
    quoted = [(label, values[x_name], values[y_name]) for label, values in view.quoted if x_name in values and y_name in values]
    pictures: list[Picture] = []
    # The paper's points have a picture of their own: at miniature scale the two have nothing in common but the axes' names.
    for kind, points, color in (("measured", ours, 0), ("published", [*paper, *quoted], 1)):
        if not points:
            continue
        drawing, (axes,) = _axes(view)
        for _, x, y in points:
            face = "none" if kind == "published" else LINES[color]
            axes.plot([float(x or 0)], [float(y or 0)], marker="o", linestyle="", color=LINES[color], markerfacecolor=face)
        bands: list[tuple[float, float, float]] = []
        for _, x_cell, y_cell in pairs if kind == "measured" else []:
            if x_cell.mean is not None and y_cell.mean is not None and (found := band(y_cell)) is not None:
                bands.append((x_cell.mean, *found))
                axes.vlines(*bands[-1], color=LINES[color], linewidth=1.4)
        axes.margins(x=0.22, y=0.12)
        if figure.log_x:
            plain_ticks(axes, None)
        numbered = len(points) > _NAMED
        names = [str(number) for number in range(1, len(points) + 1)] if numbered else [label for label, _, _ in points]
        label_points(
            drawing, axes, [(name, float(x or 0), float(y or 0)) for name, (_, x, y) in zip(names, points, strict=True)], bands
        )
        words = "; ".join(f"{label} at {float(x or 0):.4g}, {float(y or 0):.4g}" for label, x, y in points)
        text = f"Scatter of {axes.get_ylabel() or y_name} against {axes.get_xlabel() or x_name}, {kind}: {words}."
        scale = "Full scale, the paper's numbers" if kind == "published" else None
        drawn = _picture(view, drawing, text, kind.capitalize(), len(pictures), scale)
        key = tuple(label for label, _, _ in points) if numbered else ()
        pictures.append(replace(drawn, key=key, bars=_BARS if bands else ""))
    return pictures


def _checkpoint_scatter(view: View) -> list[Picture]:
    """Two logged metrics against each other, a point a validation."""
    figure = view.exhibit.figure
    assert figure is not None
    x, y = figure.logged
    drawing, (axes,) = _axes(view, figure.x_label or x, figure.y_label or y)
    found = []
    for number, variant in enumerate(view.variants):
        points = checkpoints([run for runs in variant.runs.values() for run in runs], x, y)
        if points:
            found.append(len(points))
            axes.plot(
                [each[1] for each in points], [each[2] for each in points], linestyle="", marker=MARKERS[number % 8],
                color=LINES[number % 8], label=variant.label,
            )  # fmt: skip
    if not found:
        return []
    legend(drawing, axes)
    rows = f"{len(found)}{f' of {len(view.variants)}' if len(found) < len(view.variants) else ''} rows"
    return [_picture(view, drawing, f"Scatter of {y} against {x}, {sum(found)} validations of {rows}.")]


def _schedules(view: View) -> Picture:
    """The annealing functions of IAIS, computed by the objective's own code."""
    schedules = [
        ("log, γ = 10", Annealing("log", 10)),
        ("log, γ = 5", Annealing("log", 5)),
        ("linear", Annealing("linear")),
        ("exp, γ = 5", Annealing("exp", 5)),
        ("exp, γ = 10", Annealing("exp", 10)),
    ]
    drawing, (axes,) = _axes(view, "share of all steps, t / T", "weight of the IAIS loss")
    steps = 50
    for number, (label, annealing) in enumerate(schedules):
        xs = [step / steps for step in range(steps + 1)]
        ys = [annealing(step, steps) for step in range(steps + 1)]
        axes.plot(xs, ys, color=LINES[number], linestyle=DASHES[number % 4], label=label, linewidth=1.8)
    legend(drawing, axes)
    words = "; ".join(f"{label}: {annealing(25, 50):.2f}" for label, annealing in schedules)
    return _picture(view, drawing, f"Five annealing functions from the first to the last step. Half way: {words}.", scale="")


def _maps(view: View) -> list[Picture]:
    """Attention maps that `crosslight report --maps` has stored: every variant's (of its seeds the first's), of one example."""
    pictures: list[Picture] = []
    for variant in view.variants:
        runs = [run for runs in variant.runs.values() for run in runs if run.status == "finished" and run.folder is not None]
        for run in runs[:1]:
            assert run.folder is not None
            for found in stored(run.folder):
                name, label = f"{view.slug}-{len(pictures)}", variant.label
                label += f", seed {run.seed} of {len(runs)}" if len(runs) > 1 else ""
                pictures.append(replace(draw_map(label, found, name), scale=f"{view.scale.capitalize()} scale"))
    return pictures


def draw_map(label: str, maps: Maps, name: str = "map") -> Picture:
    """Attention maps of one example.

    Args:
        label: Whose they are.
        maps: From `experiments.analysis`.
        name: Of the picture.
    """
    if isinstance(maps, AttentionMaps):
        return _relation_maps(label, maps, name)
    return _word_maps(label, maps, name) if isinstance(maps, WordMaps) else _boxed_maps(label, maps, name)


def _relation_maps(label: str, maps: AttentionMaps, name: str) -> Picture:
    """Words among words and regions among regions, each row of attention summing to 1 over its side."""
    with rc_context({**STYLE, "axes.grid": False}):
        drawing = Drawing(figsize=(WIDTH, 3.3))
        drawing.set_layout_engine("constrained", h_pad=TITLE_PAD)
        left, right = drawing.subplots(1, 2)
    for axes, values, names, side in (
        (left, maps.words_WW, maps.words, "words"),
        (right, maps.regions_RR, [str(each) for each in range(len(maps.regions_RR))], "regions"),
    ):
        # one scale for every map: on a scale of its own an even map would be as bright as one with a peak
        image = axes.imshow(values, cmap="cividis", norm=PowerNorm(0.5, vmin=0.0, vmax=1.0))
        axes.set_title(side, fontsize=10)
        bar = drawing.colorbar(image, ax=axes, orientation="horizontal", shrink=0.8, pad=0.03, aspect=24)
        bar.set_ticks([0.0, 0.1, 0.5, 1.0], labels=["0", "0.1", "0.5", "1"])
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0, labelcolor=INK)
        few = len(names) <= 16
        turned: dict[str, Any] = {"rotation": 60, "ha": "right"} if side == "words" else {}
        axes.set_xticks(range(len(names)) if few else [], names if few else [], fontsize=7.5, **turned)
        axes.set_yticks(range(len(names)) if few else [], names if few else [], fontsize=7.5)
        image.set_interpolation("nearest")
    text = (
        f"{label}: two heat maps of intra-modal self-attention of layer {maps.layer}, {len(maps.words)} words and "
        f"{len(maps.regions_RR)} regions of “{maps.caption}”. IAIS losses of the pair: singular {maps.singular:.3g}, distributed "
        f"{maps.distributed:.3g}."
    )
    return Picture(drawing, text, name, label)


def _word_maps(label: str, maps: WordMaps, name: str) -> Picture:
    """The photograph, then each word's map over it."""
    peaks = [map_YX.max() * map_YX.size / (map_YX.sum() or 1.0) for map_YX in maps.maps_KYX]
    heads = [f"{word}\npeak {peak:.0f}×" for word, peak in zip(maps.words, peaks, strict=True)]
    drawing = _panels(maps, ["image", *heads], {})
    told = ", ".join(f"“{word}” {peak:.1f}" for word, peak in zip(maps.words, peaks, strict=True))
    text = (
        f"{label}: where each word of “{maps.caption}”, which it wrote, looks ({maps.shown}). Peaks over an even share: {told}."
    )
    return Picture(
        drawing, text, name, label, bars=f"Each word of “{maps.caption}”, which it wrote; its peak in times an even share."
    )


def _boxed_maps(label: str, maps: BoxedMaps, name: str) -> Picture:
    """The photograph, then the map of each phrase that has boxes, with these and the share in them."""
    shares = [
        f"{100 * inside:.0f} % in {'its box' if (maps.word_B == word).sum() == 1 else 'its boxes'}"
        for word, inside in enumerate(maps.inside_K)
    ]
    areas = [f"{100 * area:.0f} % of the image" for area in maps.area_K]
    heads = [
        "\n".join([*textwrap.wrap(thing, 16, max_lines=2, placeholder=" …"), share, f"({area})"])
        for thing, share, area in zip(maps.words, shares, areas, strict=True)
    ]
    boxes = {word + 1: maps.boxes_B4[maps.word_B == word] for word in range(len(maps.words))}
    drawing = _panels(maps, ["image", *heads], boxes)
    told = "; ".join(f"“{thing}” {share}, {area}" for thing, share, area in zip(maps.words, shares, areas, strict=True))
    text = f"{label}: where the words look that name a thing with a box, of “{maps.caption}” ({maps.shown}). {told}."
    return Picture(
        drawing, text, name, label, bars=f"“{maps.caption}”, as a person wrote it: the things named in it, and their boxes."
    )


def _panels(maps: WordMaps | BoxedMaps, heads: Sequence[str], boxes: Mapping[int, Any]) -> Drawing:
    """The photograph, then it with each map over it, under its head and with its boxes; and what the colors say."""
    columns = min(4, max(3, len(heads)))
    rows = -(-len(heads) // columns)
    height, width = maps.image_YX3.shape[:2]
    panel, above = WIDTH / columns, 0.135 * max(head.count("\n") + 1 for head in heads) + 0.12
    tall = 0.94 * panel * min(1.5, height / width)
    size = (WIDTH, rows * (tall + above) + 0.34)
    with rc_context({**STYLE, "axes.grid": False}):
        drawing = Drawing(figsize=size)
        left, top, right, bottom = maps.covered
        for place, head in enumerate(heads):
            row, column = divmod(place, columns)
            bottom_edge = 1 - (row + 1) * (tall + above) / size[1]
            axes = drawing.add_axes(((column + 0.03) / columns, bottom_edge, 0.94 / columns, tall / size[1]))
            axes.axis("off")
            axes.imshow(maps.image_YX3, extent=(0, width, height, 0))
            axes.set_title(head, fontsize=8.5, linespacing=1.1, pad=3)
            if place:
                map_YX = maps.maps_KYX[place - 1]
                overlay(axes, map_YX / (float(map_YX.max()) or 1.0), (left, right, bottom, top))
            for box in boxes.get(place, ()):
                corner, extent = (float(box[0]), float(box[1])), (float(box[2] - box[0]), float(box[3] - box[1]))
                axes.add_patch(Rectangle(corner, *extent, fill=False, edgecolor="black", linewidth=2.6))
                axes.add_patch(Rectangle(corner, *extent, fill=False, edgecolor="white", linewidth=1.3))
            axes.set_xlim(0, width)
            axes.set_ylim(height, 0)
        color_scale(drawing.add_axes((0.18, 0.2 / size[1], 0.64, 0.07 / size[1])), color=INK, fontsize=8)
    return drawing


# -------------------------------------------------------------------------------------------------------- axes and pictures


def _axes(view: View, x_label: str = "", y_label: str = "", panels: int = 1) -> tuple[Drawing, list[Axes]]:
    """A drawing and its panels, one above the other over one x axis."""
    figure = view.exhibit.figure
    assert figure is not None
    with rc_context(STYLE):
        drawing = Drawing(figsize=(WIDTH, 3.5 if panels == 1 else 2.2 * panels), layout="constrained")
        found = list(drawing.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
        found[-1].set_xlabel(x_label or figure.x_label or ("step" if figure.kind == "curves" else ""))
        for axes in found:
            axes.set_ylabel(y_label or figure.y_label)
            if figure.log_x:
                axes.set_xscale("symlog" if any(variant.declared.x == 0 for variant in view.variants) else "log")
    return drawing, found


def _number(cell: Cell) -> str:
    """ "5.2 [4.0, 6.4]": the mean and its bar."""
    digits, bar = cell.column.digits, band(cell)
    if bar is None:
        return exports.number(cell.mean, digits)
    return f"{exports.number(cell.mean, digits)} [{exports.number(bar[0], digits)}, {exports.number(bar[1], digits)}]"


def _picture(view: View, drawing: Drawing, text: str, title: str = "", number: int = 0, scale: str | None = None) -> Picture:
    shown = f"{view.scale.capitalize()} scale" if scale is None else scale
    return Picture(drawing, text, f"{view.slug}-{number}", title, shown)
