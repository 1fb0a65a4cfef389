"""What is in a scene and where: sampled from `(seed, style, index)` alone, no pixels yet.

Lengths are fractions of the image unless a name says pixels; y points down. Depth is 0 at the viewer and 1 at the horizon.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from datamodules.miniworld.shapes import SHAPES, Role, rasterise
from datamodules.records import Box

Style = Literal["source", "target", "web"]
"""source and target are the styles of data sets. web is what models are pre-trained on: source's pictures of all kinds of
things, the novel ones too, most sentences in source's dialect and some in target's. New styles go last: `random_for` counts."""
Domain = Literal["in", "near", "out"]
Light = Literal["day", "evening", "dull"]
Predicate = Literal[
    "left_of", "right_of", "in_front_of", "behind", "above", "below", "on", "under", "inside", "holding", "next_to"
]

NOVEL_KINDS = ("boat", "bottle", "lamp", "cat")
"""Held out: never in a scene of the domain "in"."""
SEEN_KINDS = tuple(kind for kind in SHAPES if kind not in NOVEL_KINDS)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
TEXTURES = ("plain", "striped", "spotted", "checked")
SIZES = {"small": 0.26, "medium": 0.35, "large": 0.45}
"""Height at depth 0 of an object of scale 1."""
BACKGROUNDS = ("meadow", "beach", "snow", "street", "room", "table")
LIGHTS: tuple[Light, ...] = get_args(Light)

_CARRIED_KINDS = ("ball", "cube", "cone", "cup", "hat", "duck", "mushroom", "bottle", "cat")
_SMALLEST = 0.1  # side of a visible box: less cannot be made out at 64 pixels
_GRID = 192  # boxes and visible fractions are measured on this grid, so they do not depend on the size of the image


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object.

    `box` is around its visible pixels and `full_box` around all of it, both in pixels of the image; `visible` is the fraction of
    its silhouette that nothing hides; `region` names where the centre of `box` lies ("front left" ... "back right").
    `x, base, width, height` (fractions) are centre, lower edge and extent of the unoccluded object: what the painter needs.
    `support` is the id of the object that it stands on or lies in.
    """

    id: int
    kind: str
    category: str
    color: str
    texture: str
    size: str
    region: str
    depth: float
    visible: float
    box: Box
    full_box: Box
    x: float
    base: float
    width: float
    height: float
    flip: bool
    support: int | None = None
    support_by: Literal["on", "inside"] | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """`subject` is `predicate` `object` (ids of objects): 0 left_of 1. Both directions are listed."""

    subject: int
    predicate: Predicate
    object: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole scene. `light_from` is -1 (light from the left) to 1 (right), `noise` the deviation of the grain in 1/255."""

    seed: int
    style: Style
    index: int
    domain: Domain
    image_size: int
    background: str
    horizon: float
    light: Light
    light_from: float
    noise: float
    objects: tuple[SceneObject, ...]
    relations: tuple[Relation, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scene:
        """The inverse of `to_dict`."""
        objects = tuple(
            SceneObject(**{**entry, "box": Box(**entry["box"]), "full_box": Box(**entry["full_box"])})
            for entry in values["objects"]
        )
        relations = tuple(Relation(**entry) for entry in values["relations"])
        return cls(**{**values, "objects": objects, "relations": relations})


@dataclass(slots=True)
class _Draft:
    """An object while the scene is being composed."""

    kind: str
    color: str
    texture: str
    size: str
    flip: bool
    support: int | None = None
    support_by: Literal["on", "inside"] | None = None
    x: float = 0.5
    depth: float = 0.0
    base: float = 1.0
    width: float = 0.0
    height: float = 0.0


def random_for(seed: int, style: Style, index: int, purpose: int, domain: Domain = "in") -> np.random.Generator:
    """The generator of one scene and purpose (0 composition, 1 painting, 2 captions): no scene depends on another."""
    return np.random.default_rng([seed, get_args(Style).index(style), index, purpose, get_args(Domain).index(domain)])


def sample_scene(seed: int, style: Style, index: int, *, image_size: int = 96, domain: Domain = "in") -> Scene:
    """Scene `index` of the world `(seed, style)`; everything but pixel units is the same at every `image_size`."""
    rng = random_for(seed, style, index, 0, domain)
    background = _pick(rng, BACKGROUNDS)
    horizon = float(rng.uniform(0.36, 0.46))
    light: Light = LIGHTS[_draw(rng, (0.5, 0.28, 0.22))]
    drafts = _compose(rng, domain, SEEN_KINDS + NOVEL_KINDS if style == "web" else _POOLS[domain])
    measured = None
    while measured is None:
        for _ in range(12):
            _place(rng, drafts, horizon)
            measured = _measure(drafts)
            if measured is not None:
                break
        else:  # too crowded: leave the last free-standing object away, and what it carries
            drafts = _thin_out(drafts, domain)
    objects = tuple(
        _finish(number, draft, visible, box, full_box, image_size)
        for number, (draft, (visible, box, full_box)) in enumerate(zip(drafts, measured, strict=True))
    )
    return Scene(
        seed=seed,
        style=style,
        index=index,
        domain=domain,
        image_size=image_size,
        background=background,
        horizon=round(horizon, 4),
        light=light,
        light_from=round((-1.0, 1.0)[int(rng.integers(2))] * float(rng.uniform(0.4, 1.0)), 3),
        noise=round(float(rng.uniform(2.0, 7.0)), 2),
        objects=objects,
        relations=_relations(objects, image_size),
    )


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _draw(rng: np.random.Generator, shares: tuple[float, ...]) -> int:
    """`rng.choice(len(shares), p=shares)`, whose checks take longer than all else."""
    return bisect_right(_cumulated(shares), rng.random())


@cache
def _cumulated(shares: tuple[float, ...]) -> list[float]:
    sums = np.cumsum(shares)
    return [float(value) for value in sums / sums[-1]]


# ------------------------------------------------------------------------------------------------------------- composition


_POOLS: dict[Domain, tuple[str, ...]] = {"in": SEEN_KINDS, "near": SEEN_KINDS + NOVEL_KINDS, "out": NOVEL_KINDS}


def _compose(rng: np.random.Generator, domain: Domain, pool: tuple[str, ...]) -> list[_Draft]:
    count = 1 + _draw(rng, (0.14, 0.36, 0.34, 0.16))
    if domain == "near":
        count = max(count, 2)

    def new(kind: str | None = None) -> _Draft:
        return _Draft(
            kind=kind or _pick(rng, pool),
            color=_pick(rng, COLORS),
            texture=TEXTURES[_draw(rng, (0.58, 0.16, 0.14, 0.12))],
            size=tuple(SIZES)[_draw(rng, (0.25, 0.45, 0.3))],
            flip=bool(rng.random() < 0.5),
        )

    drafts: list[_Draft] = []
    if count >= 2 and domain != "out" and rng.random() < 0.3:
        carriers = tuple(kind for kind in pool if SHAPES[kind].top is not None or SHAPES[kind].rim is not None)
        carrier = new(_pick(rng, carriers))
        carrier.size = "large" if rng.random() < 0.7 else "medium"
        carried = new(_pick(rng, tuple(kind for kind in _CARRIED_KINDS if kind in pool and kind != carrier.kind)))
        carried.size, carried.support = "small", 0
        carried.support_by = "inside" if SHAPES[carrier.kind].rim is not None else "on"
        drafts = [carrier, carried]
    elif count >= 2 and rng.random() < 0.22:  # twins, so that captions count
        first = new()
        if first.size == "large":
            first.size = "medium"
        drafts = [first, _Draft(first.kind, first.color, first.texture, first.size, first.flip)]
    while len(drafts) < count:
        fresh = new()
        # a second thing of the same look would turn "the red ball" into a riddle; twins are made on purpose above
        if all((fresh.kind, fresh.color) != (draft.kind, draft.color) for draft in drafts):
            drafts.append(fresh)
    if domain == "near":
        if not any(draft.kind in NOVEL_KINDS for draft in drafts):
            drafts[-1].kind = _pick(rng, NOVEL_KINDS)
        if all(draft.kind in NOVEL_KINDS for draft in drafts):
            drafts[0].kind = _pick(rng, SEEN_KINDS)
    return drafts


def _thin_out(drafts: list[_Draft], domain: Domain) -> list[_Draft]:
    """Drops the last free-standing object that the domain can spare; a pair of carrier and carried stays."""
    for position in reversed(range(len(drafts))):
        rest = drafts[:position] + drafts[position + 1 :]
        carries = any(draft.support == position for draft in drafts)
        kinds = {draft.kind in NOVEL_KINDS for draft in rest}
        if rest and not carries and (domain != "near" or kinds == {True, False}):
            return rest
    return drafts


def _place(rng: np.random.Generator, drafts: list[_Draft], horizon: float) -> None:
    """New positions for all: free-standing objects share the width in random order, carried ones follow their carrier."""
    free = [draft for draft in drafts if draft.support is None]
    columns = rng.permutation(len(free))
    ease = 1.12 if len(free) == 1 else 1.0 if len(free) <= 3 else 0.86
    for draft, column in zip(free, columns, strict=True):
        shape = SHAPES[draft.kind]
        draft.depth = float(rng.uniform(0.0, 0.42) if rng.random() < 0.55 else rng.uniform(0.5, 0.95))
        draft.height = SIZES[draft.size] * shape.scale * ease * (1.0 - 0.28 * draft.depth) * float(rng.uniform(0.95, 1.06))
        draft.width = draft.height * shape.aspect
        if draft.width > 0.56:
            draft.height *= 0.56 / draft.width
            draft.width = 0.56
        slot = (float(column) + float(rng.uniform(0.15, 0.85))) / len(free)
        draft.x = draft.width / 2 + 0.02 + slot * (0.96 - draft.width)
        draft.base = horizon + (1.0 - horizon) * (0.95 - 0.72 * draft.depth)
        if shape.hovers:
            draft.base = draft.height + float(rng.uniform(0.02, 0.12))
            if rng.random() < 0.5:  # right over something
                below = free[int(rng.integers(len(free)))]
                draft.x = min(max(below.x, draft.width / 2 + 0.02), 0.98 - draft.width / 2)
    for draft in drafts:
        if draft.support is None:
            continue
        carrier, shape = drafts[draft.support], SHAPES[draft.kind]
        holder = SHAPES[carrier.kind]
        draft.width = min(carrier.width * holder.opening * 0.95, carrier.height * 0.7 * shape.aspect)
        draft.height = draft.width / shape.aspect
        draft.x = carrier.x
        draft.depth = carrier.depth
        if draft.support_by == "on":
            assert holder.top is not None
            draft.base = carrier.base - carrier.height * (1.0 - holder.top)
        else:
            assert holder.rim is not None
            if carrier.kind == "cup":  # the opening is beside the handle
                draft.x += carrier.width * (0.1 if carrier.flip else -0.1)
            draft.base = carrier.base - carrier.height * (1.0 - holder.rim) + 0.34 * draft.height


def paint_order(objects: Sequence[SceneObject] | Sequence[_Draft]) -> list[int]:
    """Positions from far to near; what is carried comes right after its carrier."""
    supports = [thing.support for thing in objects]
    roots = sorted((i for i, support in enumerate(supports) if support is None), key=lambda i: -objects[i].depth)
    return [j for i in roots for j in (i, *(k for k, support in enumerate(supports) if support == i))]


def _measure(drafts: list[_Draft]) -> list[tuple[float, Box, Box]] | None:
    """Visible fraction, box of the visible pixels and full box (fractions) of each; None if too much is hidden or cut."""
    outlines: list[_Outline] = []
    places: list[tuple[int, int]] = []  # row and column of the outline's corner
    for draft in drafts:
        top, left = draft.base - draft.height, draft.x - draft.width / 2
        if top < 0.004 or left < 0.004 or left + draft.width > 0.996 or draft.base > 0.996:
            return None
        width, height = max(round(draft.width * _GRID), 3), max(round(draft.height * _GRID), 3)
        outlines.append(_outline(draft.kind, width, height, draft.flip))
        places.append((min(round(top * _GRID), _GRID - height), min(round(left * _GRID), _GRID - width)))
    result: list[tuple[float, Box, Box]] = []
    order = paint_order(drafts)
    for number, draft in enumerate(drafts):
        outline, place = outlines[number], places[number]
        seen = outline.solid.copy()
        for later in order[order.index(number) + 1 :]:
            mine, its = _overlap(place, outline, places[later], outlines[later])
            hidden = outlines[later].solid[its]
            if drafts[later].support == number and drafts[later].support_by == "inside":
                hidden = hidden & ~outline.wall[mine]
            seen[mine] &= ~hidden
        if draft.support is not None and draft.support_by == "inside":
            mine, its = _overlap(place, outline, places[draft.support], outlines[draft.support])
            seen[mine] &= ~outlines[draft.support].wall[its]
        visible = float(np.count_nonzero(seen)) / outline.area
        if visible < (0.4 if draft.support_by == "inside" else 0.55):
            return None
        box = _at(place, _bounds(seen))
        if min(box.right - box.left, box.bottom - box.top) < _SMALLEST:
            return None
        result.append((round(visible, 4), box, _at(place, outline.bounds)))
    return result


_Bounds = tuple[int, int, int, int]
"""top, left, bottom, right"""


@dataclass(frozen=True, slots=True)
class _Outline:
    """The cells of `_GRID` that an object covers (`solid`), and those of them that are no hollow (`wall`), [height, width]."""

    solid: NDArray[np.bool_]
    wall: NDArray[np.bool_]
    area: int
    bounds: _Bounds


@lru_cache(maxsize=2048)
def _outline(kind: str, width: int, height: int, flip: bool) -> _Outline:
    roles = rasterise(kind, width, height, flip)
    solid = roles > 0
    return _Outline(solid, solid & (roles != Role.INSIDE), int(np.count_nonzero(solid)), _bounds(solid))


def _overlap(
    place: tuple[int, int], outline: _Outline, other_place: tuple[int, int], other: _Outline
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where two outlines overlap: in the one and in the other; empty slices where they do not."""
    mine, its = [], []
    for start, length, other_start, other_length in zip(place, outline.solid.shape, other_place, other.solid.shape, strict=True):
        first = max(start, other_start)
        last = max(first, min(start + length, other_start + other_length))
        mine.append(slice(first - start, last - start))
        its.append(slice(first - other_start, last - other_start))
    return (mine[0], mine[1]), (its[0], its[1])


def _bounds(mask: NDArray[np.bool_]) -> _Bounds:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _at(place: tuple[int, int], bounds: _Bounds) -> Box:
    """Bounds in an outline that lies there, as fractions of the image."""
    (row, column), (top, left, bottom, right) = place, bounds
    return Box((column + left) / _GRID, (row + top) / _GRID, (column + right) / _GRID, (row + bottom) / _GRID)


def _finish(number: int, draft: _Draft, visible: float, box: Box, full_box: Box, image_size: int) -> SceneObject:
    centre = (box.left + box.right) / 2
    side = "left" if centre < 0.38 else "right" if centre > 0.62 else "middle"
    return SceneObject(
        id=number,
        kind=draft.kind,
        category=SHAPES[draft.kind].category,
        color=draft.color,
        texture=draft.texture,
        size=draft.size,
        region=f"{'front' if draft.depth < 0.46 else 'back'} {side}",
        depth=round(draft.depth, 4),
        visible=visible,
        box=_in_pixels(box, image_size),
        full_box=_in_pixels(full_box, image_size),
        x=round(draft.x, 5),
        base=round(draft.base, 5),
        width=round(draft.width, 5),
        height=round(draft.height, 5),
        flip=draft.flip,
        support=draft.support,
        support_by=draft.support_by,
    )


def _in_pixels(box: Box, size: int) -> Box:
    return Box(*(round(value * size, 3) for value in (box.left, box.top, box.right, box.bottom)))


# --------------------------------------------------------------------------------------------------------------- relations

_INVERSE: dict[Predicate, Predicate] = {
    "left_of": "right_of",
    "in_front_of": "behind",
    "above": "below",
    "on": "under",
    "inside": "holding",
    "next_to": "next_to",
}


def _relations(objects: tuple[SceneObject, ...], image_size: int) -> tuple[Relation, ...]:
    found: list[Relation] = []
    for first in objects:
        for second in objects:
            if first.id == second.id:
                continue
            for predicate in _predicates(first, second, image_size):
                found.append(Relation(first.id, predicate, second.id))
                found.append(Relation(second.id, _INVERSE[predicate], first.id))
    return tuple(dict.fromkeys(found))


def _predicates(first: SceneObject, second: SceneObject, image_size: int) -> list[Predicate]:
    """The predicates (those with an entry in `_INVERSE`) that are plainly true of `first` towards `second`."""
    if first.support == second.id:
        assert first.support_by is not None
        return [first.support_by]
    if second.support == first.id:
        return []
    a, b = first.box, second.box
    across = ((b.left + b.right) - (a.left + a.right)) / 2 / image_size
    half_widths = (a.right - a.left + b.right - b.left) / 2 / image_size
    gap = max(b.left - a.right, a.left - b.right) / image_size
    hovering = SHAPES[first.kind].hovers, SHAPES[second.kind].hovers
    grounded = first.support is None and second.support is None and hovering == (False, False)
    result: list[Predicate] = []
    if across > max(0.15, 0.55 * half_widths):
        result.append("left_of")
    if grounded and second.depth - first.depth > 0.28 and abs(across) < 0.4:
        result.append("in_front_of")
    body_bottom = a.top + 0.7 * (a.bottom - a.top)  # below it hangs the string
    if hovering[0] and body_bottom <= b.top + 0.03 * image_size and abs(across) < max(0.12, half_widths / 2):
        result.append("above")
    if grounded and gap < 0.1 and abs(first.depth - second.depth) < 0.2:
        result.append("next_to")
    return result
