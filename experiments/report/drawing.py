"""What all figures share: colors, style, legends, names beside points; and `Picture`: a drawing as a page has it, in either
light, and as a file of its own (SVG, PDF, PNG).

matplotlib draws with the colors of the light page, which become `var(--ink)`, `var(--line-1)` and so on in a page's SVG; ids get
the figure's name in front, since several figures share a page. Every figure has a text alternative that says what is in it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file

# Okabe and Ito's colors, which every kind of eye tells apart; the style sheet has those of the page's dark light too. No two are
# equal: `inline` knows them by their values (the fifth is the ink's, but for its last digit), and no data is drawn in the ink's.
_UNNAMED = re.compile(r"_(child\d+|nolegend_)")  # what matplotlib calls a line without a label
INK, FAINT = "#1c2127", "#dfe3e8"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#1c2128", "#e69f00", "#56b4e9", "#7d868f")
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--grid)", **{line: f"var(--line-{n})" for n, line in enumerate(LINES, 1)}}
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
WIDTH = 4.8  # inches: on a telephone the letters are then still some 10 px high
TITLE_PAD = 0.12  # inches: titles over images are else cut at the picture's edge
STYLE: Any = {
    "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "crosslight", "font.family": "sans-serif", "font.size": 9.5,
    "text.parse_math": False, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.linewidth": 0.8,
    "xtick.color": INK, "ytick.color": INK, "grid.color": FAINT, "axes.grid": True, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 9,
}  # fmt: skip
_FORMATS = (".svg", ".pdf", ".png")


@dataclass(frozen=True)
class Picture:
    """A drawing and what it shows in words. A notebook shows it as SVG with its title and what its bars are.

    Args:
        drawing: matplotlib's.
        text: The text alternative.
        name: In front of its ids on a page; and of its file.
        title: Above it, where an exhibit has several.
        scale: Which scale its numbers have, if any.
        key: What the numbers in it stand for, from 1; empty where it has names.
        bars: What its bars or shades are, if it has any.
    """

    drawing: Drawing
    text: str
    name: str
    title: str = ""
    scale: str = ""
    key: tuple[str, ...] = ()
    bars: str = ""

    @cached_property
    def svg(self) -> str:
        """To stand inside of HTML, with the page's colors."""
        return inline(self._svg(transparent=True), self.name, self.text)

    def save(self, file: str | Path) -> Path:
        """Write it; the file's ending is its format.

        Raises:
            InputError: Another ending than .svg, .pdf, .png, or the file cannot be written.
        """
        file = Path(file)
        if file.suffix.lower() not in _FORMATS:
            raise InputError(f"{file}: a picture is a {', '.join(_FORMATS)} file; give it one of these endings.")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            kind = file.suffix.lower()[1:]
            with whole_file(file) as part, rc_context(STYLE):
                undated: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
                self.drawing.savefig(part, format=kind, dpi=200, metadata=undated)
        except OSError as error:
            raise InputError(f"{file} cannot be written ({error.strerror or error}); give another folder.") from error
        return file

    def _repr_html_(self) -> str:
        """White behind it in a notebook of either light: it has the colors of a light page."""
        keys = [f"{number}: {name}" for number, name in enumerate(self.key, 1)]
        lines = [f"<b>{escape(self.title)}</b>"] * bool(self.title)
        lines += [escape(each) for each in (self.scale, self.bars, *keys) if each]
        told = " ".join(f"{line.rstrip('.')}." for line in lines)
        width = 96 * self.drawing.get_figwidth()
        return (
            f'<figure style="margin:0;padding:8px;width:{width:.0f}px;max-width:100%;background:#fff;color:{INK}">'
            f"{inline(self._svg(dpi=150), self.name, self.text, {})}"
            f'<figcaption style="font-size:85%">{told}</figcaption></figure>'
        )

    def _svg(self, **options: Any) -> str:
        stream = io.StringIO()
        with rc_context(STYLE):
            self.drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, **options)
        return stream.getvalue()


@dataclass(frozen=True)
class Gallery:
    """Pictures that a notebook shows side by side."""

    pictures: tuple[Picture, ...]

    def save(self, folder: str | Path, kind: str = "pdf") -> list[Path]:
        """Each as a file by its name.

        Args:
            folder: Where to.
            kind: svg, pdf or png.
        """
        return [picture.save(Path(folder) / f"{picture.name}.{kind}") for picture in self.pictures]

    def _repr_html_(self) -> str:
        inside = "".join(picture._repr_html_() for picture in self.pictures)
        return f'<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start">{inside}</div>'


# ---------------------------------------------------------------------------------------------------------------- drawing


def plain_ticks(axes: Axes, values: Sequence[float] | None) -> None:
    """Plain numbers on a logarithmic x axis, where matplotlib would write powers as formulas: these values, or round ones."""
    if axes.get_xscale() == "linear":
        return
    ticks = sorted(set(values)) if values is not None else [base * 10.0**power for power in range(-9, 10) for base in (1, 2, 5)]
    low, high = axes.get_xlim()
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:.3g}" for tick in shown])
    axes.set_xticks([], minor=True)


def legend(drawing: Drawing, *panels: Axes) -> None:
    for line in (line for axes in panels for line in axes.get_lines()):
        name = str(line.get_label())
        if name.startswith("_") and not _UNNAMED.fullmatch(name):  # a run's name may: matplotlib would leave it out
            line.set_label(f"\N{ZERO WIDTH SPACE}{name}")
    found = [axes.get_legend_handles_labels() for axes in panels]
    handles, labels = [each for one, _ in found for each in one], [each for _, one in found for each in one]
    if len(handles) == len(panels) > 1:
        return  # the axes say it
    if handles:
        longest = max(map(len, labels))
        with rc_context(STYLE):
            drawing.legend(handles, labels, loc="outside upper left", ncols=max(1, min(4, len(handles), 72 // (longest + 8))))


def thinned(line: Sequence[tuple[float, float]], most: int = 200) -> list[tuple[float, float]]:
    """At most `most` points, means of equal stretches: a page need not carry 5,000."""
    if len(line) <= most:
        return list(line)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in np.array_split(np.array(line), most)]


def label_points(
    drawing: Drawing, axes: Axes, points: Sequence[tuple[str, float, float]], bands: Sequence[tuple[float, float, float]]
) -> None:
    """Names beside points, each on the first side where it meets no earlier name, no point, no interval (x, low, high) and no
    edge of the axes."""
    drawing.draw_without_rendering()  # settles the layout
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in (axes.transData.transform(point[1:]) for point in points)]
    for x, low, high in bands:
        (at, bottom), (_, top) = axes.transData.transform([(x, low), (x, high)])
        taken.append((at - 3, bottom, at + 3, top))
    dot, inside = drawing.dpi / 72, axes.bbox
    for label, x, y in points:
        at_x, at_y = axes.transData.transform((x, y))
        width, height = 4.8 * dot * len(label), 9 * dot
        sides = [(7, 0, "left"), (-7, 0, "right"), (7, 11, "left"), (7, -11, "left"), (-7, 11, "right"), (-7, -11, "right")]
        for right, up, side in sides:
            left = at_x + right * dot - (width if side == "right" else 0)
            box = (left, at_y + up * dot - height / 2, left + width, at_y + up * dot + height / 2)
            met = any(box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken)
            if not met and inside.x0 < box[0] and box[2] < inside.x1:
                break
        taken.append(box)
        where: dict[str, Any] = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 8.5, "color": INK}
        axes.annotate(label, (x, y), xytext=(right, up), **where)


# ------------------------------------------------------------------------------------------------------------------ pages


def inline(svg: str, name: str, text: str, variables: Mapping[str, str] = _VARIABLES) -> str:
    """matplotlib's SVG for a page: no header, own ids, the page's colors (`variables`) and font, and a text alternative.

    matplotlib writes the addresses of XML's name spaces, which HTML does not need and a strict reader takes for references.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"\bxlink:href=", "href=", svg)
    svg = re.sub(r'(<[^>]*?\s)id="([^"]+)"', rf'\1id="{name}-\2"', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for color, variable in variables.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r"(font-family: |font: [^;\"']*?px )[^;\"]*", r"\1system-ui, sans-serif", svg)
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    return f'<svg role="img" aria-label="{escape(text)}"' + svg.removeprefix("<svg")
