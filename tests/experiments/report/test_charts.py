"""Figures of frames show the numbers of the frames."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
from matplotlib.collections import LineCollection

from datamodules.errors import InputError
from experiments.report import charts
from experiments.report.drawing import FAINT, INK, LINES, Gallery


def test_labels_are_as_short_as_they_may_be() -> None:
    names = ["mwa-base-full-s0-0123abcd", "mwa-base-ke_only-s0-4567abcd"]
    assert list(charts.short_labels(names).values()) == ["full", "ke_only"]
    seeds = ["mwa-base-full-s0-0123abcd", "mwa-base-full-s1-4567abcd"]
    assert list(charts.short_labels(seeds).values()) == ["full s0", "full s1"]
    assert list(charts.short_labels(["a-b", "a"]).values()) == ["a-b", "a"]
    assert charts.short_labels(["mwa-full-s0-0123abcd"] * 2) == {"mwa-full-s0-0123abcd": "mwa-full"}


def test_curves_have_every_logged_value() -> None:
    history = pandas.DataFrame(
        {"run": ["one"] * 3 + ["other"] * 3, "step": [0, 1, 2] * 2, "metric": "train/loss", "value": [3.0, 2, 1, 6, 5, 4]}
    )
    (picture,) = charts.curves(history, "train/loss").pictures
    assert [line.get_ydata().tolist() for line in picture.drawing.axes[0].lines] == [[3, 2, 1], [6, 5, 4]]
    assert "one from 3 to 1; other from 6 to 4" in picture.text
    (smooth,) = charts.curves(history, ["train/loss"], smooth=2).pictures
    assert smooth.drawing.axes[0].lines[0].get_ydata().tolist() == [3, 2.5, 1.5]
    with pytest.raises(InputError, match="no run logged train/los; of its kind there are train/loss"):
        charts.curves(history, "train/los")


def test_intervals_are_those_of_the_table() -> None:
    table = pandas.DataFrame(
        {"run": ["one", "one", "other"], "categories": ["animals", "scene", "scene"], "queries": [9, 5, 4], "images": 3,
         "mean": [10.0, 20, 30], "low": [5.0, 15, 25], "high": [15.0, 30, 45]}
    )  # fmt: skip
    picture = charts.intervals(table, "R@1, %")
    (axes,) = picture.drawing.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[10, 20], [30]]
    bars = [
        segment[:, 0].tolist() for each in axes.collections if isinstance(each, LineCollection) for segment in each.get_segments()
    ]
    assert bars == [[5, 15], [15, 30], [25, 45]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["animals (9)", "scene (4–5)"]


def test_agreement_counts_the_queries_on_either_side() -> None:
    queries = pandas.DataFrame({"one": [1, 1, 8, 100, 3], "other": [1, 4, 2, 100, np.nan]})
    picture = charts.agreement(queries, "one", "other")
    assert "Of 4 queries one ranks 1 better" in picture.text
    assert "other 1 (below it), 2 are ranked alike" in picture.text
    counts = picture.drawing.axes[0].collections[0].get_array()
    assert np.nansum(counts) == 4


def test_costs_are_relative_to_the_base() -> None:
    frame = pandas.DataFrame({"run": ["full", "half"], "memory": [8.0, 2.0], "time": [4.0, 4.0]})
    picture = charts.relative(frame, {"memory": "memory", "time": "time"}, "full")
    assert "half: memory 25 %, time 100 %" in picture.text
    with pytest.raises(InputError, match="no run is called none; there are full, half"):
        charts.relative(frame, {"memory": "memory"}, "none")


def test_parallel_lines_go_through_each_runs_options_and_color_by_its_metric() -> None:
    frame = pandas.DataFrame({"lr": [1e-4, 1e-2, 1e-3], "adapter": ["a.b.One", None, "a.b.One"], "val/rsum": [1.0, 3.0, 2.0]})
    picture = charts.parallel(frame, ["lr", "adapter"], "val/rsum")
    (axes,) = picture.drawing.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    heights = np.array([line.get_ydata() for line in lines])
    np.testing.assert_allclose(heights[:, 2], [0, 0.5, 1])
    np.testing.assert_allclose(heights[:, 0], [0, 0.5, 1], atol=0.02)
    light = [np.mean(line.get_color()[:3]) for line in lines]
    assert light == sorted(light), "the best are light"
    assert {"One", "–", "0.001", "2"} <= {text.get_text() for text in axes.texts}
    assert "The largest val/rsum, 3: lr 0.01, adapter –" in picture.text


def test_names_stand_beside_points_and_within_the_axes() -> None:
    frame = pandas.DataFrame({"run": ["near", "close", "far"], "x": [1.0, 1.05, 9.0], "y": [1.0, 1.0, 1.0]})
    picture = charts.scatter(frame, "x", "y")
    (axes,) = picture.drawing.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
    with pytest.raises(InputError, match="no run has both x and z"):
        charts.scatter(frame, "x", "z")


def test_a_notebook_gets_pictures_with_their_own_colors_and_words() -> None:
    table = pandas.DataFrame({"option": ["lr", "decay"], "share": [0.8, 0.1], "chance": [0.3, 0.3], "runs": 9})
    picture = charts.importances(table, "val/<rsum>")
    html = Gallery((picture, picture))._repr_html_()
    assert html.count("<figure") == 2
    assert "var(" not in html, "a notebook has no style sheet of ours"
    assert {INK, FAINT, LINES[0]} <= {color for color in (INK, FAINT, *LINES) if color in html}
    assert "val/&lt;rsum&gt;, by option: lr 0.80 (chance 0.30)" in html
    assert "<rsum>" not in html
    assert "Of 9 runs." in html
