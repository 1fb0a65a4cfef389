"""The outlines of everything that can stand in a scene.

A shape is a list of polygons in its own unit square (x to the right, y down), each with a role (body, lit face, window, ...).
`rasterise` draws them into a map of roles: the layout takes silhouettes from it, the painter takes colors from it, so boxes
and visible fractions are those of the painted object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, lru_cache
from math import cos, pi, sin
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

RoleMap = NDArray[np.uint8]
"""[height, width], values of `Role`."""


class Role(IntEnum):
    """What a pixel of an object is; the painter gives each role a color derived from the object's own."""

    NONE = 0
    BODY = 1  # own color, carries the texture
    LIT = 2  # own color, lighter
    SHADED = 3  # own color, darker
    INSIDE = 4  # hollow of a container: things put inside are drawn over it
    DARK = 5  # wheels, doors, eyes
    PALE = 6  # stems, sails, drum skins
    WARM = 7  # beaks, corks, roofs
    GLASS = 8  # windows


Point = tuple[float, float]
Part = tuple[Role, tuple[Point, ...]]


@dataclass(frozen=True, slots=True)
class Shape:
    """One class of objects.

    `aspect` is width / height, `scale` the height relative to other classes of the same size word. `top` is the height (unit
    square) of a surface that can carry something, `rim` that of an opening that can hold something; `opening` is how much of
    the width either offers. `category` is Flickr30k Entities' coarse type.
    """

    parts: tuple[Part, ...]
    aspect: float
    category: str
    shading: Literal["round", "column", "flat"]
    scale: float = 1.0
    top: float | None = None
    rim: float | None = None
    opening: float = 0.8
    hovers: bool = False


def _poly(role: Role, *points: Point) -> Part:
    return role, points


def _oval(role: Role, x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 2.0) -> Part:
    """An ellipse, or its piece from `start` to `stop` (in units of pi, clockwise from the right)."""
    steps = 32
    angles = [(start + (stop - start) * i / steps) * pi for i in range(steps + 1)]
    return role, tuple((x + rx * cos(angle), y + ry * sin(angle)) for angle in angles)


def _bar(role: Role, left: float, top: float, right: float, bottom: float) -> Part:
    return role, ((left, top), (right, top), (right, bottom), (left, bottom))


def _tub(role: Role, top: float, top_half: float, bottom: float, bottom_half: float, bulge: float, x: float = 0.5) -> Part:
    """The wall of a round vessel seen slightly from above: straight sides, front rim and foot bulging downwards."""
    steps = 16
    rim = [(x + top_half * cos(pi * i / steps), top + bulge * sin(pi * i / steps)) for i in range(steps + 1)]
    foot = [(x - bottom_half * cos(pi * i / steps), bottom + bulge * sin(pi * i / steps)) for i in range(steps + 1)]
    return role, tuple(rim + foot)


_R = Role
SHAPES: dict[str, Shape] = {
    "ball": Shape((_oval(_R.BODY, 0.5, 0.5, 0.5, 0.5),), 1.0, "other", "round", 0.9),
    "cube": Shape(
        (
            _bar(_R.BODY, 0.0, 0.27, 0.72, 1.0),
            _poly(_R.LIT, (0.0, 0.27), (0.28, 0.0), (1.0, 0.0), (0.72, 0.27)),
            _poly(_R.SHADED, (0.72, 0.27), (1.0, 0.0), (1.0, 0.73), (0.72, 1.0)),
        ),
        1.0,
        "other",
        "flat",
        0.95,
        top=0.15,
    ),
    "cone": Shape(
        (_poly(_R.BODY, (0.5, 0.0), *_oval(_R.BODY, 0.5, 0.88, 0.5, 0.12, 0.0, 1.0)[1]),), 0.8, "other", "column", 1.05
    ),
    "drum": Shape(
        (
            _tub(_R.BODY, 0.2, 0.5, 0.82, 0.5, 0.18),
            _tub(_R.SHADED, 0.2, 0.5, 0.28, 0.5, 0.18),
            _tub(_R.SHADED, 0.74, 0.5, 0.82, 0.5, 0.18),
            _oval(_R.PALE, 0.5, 0.2, 0.5, 0.2),
            _oval(_R.LIT, 0.5, 0.21, 0.36, 0.13),
        ),
        1.2,
        "instruments",
        "column",
        0.85,
        top=0.22,
    ),
    "cup": Shape(
        (
            _oval(_R.BODY, 0.76, 0.52, 0.24, 0.27),
            _oval(_R.NONE, 0.76, 0.52, 0.13, 0.16),
            _tub(_R.BODY, 0.13, 0.4, 0.9, 0.27, 0.1, 0.4),
            _oval(_R.LIT, 0.4, 0.13, 0.4, 0.13),
            _oval(_R.INSIDE, 0.4, 0.13, 0.35, 0.1),
        ),
        1.1,
        "other",
        "column",
        0.85,
        rim=0.16,
        opening=0.58,
    ),
    "basket": Shape(
        (
            _oval(_R.SHADED, 0.5, 0.5, 0.42, 0.5, 1.0, 2.0),
            _oval(_R.NONE, 0.5, 0.5, 0.35, 0.42, 1.0, 2.0),
            _tub(_R.BODY, 0.48, 0.5, 0.89, 0.36, 0.11),
            _oval(_R.LIT, 0.5, 0.48, 0.5, 0.12),
            _oval(_R.INSIDE, 0.5, 0.48, 0.45, 0.09),
        ),
        1.1,
        "other",
        "column",
        1.0,
        rim=0.5,
        opening=0.62,
    ),
    "hat": Shape(
        (
            _oval(_R.BODY, 0.5, 0.8, 0.5, 0.2),
            _poly(_R.BODY, *_oval(_R.BODY, 0.5, 0.36, 0.3, 0.36, 1.0, 2.0)[1], (0.8, 0.76), (0.2, 0.76)),
            _tub(_R.SHADED, 0.58, 0.3, 0.7, 0.3, 0.08),
        ),
        1.5,
        "clothing",
        "round",
        0.72,
    ),
    "house": Shape(
        (
            _bar(_R.SHADED, 0.72, 0.02, 0.84, 0.3),
            _bar(_R.BODY, 0.1, 0.42, 0.9, 1.0),
            _poly(_R.WARM, (0.0, 0.46), (0.5, 0.0), (1.0, 0.46)),
            _bar(_R.DARK, 0.42, 0.64, 0.6, 1.0),
            _bar(_R.GLASS, 0.18, 0.56, 0.33, 0.74),
            _bar(_R.GLASS, 0.69, 0.56, 0.83, 0.74),
        ),
        0.95,
        "scene",
        "flat",
        1.2,
    ),
    "car": Shape(
        (
            _poly(_R.BODY, (0.2, 0.42), (0.32, 0.02), (0.72, 0.02), (0.84, 0.42)),
            _poly(_R.BODY, (0.0, 0.5), (0.06, 0.38), (0.84, 0.38), (0.97, 0.46), (1.0, 0.56), (1.0, 0.78), (0.0, 0.78)),
            _poly(_R.GLASS, (0.28, 0.38), (0.36, 0.1), (0.5, 0.1), (0.5, 0.38)),
            _poly(_R.GLASS, (0.54, 0.38), (0.54, 0.1), (0.69, 0.1), (0.77, 0.38)),
            _oval(_R.DARK, 0.23, 0.78, 0.115, 0.22),
            _oval(_R.DARK, 0.77, 0.78, 0.115, 0.22),
            _oval(_R.PALE, 0.23, 0.78, 0.05, 0.09),
            _oval(_R.PALE, 0.77, 0.78, 0.05, 0.09),
            _bar(_R.PALE, 0.95, 0.52, 1.0, 0.6),
        ),
        1.9,
        "vehicles",
        "flat",
        0.72,
    ),
    "duck": Shape(
        (
            _poly(_R.BODY, (0.0, 0.42), (0.3, 0.6), (0.16, 0.82)),
            _oval(_R.BODY, 0.46, 0.72, 0.4, 0.28),
            _oval(_R.BODY, 0.67, 0.25, 0.21, 0.25),
            _poly(_R.BODY, (0.5, 0.35), (0.84, 0.38), (0.84, 0.66), (0.5, 0.6)),
            _poly(_R.WARM, (0.85, 0.2), (1.0, 0.29), (0.85, 0.38)),
            _oval(_R.DARK, 0.74, 0.2, 0.035, 0.05),
            _oval(_R.SHADED, 0.4, 0.7, 0.22, 0.13),
        ),
        1.15,
        "animals",
        "round",
        0.95,
    ),
    "mushroom": Shape(
        (
            _poly(_R.PALE, (0.37, 0.45), (0.63, 0.45), (0.7, 0.96), (0.5, 1.0), (0.3, 0.96)),
            _poly(_R.BODY, *_oval(_R.BODY, 0.5, 0.5, 0.5, 0.5, 1.0, 2.0)[1], *_oval(_R.BODY, 0.5, 0.5, 0.5, 0.1, 0.0, 1.0)[1]),
        ),
        1.0,
        "other",
        "round",
        0.95,
    ),
    "balloon": Shape(
        (
            _poly(_R.DARK, (0.48, 0.68), (0.52, 0.68), (0.57, 0.82), (0.5, 1.0), (0.47, 1.0), (0.53, 0.82)),
            _poly(_R.SHADED, (0.5, 0.6), (0.62, 0.72), (0.38, 0.72)),
            _oval(_R.BODY, 0.5, 0.34, 0.5, 0.34),
        ),
        0.62,
        "other",
        "round",
        0.95,
        hovers=True,
    ),
    "boat": Shape(
        (
            _bar(_R.DARK, 0.47, 0.0, 0.51, 0.7),
            _poly(_R.PALE, (0.53, 0.04), (0.9, 0.56), (0.53, 0.6)),
            _poly(_R.PALE, (0.45, 0.14), (0.45, 0.6), (0.2, 0.58)),
            _poly(_R.BODY, (0.0, 0.64), (1.0, 0.64), (0.82, 1.0), (0.2, 1.0)),
            _poly(_R.SHADED, (0.0, 0.64), (1.0, 0.64), (0.97, 0.71), (0.03, 0.71)),
        ),
        1.15,
        "vehicles",
        "flat",
        1.05,
    ),
    "bottle": Shape(
        (
            _poly(
                _R.BODY,
                (0.33, 0.06),
                (0.67, 0.06),
                (0.67, 0.3),
                (1.0, 0.45),
                *_oval(_R.BODY, 0.5, 0.95, 0.5, 0.05, 0.0, 1.0)[1],
                (0.0, 0.45),
                (0.33, 0.3),
            ),
            _bar(_R.WARM, 0.34, 0.0, 0.66, 0.09),
            _bar(_R.PALE, 0.04, 0.58, 0.96, 0.8),
        ),
        0.42,
        "other",
        "column",
        1.1,
    ),
    "lamp": Shape(
        (
            _bar(_R.DARK, 0.46, 0.4, 0.54, 0.92),
            _oval(_R.SHADED, 0.5, 0.94, 0.28, 0.06),
            _poly(_R.BODY, (0.28, 0.0), (0.72, 0.0), (1.0, 0.48), (0.0, 0.48)),
            _oval(_R.LIT, 0.5, 0.48, 0.5, 0.06),
        ),
        0.75,
        "other",
        "column",
        1.1,
    ),
    "cat": Shape(
        (
            _oval(_R.SHADED, 0.84, 0.72, 0.16, 0.26),
            _oval(_R.NONE, 0.8, 0.64, 0.09, 0.2),
            _oval(_R.BODY, 0.42, 0.72, 0.34, 0.28),
            _poly(_R.BODY, (0.1, 0.0), (0.36, 0.14), (0.1, 0.3)),
            _poly(_R.BODY, (0.74, 0.0), (0.48, 0.14), (0.74, 0.3)),
            _oval(_R.BODY, 0.42, 0.3, 0.33, 0.22),
            _oval(_R.PALE, 0.3, 0.27, 0.06, 0.05),
            _oval(_R.PALE, 0.54, 0.27, 0.06, 0.05),
            _oval(_R.DARK, 0.3, 0.27, 0.025, 0.045),
            _oval(_R.DARK, 0.54, 0.27, 0.025, 0.045),
            _poly(_R.WARM, (0.38, 0.35), (0.46, 0.35), (0.42, 0.4)),
        ),
        0.85,
        "animals",
        "round",
        1.1,
    ),
}


@cache
def _points(kind: str) -> tuple[tuple[int, NDArray[np.float64]], ...]:
    return tuple((int(role), np.asarray(points)) for role, points in SHAPES[kind].parts)


def rasterise(kind: str, width: int, height: int, flip: bool = False) -> RoleMap:
    """The role of every pixel of one object drawn `width` x `height`; read-only."""
    roles = _rasterised(kind, width, height)
    return roles[:, ::-1] if flip else roles


@lru_cache(maxsize=2048)  # five of six objects of a world are of a kind and size that was there before
def _rasterised(kind: str, width: int, height: int) -> RoleMap:
    image = Image.new("L", (width, height), int(Role.NONE))
    draw = ImageDraw.Draw(image)
    scale = (width - 1, height - 1)
    for role, points in _points(kind):
        flat: Sequence[float] = (points * scale).ravel().tolist()
        draw.polygon(flat, fill=role)
    return np.asarray(image)
