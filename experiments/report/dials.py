"""The dials of runs as a report shows them: the target against what is retained over alpha, with intervals, and a table.

Tests alone are shown; alpha was picked on validation. Seeds of one configuration are one curve: its numbers are means over seeds,
and its intervals those of resampled images and seeds. What of them is not in it, it says. The draws of all alphas are the same: a
difference from alpha 1 is paired.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.report.bootstrap import Floats, PerImage, interval, mean_of, per_image, seed_weights
from experiments.report.collect import Measured, View, unlike
from experiments.report.escape import csv_value
from experiments.runs.dial import Dialling, Point, Stage, read_dial
from experiments.runs.headings import factor_and_form, heading
from experiments.runs.per_query import read_per_query
from experiments.runs.results import Evaluation
from experiments.runs.store import Run

if TYPE_CHECKING:
    from experiments.report.drawing import Picture

_BARS = (
    "Bars: 95 % intervals of the tests, with images and several seeds resampled. Rings: the alpha that was picked on validation. "
    "0 is the start, 1 as trained."
)


@dataclass(frozen=True)
class Number:
    """A mean over seeds.

    Args:
        mean: The number.
        resamples_B: Of it, over images and seeds; None where it is no mean over images.
    """

    mean: float
    resamples_B: Floats | None

    @cached_property
    def band(self) -> tuple[float, float] | None:
        """95 %."""
        return None if self.resamples_B is None else interval(self.resamples_B)

    def minus(self, other: Number) -> Number:
        """The difference, paired."""
        both = self.resamples_B is not None and other.resamples_B is not None
        return Number(self.mean - other.mean, self.resamples_B - other.resamples_B if both else None)  # type: ignore[operator]


@dataclass(frozen=True)
class Place:
    """A curve at an alpha: tests of the target and, where something is to be retained, the mean over that."""

    alpha: float
    target: Number
    retained: Number | None


@dataclass(frozen=True)
class Curve:
    """The dial of the seeds of one configuration.

    Args:
        label: Of the configuration.
        metric: That is shown.
        target: Name of the data.
        retention: Names of the data.
        places: In the order of alpha.
        picked: By the rule, of the mean over seeds on validation; None where that is not measured.
        by_seed: What each seed picked for itself.
        rule: In words.
        kept: Parameters that stay as trained at every alpha.
        remarks: Which seeds and alphas are not in it, and what its seeds differ in that should not differ.
    """

    label: str
    metric: str
    target: str
    retention: tuple[str, ...]
    places: tuple[Place, ...]
    picked: float | None
    by_seed: Mapping[int, float | None]
    rule: str
    kept: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def shows(self) -> tuple[str, str, tuple[str, ...]]:
        """What curves of one picture have in common."""
        return self.metric, self.target, self.retention

    @property
    def digits(self) -> int:
        """Behind the point."""
        form = factor_and_form(self.metric)[1]
        return int(form[3]) if form.endswith("f}") else 3

    @property
    def shown(self) -> list[tuple[str, Place, Place]]:
        """For a table: its ends and the picked place, each beside the last one."""
        last = self.places[-1]
        chosen = {self.places[0].alpha: "start", last.alpha: "as trained"}
        if self.picked is not None:
            chosen[self.picked] = "picked" if self.picked not in chosen else f"{chosen[self.picked]}, picked"
        return [(chosen[place.alpha], place, last) for place in self.places if place.alpha in chosen]


def curve_of(label: str, runs: Sequence[Run]) -> Curve | None:
    """The curve of runs that are seeds of one configuration; None where none was dialled.

    Raises:
        InputError: A dial.json or a per-query file that it names cannot be read.
    """
    kept: list[tuple[Run, Dialling]] = []
    shared: set[float] = set()
    tried: set[float] = set()
    remarks = []
    for run in runs:
        dial = None if run.folder is None else read_dial(run.folder)
        alphas = set() if dial is None else {point.alpha for point in dial.points if _whole(dial, point)}
        if dial is None:
            why = "it is not dialled"
        elif dial.no_result is not None:
            why = f"its dial is no result ({dial.no_result})"
        elif not alphas:
            why = "it is dialled in part, and at no alpha on all of its data"
        elif kept and _of(dial) != _of(kept[0][1]):
            why = f"it is dialled for {_words(dial)}, the others for {_words(kept[0][1])}"
        elif kept and shared.isdisjoint(alphas):
            why = "it has no alpha that the others have"
        else:
            shared = shared & alphas if kept else alphas
            tried |= alphas
            kept.append((run, dial))
            continue
        remarks.append(f"seed {run.seed} is left out: {why}")
    if not kept:
        return None
    if some := sorted(tried - shared):
        remarks.append(f"left out, because not all seeds have it: alpha {', '.join(f'{alpha:g}' for alpha in some)}")
    remarks += [f"its seeds differ in {each}" for each in _differing(kept)]
    first = kept[0][1]
    places = []
    for alpha in sorted(shared):
        target = _number(kept, alpha, (first.target,))
        places.append(Place(alpha, target, _number(kept, alpha, first.retention) if first.retention else None))
    by_seed = {run.seed: dial.picked for run, dial in kept}
    picked = _picked([dial for _, dial in kept], sorted(shared))
    return Curve(
        label, first.metric, first.target, first.retention, tuple(places), picked, by_seed, first.picked_by, first.kept,
        tuple(remarks),
    )  # fmt: skip


def dials_of(view: View) -> list[Curve]:
    """Of an exhibit's variants, where its figure is of kind dial."""
    if view.exhibit.figure is None or view.exhibit.figure.kind != "dial":
        return []
    finished = [
        (each.label, [run for runs in each.runs.values() for run in runs if run.status == "finished"]) for each in view.variants
    ]
    found = [curve_of(label, runs) for label, runs in finished]
    return [curve for curve in found if curve is not None]


def _of(dial: Dialling) -> tuple[str, str, tuple[str, ...]]:
    return dial.metric, dial.target, dial.retention


def _words(dial: Dialling) -> str:
    retained = f", retaining {' and '.join(dial.retention)}" if dial.retention else ""
    return f"{dial.metric} of {dial.target}{retained}"


def _differing(kept: Sequence[tuple[Run, Dialling]]) -> list[str]:
    """Code and data that should be the same for all seeds, in words."""
    return unlike(
        Measured(
            run.seed, 0.0, data=name, fingerprint=None if (told := dial.data.get(name)) is None else told.fingerprint,
            code=None if run.results is None else run.results.code,
        )
        for run, dial in kept
        for name in (dial.target, *dial.retention)
    )  # fmt: skip


def _whole(dial: Dialling, point: Point) -> bool:
    """Whether all tests are done."""
    return all(dial.value(point, data, "test") is not None for data in (dial.target, *dial.retention))


def _picked(dials: Sequence[Dialling], alphas: Sequence[float]) -> float | None:
    sign = 1.0 if dials[0].better == "max" else -1.0
    means = {}
    for alpha in alphas:
        scores = [
            score for dial in dials if (point := dial.point(alpha)) is not None and (score := dial.score(point)) is not None
        ]
        if len(scores) == len(dials) and np.isfinite(scores).all():
            means[alpha] = sign * statistics.fmean(scores)
    return max(means, key=lambda alpha: means[alpha]) if means else None


def _number(found: Sequence[tuple[Run, Dialling]], alpha: float, names: Sequence[str]) -> Number:
    """The mean over data sets and seeds of the tests there."""
    of_names = []
    for shift, name in enumerate(names):
        tests = [(run, dial.metric, _test(dial, alpha, name)) for run, dial in found]
        values = [test.metrics[metric] for _, metric, test in tests]
        parts = [_by_image(run, metric, test) for run, metric, test in tests]
        of_names.append(Number(statistics.fmean(values), _resampled([part for part in parts if part], len(parts), shift)))
    factor = factor_and_form(found[0][1].metric)[0]  # caption scores are shown times 100
    mean = statistics.fmean(each.mean for each in of_names)
    drawn = [each.resamples_B for each in of_names if each.resamples_B is not None]
    return Number(factor * mean, factor * np.mean(drawn, axis=0) if len(drawn) == len(of_names) else None)


def _test(dial: Dialling, alpha: float, name: str, stage: Stage = "test") -> Evaluation:
    point = dial.point(alpha)
    found = None if point is None else point.of(name, stage)
    assert found is not None, "alphas are those at which all tests are done"
    return found


def _by_image(run: Run, metric: str, test: Evaluation) -> PerImage | None:
    if test.per_query_file is None or run.folder is None:
        return None
    arrays = read_per_query(run.folder / test.per_query_file, test.metrics)
    return per_image(metric, arrays, test.metrics[metric])


def _resampled(parts: Sequence[PerImage], count: int, shift: int) -> Floats | None:
    """[B] means over resampled seeds and images; data sets of other shifts are drawn independently of each other."""
    if len(parts) != count or mean_of(parts) is None:
        return None
    of_seeds_BS = np.stack([part.resamples() for part in parts], 1)
    drawn: Floats = (np.roll(of_seeds_BS, shift, axis=0) * seed_weights(count)).sum(1)
    return drawn


# ------------------------------------------------------------------------------------------------------------------ shown


def dial_picture(curves: Sequence[Curve], name: str, scale: str = "") -> Picture | None:
    """The target against what is retained, a line a curve; over alpha where nothing is retained. None without curves.

    Args:
        curves: Of one target; those of another are left out, and the text says so.
        name: Of the picture.
        scale: Which scale its numbers have.
    """
    if not curves:
        return None
    from matplotlib import rc_context  # it takes longer to import than a table to make
    from matplotlib.figure import Figure as Drawing

    from experiments.report.drawing import DASHES, LINES, MARKERS, STYLE, WIDTH, Picture, legend

    first = curves[0]
    alike = [curve for curve in curves if curve.shows == first.shows]
    with rc_context(STYLE):
        drawing = Drawing(figsize=(WIDTH, 3.8), layout="constrained")
        axes = drawing.subplots()
    shown = heading(first.metric)
    axes.set_xlabel(f"retained: {shown} of {' and '.join(first.retention)}" if first.retention else "alpha")
    axes.set_ylabel(f"target: {shown} of {first.target}")
    words = []
    for number, curve in enumerate(alike):
        color = LINES[number % 8]
        xs = [place.alpha if place.retained is None else place.retained.mean for place in curve.places]
        ys = [place.target.mean for place in curve.places]
        style: dict[str, Any] = {"color": color, "linestyle": DASHES[number // 8 % 4], "linewidth": 1.6}
        axes.plot(xs, ys, marker=MARKERS[number % 8], markersize=4, label=curve.label, **style)
        for place, x, y in zip(curve.places, xs, ys, strict=True):
            if place.target.band is not None:
                axes.vlines(x, *place.target.band, color=color, linewidth=0.8, alpha=0.7)
            if place.retained is not None and place.retained.band is not None:
                axes.hlines(y, *place.retained.band, color=color, linewidth=0.8, alpha=0.7)
            if place.alpha == curve.picked:
                axes.plot([x], [y], marker="o", markersize=11, markerfacecolor="none", markeredgewidth=1.6, color=color)
        if first.retention:
            for place, x, y in ((curve.places[0], xs[0], ys[0]), (curve.places[-1], xs[-1], ys[-1])):
                where: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5, "color": color}
                axes.annotate(f"{place.alpha:g}", (x, y), xytext=(5, 5), **where)
        told = ", ".join(_told(place, curve.digits) for place in curve.places)
        words.append("; ".join([f"{curve.label}: {told}{_picked_words(curve)}", *curve.remarks]))
    legend(drawing, axes)
    left_out = [curve.label for curve in curves if curve.shows != first.shows]
    more = f" Left out, because of another target or other data: {', '.join(left_out)}." if left_out else ""
    against = f"{axes.get_ylabel()}, against {axes.get_xlabel()}" if first.retention else f"{axes.get_ylabel()}, over alpha"
    return Picture(drawing, f"{against}. {'; '.join(words)}.{more}", name, "Dial", scale, bars=_BARS)


def _told(place: Place, digits: int) -> str:
    retained = "" if place.retained is None else f" at {text_of(place.retained, digits)}"
    return f"alpha {place.alpha:g} {text_of(place.target, digits)}{retained}"


def _picked_words(curve: Curve) -> str:
    return "" if curve.picked is None else f"; picked {curve.picked:g}"


def text_of(number: Number, digits: int, signed: bool = False) -> str:
    """ "412.3 [405.1, 419.0]": the number and its interval."""
    sign = "+" if signed else ""
    band = number.band
    text = f"{number.mean:{sign}.{digits}f}"
    return (text if band is None else f"{text} [{band[0]:{sign}.{digits}f}, {band[1]:{sign}.{digits}f}]").replace("-", "−")


def dial_rows(curves: Sequence[Curve]) -> list[list[str]]:
    """For a table: label, place, target, its difference from alpha 1, retained, its difference; "" where there is none."""
    rows = []
    for curve in curves:
        for what, place, last in curve.shown:
            own = place.alpha == last.alpha
            row = [curve.label, f"{place.alpha:g} ({what})", text_of(place.target, curve.digits)]
            row.append("" if own else text_of(place.target.minus(last.target), curve.digits, signed=True))
            if place.retained is None or last.retained is None:
                row += ["", ""]
            else:
                row += [
                    text_of(place.retained, curve.digits),
                    "" if own else text_of(place.retained.minus(last.retained), curve.digits, signed=True),
                ]
            rows.append(row)
    return rows


def dial_csv(curves: Sequence[Curve]) -> str:
    """A line for each curve and alpha."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    sides = [f"{side}{part}" for side in ("target", "retained") for part in ("", "_low", "_high")]
    writer.writerow(["run", "metric", "target_data", "retained_data", "alpha", *sides, "picked"])
    for curve in curves:
        for place in curve.places:
            numbers: list[float | str] = []
            for number in (place.target, place.retained):
                low, high = ("", "") if number is None or number.band is None else number.band
                numbers += ["" if number is None else number.mean, low, high]
            cells = [f"{each:.6g}" if isinstance(each, float) else each for each in numbers]
            names = [csv_value(curve.label), curve.metric, curve.target, " ".join(curve.retention), f"{place.alpha:g}"]
            writer.writerow([*names, *cells, int(place.alpha == curve.picked)])
    return stream.getvalue()
