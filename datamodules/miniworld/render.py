"""Paints a scene: ground and sky, soft shadows, shaded and textured objects from far to near, light, grain.

Arrays are float32 RGB in [0, 1], [3, height, width]: what is the same for all colors then has the width as its inner loop, which
makes NumPy several times faster. Objects are drawn with `_OVERSAMPLING` pixels a pixel and averaged.
The styles paint the same scene differently: "source" and "web" as a photograph in daylight, "target" as muted inks on rough
paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.miniworld.scenes import Scene, SceneObject, paint_order, random_for
from datamodules.miniworld.shapes import SHAPES, Role, RoleMap, rasterise

Pixels = NDArray[np.floating[Any]]

_OVERSAMPLING = 3
_SNOW_BLUE = np.asarray((1.2, 1.0, 0.7), np.float32)[:, None, None]


@dataclass(frozen=True, eq=False)
class _Palette:
    """The colors of one style, 0-255. Grounds: sky or wall at the top and at the horizon, ground far and near."""

    colors: dict[str, tuple[int, int, int]]
    grounds: dict[str, tuple[tuple[int, int, int], ...]]
    lights: dict[str, tuple[float, float, float]]
    roles: dict[Role, tuple[int, int, int]]
    sea: tuple[int, int, int]
    hills: tuple[int, int, int]


_SOURCE = _Palette(
    colors={
        "red": (214, 38, 44),
        "orange": (243, 134, 26),
        "yellow": (247, 214, 48),
        "green": (48, 150, 62),
        "blue": (36, 92, 208),
        "purple": (136, 62, 176),
        "white": (244, 244, 242),
        "black": (40, 40, 46),
    },
    grounds={
        "meadow": ((98, 164, 232), (200, 226, 246), (126, 180, 84), (86, 146, 56)),
        "beach": ((86, 168, 236), (206, 232, 248), (226, 206, 158), (238, 218, 172)),
        "snow": ((168, 190, 214), (222, 230, 240), (226, 233, 244), (246, 249, 253)),
        "street": ((176, 92, 72), (160, 80, 62), (128, 128, 132), (104, 104, 110)),
        "room": ((206, 222, 204), (190, 208, 188), (182, 136, 92), (158, 110, 70)),
        "table": ((214, 228, 236), (196, 212, 222), (214, 172, 122), (196, 150, 100)),
    },
    lights={"day": (1.05, 1.04, 1.0), "evening": (1.08, 0.9, 0.72), "dull": (0.78, 0.81, 0.86)},
    roles={Role.DARK: (44, 42, 46), Role.PALE: (240, 234, 218), Role.WARM: (188, 96, 52), Role.GLASS: (186, 220, 240)},
    sea=(46, 128, 178),
    hills=(96, 148, 96),
)
_TARGET = _Palette(
    colors={
        "red": (158, 32, 58),
        "orange": (212, 112, 62),
        "yellow": (226, 188, 92),
        "green": (50, 108, 86),
        "blue": (52, 78, 136),
        "purple": (118, 70, 128),
        "white": (226, 218, 200),
        "black": (44, 36, 44),
    },
    grounds={
        "meadow": ((196, 186, 150), (222, 210, 172), (150, 152, 92), (112, 122, 74)),
        "beach": ((190, 172, 170), (228, 204, 180), (214, 178, 138), (196, 156, 116)),
        "snow": ((138, 140, 160), (188, 184, 192), (206, 202, 206), (224, 220, 218)),
        "street": ((150, 126, 124), (136, 112, 112), (128, 120, 124), (110, 102, 110)),
        "room": ((200, 160, 136), (184, 144, 122), (146, 104, 82), (124, 86, 70)),
        "table": ((140, 164, 156), (124, 146, 140), (186, 132, 92), (164, 112, 78)),
    },
    lights={"day": (1.08, 1.04, 0.96), "evening": (1.04, 0.85, 0.7), "dull": (0.8, 0.82, 0.9)},
    roles={Role.DARK: (50, 38, 42), Role.PALE: (220, 204, 172), Role.WARM: (140, 74, 50), Role.GLASS: (176, 188, 170)},
    sea=(88, 116, 128),
    hills=(126, 130, 104),
)


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image of `scene.image_size` squared, the same bytes every time."""
    rng = random_for(scene.seed, scene.style, scene.index, 1, scene.domain)
    palette = _TARGET if scene.style == "target" else _SOURCE
    canvas = _backdrop(scene, palette, rng)
    order = paint_order(scene.objects)
    for number in order:
        _shadow(canvas, scene, scene.objects[number])
    containers = {thing.support for thing in scene.objects if thing.support_by == "inside"}
    walls: dict[int, Pixels] = {}
    for number in order:
        thing = scene.objects[number]
        hidden_by = walls[thing.support] if thing.support is not None and thing.support_by == "inside" else None
        sprite = _Sprite.of(thing, scene.image_size)
        _paint(canvas, scene, thing, palette, sprite, hidden_by)
        if thing.id in containers:
            walls[thing.id] = sprite.wall(scene.image_size)
    return _develop(canvas, scene, palette, rng)


# ------------------------------------------------------------------------------------------------------------- background


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Pixels, Pixels]:
    """Pixel centres: y as a column, x as a row, both in [0, 1]."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return centres[:, None], centres[None, :]


def _cloud(rng: np.random.Generator, size: int, rows: int, columns: int) -> Pixels:
    """Smooth noise in about [-0.5, 0.5], [size, size], with so many bumps down and across."""
    return _smooth(rng.random((rows, columns), dtype=np.float32), size)


def _smooth(bumps: Pixels, size: int) -> Pixels:
    return np.asarray(Image.fromarray(bumps - 0.5).resize((size, size), Image.Resampling.BICUBIC))


@cache
def _rgb(color: tuple[int, int, int]) -> Pixels:
    """[3, 1, 1]"""
    return np.asarray(color, np.float32)[:, None, None] / 255.0


def _blend(canvas: Pixels, color: Pixels | np.float32, alpha: Pixels) -> None:
    canvas += (color - canvas) * alpha


def _ramp(values: Pixels, softness: float) -> Pixels:
    """0 below zero, 1 above, linear over `softness`."""
    result = values / softness
    result += 0.5
    return _clip(result)


def _clip(values: Pixels) -> Pixels:
    """To 0..1, in place."""
    return np.clip(values, 0.0, 1.0, out=values)


def _fraction(values: Pixels) -> Pixels:
    """`np.mod(values, 1.0)` to the last bit, at a thirtieth of its time."""
    return values - np.floor(values)


def _backdrop(scene: Scene, palette: _Palette, rng: np.random.Generator) -> Pixels:
    size, horizon, kind = scene.image_size, scene.horizon, scene.background
    y, x = _grid(size)
    top, low, far, near = (_rgb(color) for color in palette.grounds[kind])
    up = _clip(y / horizon)
    down = _clip((y - horizon) / (1.0 - horizon))
    above, below = top + (low - top) * up, far + (near - far) * down
    edge = np.float32(0.5 if kind in ("room", "street", "table") else 1.6) / size
    ground = _ramp(y - horizon, float(edge) * 2)
    canvas = np.repeat(above + (below - above) * ground, size, axis=2)
    depth = np.maximum(y - horizon, 0.004) / (1.0 - horizon)  # 0 at the horizon: lines crowd together there
    bumps, fine_bumps = rng.random((9, 7), dtype=np.float32), rng.random((44, 32), dtype=np.float32)
    coarse = _smooth(bumps, size) if kind in ("meadow", "beach", "snow", "street") else np.zeros((1, 1), np.float32)
    sky = 1.0 - ground
    target = scene.style == "target"
    if kind == "meadow":
        ridge = horizon - 0.05 - 0.07 * (_cloud(rng, size, 4, 5)[:1] + 0.5)
        _blend(canvas, _rgb(palette.hills), _ramp(y - ridge, 0.02) * sky * 0.9)
        _clouds(canvas, rng, size, sky * _ramp(ridge - y, 0.05), 0.65)
        canvas *= 1.0 + ground * (0.22 * coarse + 0.42 * _cloud(rng, size, 30, 72) * (0.3 + depth))
    elif kind == "beach":
        shore = horizon - 0.13
        waves = 0.06 * np.sin((x * 9 + coarse * 6) + 60 * np.sqrt(np.maximum(y - shore, 0))) + 0.12 * coarse
        sea = _ramp(y - shore, 0.01) * sky
        _blend(canvas, _rgb(palette.sea) * (1.0 + waves), sea)
        foam = np.exp(-(((y - horizon + 0.012 * np.sin(x * 17 + coarse * 5)) / 0.012) ** 2))
        _blend(canvas, np.float32(0.95), foam * 0.75)
        _clouds(canvas, rng, size, _ramp(shore - y, 0.03), 0.4)
        canvas *= 1.0 + ground * (
            0.12 * coarse + 0.13 * _smooth(fine_bumps, size) + 0.05 * np.sin(70 * np.sqrt(depth) + 6 * coarse)
        )
    elif kind == "snow":
        for offset, height in zip(rng.random(4), rng.uniform(0.09, 0.18, 4), strict=True):  # firs on the horizon
            half = 0.42 * (y - horizon + height) * (0.75 + 0.25 * _fraction((horizon - y) * 36))
            inside = _ramp(half - np.abs(x - np.float32(offset)), 0.012) * _ramp(y - horizon + height, 0.01) * sky
            _blend(canvas, _rgb(palette.hills) * np.float32(0.62), inside * 0.8)
        drifts = 0.10 * coarse + 0.05 * np.sin(26 * np.sqrt(depth) + 7 * _cloud(rng, size, 3, 4))
        canvas *= 1.0 + ground * drifts * _SNOW_BLUE
    elif kind == "street":
        rows = 9.0
        line = _fraction(y / horizon * rows)
        column = _fraction(x * 7 + 0.5 * np.floor(y / horizon * rows))
        mortar = np.maximum(_ramp(np.abs(line - 0.5) - 0.42, 0.1), _ramp(np.abs(column - 0.5) - 0.45, 0.08))
        canvas *= 1.0 + sky * (0.3 * _cloud(rng, size, 18, 14))
        _blend(canvas, _rgb(palette.roles[Role.PALE]) * np.float32(0.74), mortar * sky * 0.65)
        kerb = _ramp(0.045 - np.abs(y - horizon - 0.03), 0.01)
        _blend(canvas, _rgb(palette.grounds[kind][2]) * np.float32(1.3), kerb * 0.9)
        lane = _ramp(0.012 + 0.02 * depth - np.abs(y - horizon - 0.3), 0.01) * _ramp(np.sin(x * 19 + 2) + 0.2, 0.5)
        _blend(canvas, np.float32(0.86), lane * 0.55)
        canvas *= 1.0 + ground * (0.12 * coarse + 0.22 * _cloud(rng, size, 64, 64))
    elif kind == "room":
        if target:  # a papered wall with a lozenge pattern
            pattern = np.sin(x * 44) * np.sin(y * 44)
            _blend(canvas, low * np.float32(0.72), _ramp(pattern - 0.25, 0.5) * sky * 0.7)
        else:
            _blend(canvas, low * np.float32(0.9), _ramp(np.sin(x * 50), 0.6) * sky * 0.55)
        skirting = _ramp(0.022 - np.abs(y - horizon + 0.02), 0.01)
        _blend(canvas, _rgb(palette.roles[Role.PALE]), skirting * 0.9)
        across = (x - 0.5) / (depth + 0.35) * 5.0 + 40.0
        seam = _ramp(np.abs(_fraction(across) - 0.5) - 0.46, 0.06)
        tone = _fraction(np.floor(across) * 0.618) - 0.5
        canvas *= 1.0 + ground * (0.22 * tone - 0.35 * seam + 0.16 * _cloud(rng, size, 60, 8))
    else:
        tiles = np.maximum(
            _ramp(np.abs(_fraction(x * 6) - 0.5) - 0.46, 0.06),
            _ramp(np.abs(_fraction((y - horizon) * 6) - 0.5) - 0.46, 0.06),
        )
        _blend(canvas, low * np.float32(0.78 if target else 1.14), tiles * sky * 0.8)
        grain = np.sin(34 * np.sqrt(depth) + 5 * _cloud(rng, size, 8, 2))
        canvas *= 1.0 + ground * (0.07 * grain + 0.16 * _cloud(rng, size, 70, 5))
        _blend(canvas, near * np.float32(0.55), _ramp(0.012 - np.abs(y - horizon), 0.01))
    return _clip(canvas)


def _clouds(canvas: Pixels, rng: np.random.Generator, size: int, where: Pixels, strength: float) -> None:
    wisps = _cloud(rng, size, 12, 4) + 0.5 * _cloud(rng, size, 24, 9)
    _blend(canvas, np.float32(0.97), _ramp(wisps - 0.18, 0.5) * where * np.float32(strength))


# ---------------------------------------------------------------------------------------------------------------- objects


def _shadow(canvas: Pixels, scene: Scene, thing: SceneObject) -> None:
    """Darkens the ground under and beside a free-standing object; hovering objects throw a faint, wide shadow."""
    if thing.support is not None:
        return
    y, x = _grid(scene.image_size)
    hovers = SHAPES[thing.kind].hovers
    base = scene.horizon + (1.0 - scene.horizon) * (0.95 - 0.72 * thing.depth) if hovers else thing.base
    strength = 0.22 if hovers else {"day": 0.5, "evening": 0.55, "dull": 0.34}[scene.light]
    reach = {"day": 0.35, "evening": 0.75, "dull": 0.12}[scene.light] * (0.5 if hovers else 1.0)
    half, away = thing.width / 2, -scene.light_from * reach * thing.width
    slant = x - np.float32(thing.x + away * 0.55)
    cast = np.exp(-((slant / (half * (0.85 + 0.5 * reach))) ** 2) - ((y - base + 0.02) / (0.05 + 0.05 * half)) ** 2)
    contact = 0.0 if hovers else np.exp(-(((x - thing.x) / half) ** 4) - ((y - base + 0.006) / 0.018) ** 2)
    canvas *= 1.0 - np.clip(strength * cast + 0.45 * contact, 0.0, 0.8)


@dataclass(frozen=True, slots=True)
class _Sprite:
    """Where an object is in the picture and which role each of its pixels has.

    It is placed on the coarse grid (whole pixels) and drawn with its exact extent on the fine one (`_OVERSAMPLING`).

    Args:
        roles: [rows, columns], times `_OVERSAMPLING` each.
        u: Across the object's extent, 0 to 1, for each column of `roles`, [1, columns].
        v: Down, [rows, 1].
        height: Of the object, on the fine grid.
        window: Of the picture, where the sprite is in it.
        inside: Of the averaged sprite, the part in the picture.
    """

    roles: RoleMap
    u: Pixels
    v: Pixels
    height: int
    window: tuple[slice, slice]
    inside: tuple[slice, slice]

    @classmethod
    def of(cls, thing: SceneObject, size: int) -> _Sprite:
        fine = _OVERSAMPLING
        left, top = round((thing.x - thing.width / 2) * size * fine), round((thing.base - thing.height) * size * fine)
        width, height = max(round(thing.width * size * fine), 3), max(round(thing.height * size * fine), 3)
        column, row = left // fine, top // fine
        columns, rows = -(-(left + width) // fine) - column, -(-(top + height) // fine) - row
        roles = np.zeros((rows * fine, columns * fine), np.uint8)
        dy, dx = top - row * fine, left - column * fine
        roles[dy : dy + height, dx : dx + width] = rasterise(thing.kind, width, height, thing.flip)
        v = ((np.arange(rows * fine, dtype=np.float32) - dy + 0.5) / height)[:, None]
        u = ((np.arange(columns * fine, dtype=np.float32) - dx + 0.5) / width)[None, :]
        y0, x0 = max(row, 0), max(column, 0)
        y1, x1 = min(row + rows, size), min(column + columns, size)
        inside = slice(y0 - row, y1 - row), slice(x0 - column, x1 - column)
        return cls(roles, u, v, height, (slice(y0, y1), slice(x0, x1)), inside)

    def wall(self, size: int) -> Pixels:
        """How much of each pixel of the picture the object covers but for its inside, [size, size]."""
        roles = self.roles
        wall = np.zeros((size, size), np.float32)
        wall[self.window] = _average(((roles > 0) & (roles != Role.INSIDE)).astype(np.float32))[self.inside]
        return wall


def _paint(
    canvas: Pixels, scene: Scene, thing: SceneObject, palette: _Palette, sprite: _Sprite, hidden_by: Pixels | None
) -> None:
    """Draws one object. `hidden_by` is the wall of the container that it lies in, [size, size] alpha."""
    colors = _colors(scene, thing, palette, sprite)
    solid = sprite.roles > 0
    colors[:3] *= solid
    colors[3] = solid
    averages = _average(colors)[:, *sprite.inside]
    color, alpha = averages[:3], averages[3]
    if hidden_by is not None:
        shown = 1.0 - hidden_by[sprite.window]
        color, alpha = color * shown, alpha * shown
    part = canvas[:, *sprite.window]
    part *= 1.0 - alpha
    part += color


def _average(fine: Pixels) -> Pixels:
    """Means of `_OVERSAMPLING` squared blocks of the last two axes; sums of strided views, several times faster than `mean` over
    a reshape."""
    step = _OVERSAMPLING
    rows = fine[..., 0::step, :].copy()
    for offset in range(1, step):
        rows += fine[..., offset::step, :]
    result = rows[..., 0::step].copy()
    for offset in range(1, step):
        result += rows[..., offset::step]
    result *= np.float32(1.0 / step**2)
    return result


@cache
def _role_colors(palette: _Palette, color: str) -> Pixels:
    """[4, roles]: RGB of an object of this color, and a channel for what it covers."""
    own = _rgb(palette.colors[color])
    table = np.zeros((4, len(Role), 1), np.float32)
    table[:3, Role.BODY] = own[:, 0]
    table[:3, Role.LIT] = (own + (1.0 - own) * np.float32(0.28))[:, 0]
    table[:3, Role.SHADED] = (own * np.float32(0.68))[:, 0]
    table[:3, Role.INSIDE] = (own * np.float32(0.38))[:, 0]
    for role, fixed in palette.roles.items():
        table[:3, role] = _rgb(fixed)[:, 0]
    return table[..., 0]


def _colors(scene: Scene, thing: SceneObject, palette: _Palette, sprite: _Sprite) -> Pixels:
    """Color of every fine pixel of one object: role, texture, shading, highlight, ink; [4, rows, columns] with room for alpha."""
    roles, u, v = sprite.roles, sprite.u, sprite.v
    own = _rgb(palette.colors[thing.color])
    bright = thing.color in ("white", "yellow")
    all_channels = _role_colors(palette, thing.color).take(roles, axis=1)
    colors = all_channels[:3]
    body = roles == Role.BODY
    pattern = _pattern(thing.texture, u, v, thing.width / thing.height)
    if pattern is not None:
        other = own * np.float32(0.62) if bright else own + (1.0 - own) * np.float32(0.6 if thing.color != "black" else 0.5)
        colors += (other - own) * (pattern * body)
    shading = SHAPES[thing.kind].shading
    shade: Pixels
    glow: Pixels | None = None
    side = np.float32(-scene.light_from)  # the lit side has u - 0.5 of the sign of light_from
    contrast = np.float32(0.6 if scene.light == "dull" else 1.0)
    if shading == "round":
        shade = 1.0 + contrast * (-0.28 * side * (u - 0.5) * 2 - 0.5 * (v - 0.42) - 0.35 * ((u - 0.5) ** 2 + (v - 0.5) ** 2))
        glow = np.exp(-(((u - 0.5 - 0.2 * scene.light_from) / 0.13) ** 2) - ((v - 0.26) / 0.11) ** 2)
    elif shading == "column":
        shade = 1.0 + contrast * (-0.4 * side * (u - 0.5) - 1.1 * (u - 0.5) ** 2 - 0.12 * (v - 0.5))
        glow = np.exp(-(((u - 0.5 - 0.22 * scene.light_from) / 0.08) ** 2)) * _ramp(0.36 - np.abs(v - 0.55), 0.3)
    else:
        shade = 1.06 + contrast * (-0.16 * side * (u - 0.5) - 0.22 * (v - 0.4))
    colors *= shade
    if scene.style != "target":
        if glow is not None:
            _blend(colors, np.float32(1.0), np.float32(0.45) * contrast * glow * body)
    else:
        hatch = np.sin((u * thing.width + v * thing.height) * np.float32(330.0))  # strokes on the side away from the light
        colors *= 1.0 - 0.3 * _ramp(hatch - 0.1, 0.6) * _ramp(0.92 - shade, 0.2)
        _blend(colors, _rgb((46, 32, 36)), 0.85 * _ink(roles, max(1, round(sprite.height / 48))))
    _clip(colors)
    return all_channels


def _pattern(texture: str, u: Pixels, v: Pixels, aspect: float) -> Pixels | None:
    """Where the second color of a texture goes, [height, width] in [0, 1]; None for plain."""
    if texture == "striped":
        return _ramp(np.sin((v * 4.2 + 0.1) * np.float32(2 * np.pi)) + 0 * u, 0.5)
    if texture == "spotted":
        across, down = u * np.float32(4.6 * aspect), v * np.float32(4.6)
        across = across + 0.5 * np.floor(down)
        return _ramp(0.1 - (_fraction(across) - 0.5) ** 2 - (_fraction(down) - 0.5) ** 2, 0.05)
    if texture == "checked":
        waves = np.sin(u * np.float32(2.4 * aspect * 2 * np.pi)) * np.sin(v * np.float32(2.4 * 2 * np.pi))
        return _ramp(waves, 0.2)
    return None


def _ink(roles: RoleMap, width: int) -> Pixels:
    """1 where a pixel lies within `width` of another role (outlines and inner edges)."""
    edge = np.zeros(roles.shape, np.bool_)
    for step in (width, 2 * width):
        down, across = roles[step:] != roles[:-step], roles[:, step:] != roles[:, :-step]
        edge[step:] |= down
        edge[:-step] |= down
        edge[:, step:] |= across
        edge[:, :-step] |= across
    edge[:width] = edge[-width:] = True
    edge[:, :width] = edge[:, -width:] = True
    return edge.astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- light, grain


def _develop(canvas: Pixels, scene: Scene, palette: _Palette, rng: np.random.Generator) -> Image.Image:
    """Light of the hour, vignette, weather or paper, grain; then bytes."""
    size = scene.image_size
    y, x = _grid(size)
    falloff = 1.0 + 0.13 * scene.light_from * (x - 0.5) * 2 - 0.22 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    canvas *= falloff * np.asarray(palette.lights[scene.light], np.float32)[:, None, None]
    if scene.style == "target":
        canvas *= 1.0 + (0.14 * _cloud(rng, size, size // 2, size // 2) + 0.1 * _cloud(rng, size, 6, 6))
    if scene.background == "snow":
        flakes = rng.random((size, size), dtype=np.float32) > 0.988
        canvas += (1.0 - canvas) * (flakes * np.float32(0.75))
    pixels = rng.standard_normal((size, size, 3), dtype=np.float32)
    pixels *= np.float32(scene.noise / 255.0)
    pixels += canvas.transpose(1, 2, 0)
    _clip(pixels)
    pixels *= 255.0
    pixels += 0.5
    return Image.fromarray(pixels.astype(np.uint8))
