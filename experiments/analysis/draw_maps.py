"""Draws a caption's maps: a panel a word, its attention over the image."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file
from datamodules.records import Box

if TYPE_CHECKING:
    from experiments.analysis.word_maps import TokenMaps

COLORS = "inferno"  # lighter is more, for every kind of eye and in print
_PANEL, _COLUMNS, _LETTERS = 2.1, 5, 24  # inches, panels a row, letters that fit over a panel at full size
_PIXELS = 500  # a image's longer side in a picture


def draw_maps(
    path: Path, image: Image.Image, maps: TokenMaps, covered: Box, smooth: bool = True, about: Mapping[str, str] | None = None
) -> Path:
    """A picture: the image with its caption, then for each word the image with its map over it.

    Each map has its own colors, from nothing to its peak, which is given in times an even share: a map that is even is as bright
    as any other, but its peak is near 1.

    Args:
        path: A .png, or another format of matplotlib.
        image: As the network's transform was given it.
        maps: Of its caption.
        covered: The part of the image under the grid.
        smooth: Interpolate between cells; else each cell is seen.

    Raises:
        InputError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    width, height = image.size
    small = image.copy()
    small.thumbnail((_PIXELS, _PIXELS))
    panels = 1 + len(maps.words)
    columns = min(_COLUMNS, panels)
    rows = -(-panels // columns)
    shape = min(max(height / width, 0.25), 1.6)  # of a panel; a very long image leaves some of it empty
    title = textwrap.wrap(f"“{maps.text}”" if maps.text else "(an empty caption)", 22 * columns, break_long_words=True)
    note = textwrap.wrap(f"I-Tuning, {maps.shown}", 26 * columns)
    above, below = 0.24 * len(title) + 0.19 * len(note) + 0.12, 0.42
    size = (_PANEL * columns, (_PANEL * shape + 0.5) * rows + above + below)
    figure = Figure(figsize=size)
    lines: dict[str, Any] = {"ha": "center", "parse_math": False}
    figure.text(0.5, 1 - 0.08 / size[1], "\n".join(title), va="top", fontsize=_fitting(title, 12, size[0]), **lines)
    at = 1 - (above - 0.02) / size[1]
    figure.text(0.5, at, "\n".join(note), va="bottom", fontsize=_fitting(note, 8.5, size[0]), color="#57606a", **lines)
    word_maps = maps.word_maps()
    for panel in range(panels):
        row, column = divmod(panel, columns)
        left = (column + 0.03) / columns
        bottom = 1 - (above + (row + 1) * (_PANEL * shape + 0.5)) / size[1]
        axes = figure.add_axes((left, bottom, 0.94 / columns, _PANEL * shape / size[1]))
        axes.axis("off")
        axes.imshow(small, extent=(0, width, height, 0))
        if panel == 0:
            _head(axes, "image", "dashed: what the network sees", "#57606a")
            dashes = {"fill": False, "edgecolor": "white", "linewidth": 1.2, "linestyle": (0, (4, 3))}
            axes.add_patch(_rectangle(covered, **(dashes | {"edgecolor": "black", "linestyle": "-"})))
            axes.add_patch(_rectangle(covered, **dashes))
        else:
            word, map_YX = maps.words[panel - 1], word_maps[panel - 1]
            extent = (covered.left, covered.right, covered.bottom, covered.top)
            of_peak_YX = map_YX / (float(map_YX.max()) or 1.0)
            overlay(axes, of_peak_YX, extent, smooth)
            peak = peak_in_words(map_YX, maps.word_special()[panel - 1])
            _head(axes, word.text, peak, "black")
        axes.set_xlim(min(0, covered.left), max(width, covered.right))
        axes.set_ylim(max(height, covered.bottom), min(0, covered.top))
    scale = figure.add_axes((0.3, 0.26 / size[1], 0.4, 0.09 / size[1]), label="scale")
    color_scale(scale)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            figure.savefig(part, dpi=110, metadata=dict(about or {}))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); give another folder.") from error
    return path


def overlay(axes: Any, of_peak_YX: np.ndarray[Any, Any], extent: tuple[float, float, float, float], smooth: bool = True) -> None:
    """A map over an image: attention in parts of its peak (0 to 1). The image stays to be seen, dimmed where there is none."""
    axes.imshow(
        of_peak_YX,
        extent=extent,
        interpolation="bilinear" if smooth else "nearest",
        cmap=COLORS,
        vmin=0.0,
        vmax=1.0,
        alpha=opacity(of_peak_YX),
    )


def opacity(of_peak_YX: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How much of the image a map hides, of attention in parts of its peak; both 0 to 1."""
    return 0.42 + 0.25 * of_peak_YX


def peak_in_words(map_YX: np.ndarray[Any, Any], special_S: np.ndarray[Any, Any]) -> str:
    """How high a word's map rises, and what of its attention is not in the image.

    Args:
        map_YX: Attention to the patches.
        special_S: Attention to special tokens.
    """
    total = float(map_YX.sum())
    peak = f"peak {map_YX.max() * map_YX.size / total:.1f}x even" if total else "no attention to patches"
    if specials := len(special_S):
        peak += f", {'class token' if specials == 1 else f'{specials} special tokens'} {special_S.sum():.0%}"
    return peak


def color_scale(axes: Any, **text: Any) -> None:
    """What the colors of `overlay` say, as a bar."""
    axes.imshow(np.linspace(0, 1, 64)[None], cmap=COLORS, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], ["no attention", "half", "the word's peak"], **{"fontsize": 7, **text})
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _head(axes: Any, title: str, small: str, color: str) -> None:
    """Two lines over a panel. Long words get small letters, then two lines."""
    lines = textwrap.wrap(title, 2 * _LETTERS, break_long_words=True) or [""]
    if len(lines) > 2:  # no word, but a caption without spaces
        lines = [lines[0], f"{lines[1][:-1]}…"]
    above = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "annotation_clip": False}
    axes.annotate(small, (0.5, 1), (0, 4), fontsize=_fitting([small], 7, _PANEL), color="#57606a", **above)
    size = _fitting(lines, 11, _PANEL)
    axes.annotate("\n".join(lines), (0.5, 1), (0, 15), fontsize=size, color=color, parse_math=False, linespacing=1.0, **above)


def _fitting(lines: Sequence[str], size: float, inches: float) -> float:
    """This font size, or a smaller one with which the longest line is no wider than that."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    widest = max(text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines)
    return min(size, size * 0.94 * 72 * inches / max(widest, 1.0))


def _rectangle(box: Box, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((box.left, box.top), box.right - box.left, box.bottom - box.top, **style)
