"""Bars and shades of figures are the intervals of the numbers, and maps say what their colors mean."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_runs import fill
from matplotlib.collections import LineCollection

from datamodules.errors import InputError
from experiments.analysis.stored_maps import BoxedMaps, store_map, stored
from experiments.papers.schema import Figure as Declared
from experiments.report import figures
from experiments.report.bootstrap import interval
from experiments.report.collect import View, collect
from experiments.report.drawing import LINES
from experiments.report.means import resamples
from experiments.runs.store import RunFolders


def view_of(home: Path, name: str, figure: Declared | None = None) -> View:
    (view,) = collect([name], "miniature", RunFolders([home / "runs"]))
    return view if figure is None else replace(view, exhibit=replace(view.exhibit, figure=figure))


@pytest.mark.parametrize("categories", [False, True])
def test_every_point_of_lines_has_the_bar_of_its_interval(home: Path, categories: bool) -> None:
    view = view_of(home, "mwa/figure2")
    assert view.exhibit.figure is not None
    view = replace(view, exhibit=replace(view.exhibit, figure=replace(view.exhibit.figure, categories=categories)))
    (picture,) = figures.draw(view)
    assert "95 % interval" in picture.bars
    drawing = picture.drawing
    bars = [each for each in drawing.axes[0].collections if isinstance(each, LineCollection)]
    assert len(bars) == len(view.exhibit.columns)
    for column, collection in zip(view.exhibit.columns, bars, strict=True):
        cells = [variant.cells[column.name] for variant in view.variants if variant.cells[column.name].mean is not None]
        wanted = sorted(interval(resamples(cell)) for cell in cells)
        assert all(cell.n == 2 for cell in cells), "of two seeds: these are resampled too"
        np.testing.assert_allclose(sorted((low, high) for (_, low), (_, high) in collection.get_segments()), wanted)
        low, high = drawing.axes[0].get_ylim()
        assert low <= min(one for one, _ in wanted) < max(other for _, other in wanted) <= high, "no bar is cut"
    assert re.search(r"→ [\d.]+ \[[\d.]+, [\d.]+\]", picture.text), "in words as well"


def test_a_mean_over_no_images_has_one_standard_deviation_and_one_seed_none(home: Path) -> None:
    view = view_of(home, "mwa/table1")
    cell = view.cell("full fine-tuning", "minutes")
    assert cell.mean is not None
    assert cell.deviation is not None
    assert figures.band(cell) == (cell.mean - cell.deviation, cell.mean + cell.deviation)
    assert figures.band(replace(cell, measured=cell.measured[:1])) is None


def test_curves_are_means_over_seeds_with_their_spread(home: Path) -> None:
    pictures = figures.draw(view_of(home, "iais/figure5"))
    drawn = [picture.drawing for picture in pictures]
    assert all("shaded one standard deviation" in picture.bars for picture in pictures)
    assert all(len(drawing.axes[0].collections) == len(drawing.axes[0].lines) > 0 for drawing in drawn), "a shade a line"
    assert figures._of_seeds([[(0.0, 1.0), (1.0, 2.0)], [(0.0, 3.0), (1.0, 2.0), (2.0, 9.0)]]) == [
        [(0.0, 2.0, pytest.approx(2**0.5)), (1.0, 2.0, 0.0)]
    ]
    assert figures._of_seeds([[(0.0, 1.0)], [(5.0, 3.0)]]) == [[(0.0, 1.0, 0.0)], [(5.0, 3.0, 0.0)]], "no step in common"
    assert figures._of_seeds([]) == []


def test_named_things_are_outlined_and_the_share_in_their_boxes_is_printed(home: Path, tmp_path: Path) -> None:
    fill(tmp_path, ["iais/figure7"], "miniature", [0])
    (folder,) = tmp_path.glob("iais-singular-s0-*")
    maps = BoxedMaps(
        words=("a <large> purple house", "two balls"),
        maps_KYX=np.full((2, 2, 2), 0.2),
        inside_K=np.array([0.625, 0.1]),
        area_K=np.array([0.17, 0.08]),
        word_B=np.array([0, 1, 1]),
        boxes_B4=np.array([[1.0, 1, 3, 3], [0, 0, 1, 1], [4, 2, 6, 4]]),
        image_YX3=np.zeros((4, 6, 3), np.uint8),
        covered=(0.0, 0.0, 6.0, 4.0),
        caption="a <large> purple house beside two balls",
        shown="layer 1",
    )
    store_map(folder, "boxed-0.npz", maps)
    (found,) = stored(folder)
    assert isinstance(found, BoxedMaps)
    (view,) = collect(["iais/figure7"], "miniature", RunFolders([tmp_path]))
    (picture,) = figures.draw(view)
    assert "“a <large> purple house” 62 % in its box, 17 % of the image; “two balls” 10 % in its boxes, 8 %" in picture.text
    image, first, second, scale = picture.drawing.axes
    assert [len(axes.patches) for axes in (image, first, second)] == [0, 2, 4], "black under white"
    assert (first.patches[0].get_xy(), first.patches[0].get_width()) == ((1.0, 1.0), 2.0)
    assert "62 % in its box\n(17 % of the image)" in first.get_title()
    assert [each.get_text() for each in scale.get_xticklabels()] == ["no attention", "half", "the word's peak"]
    assert "as a person wrote it" in picture.bars
    store_map(folder, "boxed-0.npz", replace(maps, word_B=np.array([0, 1, 2])))
    (view,) = collect(["iais/figure7"], "miniature", RunFolders([tmp_path]))
    assert [run.status for run in view.runs if run.folder == folder] == ["unreadable"], "a box of no word"


@pytest.mark.parametrize(("ending", "begin"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_a_picture_is_written_as_its_ending_says_twice_the_same(home: Path, tmp_path: Path, ending: str, begin: bytes) -> None:
    view = view_of(home, "mwa/figure2")
    first, second = (figures.draw(view)[0].save(tmp_path / name / f"figure.{ending}").read_bytes() for name in ("one", "two"))
    assert first.startswith(begin)
    assert first == second, "no date in it"
    if ending == "svg":
        assert LINES[0].encode() in first
        assert b"var(" not in first, "a file has no style sheet"


def test_another_ending_is_refused(home: Path, tmp_path: Path) -> None:
    (picture,) = figures.draw(view_of(home, "mwa/figure2"))
    with pytest.raises(InputError, match=r"figure\.gif: a picture is a \.svg, \.pdf, \.png file"):
        picture.save(tmp_path / "figure.gif")
