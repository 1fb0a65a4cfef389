"""Sentences about a scene, all true of it: five captions with annotated phrases, and short descriptions of its regions.

A caption is a template with slots bound to referents. A referent is one object, or all objects of one look ("two red balls").
Every dialect has its own templates and words beside the shared ones, see `_Words`; which of them a sentence takes is drawn from
`(seed, style, index)`. `vocabulary` lists every word the grammar can produce, in both dialects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations
from typing import Literal, TypeVar, get_args

import numpy as np

from datamodules.miniworld.scenes import Scene, SceneObject, random_for
from datamodules.miniworld.shapes import SHAPES
from datamodules.records import Box, Caption, Phrase

Dialect = Literal["source", "target"]

_Option = TypeVar("_Option")

CAPTIONS = 5
"""Captions a scene."""


@dataclass(frozen=True, slots=True)
class RegionDescription:
    """A short text about a box (pixels), as in Visual Genome; `objects` are the ids it speaks of."""

    text: str
    box: Box
    objects: tuple[int, ...]


# ------------------------------------------------------------------------------------------------------------------- words


def _one_of(options: Sequence[_Option], rng: np.random.Generator) -> _Option:
    # NumPy draws nothing to choose among one, and takes a microsecond for it
    return options[int(rng.integers(len(options)))] if len(options) > 1 else options[0]


@dataclass(frozen=True, slots=True)
class _Words:
    """Ways to say one thing: `shared` by both dialects, and those of one dialect only."""

    shared: tuple[str, ...]
    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()

    def pick(self, rng: np.random.Generator, dialect: Dialect) -> str:
        own = self.source if dialect == "source" else self.target
        # the source speaks mostly the common words, the target mostly its own: what adaptation has to learn
        use_own = bool(own) and rng.random() < (0.3 if dialect == "source" else 0.6)
        options = own if use_own or not self.shared else self.shared
        return _one_of(options, rng)

    def all(self) -> tuple[str, ...]:
        return self.shared + self.source + self.target


_NOUNS = {
    "ball": _Words(("ball",), ("rubber ball",), ("globe", "orb")),
    "cube": _Words(("cube",), ("box",), ("block",)),
    "cone": _Words(("cone",), ("traffic cone",), ("pylon",)),
    "drum": _Words(("drum",), ("toy drum",), ("tambour",)),
    "cup": _Words(("cup",), ("teacup",), ("mug",)),
    "basket": _Words(("basket",), ("picnic basket",), ("hamper",)),
    "hat": _Words(("hat",), ("sun hat",), ("bonnet",)),
    "house": _Words(("house",), ("cottage",), ("cabin",)),
    "car": _Words(("car",), ("toy car",), ("automobile",)),
    "duck": _Words(("duck",), ("rubber duck",), ("duckling",)),
    "mushroom": _Words(("mushroom",), ("toadstool",), ("champignon",)),
    "balloon": _Words(("balloon",), ("party balloon",), ("inflatable",)),
    "boat": _Words(("boat",), ("sailing boat",), ("dinghy",)),
    "bottle": _Words(("bottle",), ("glass bottle",), ("flask",)),
    "lamp": _Words(("lamp",), ("table lamp",), ("lantern",)),
    "cat": _Words(("cat",), ("kitten",), ("tabby",)),
}
_IRREGULAR_PLURALS = {"box": "boxes", "tabby": "tabbies", "dinghy": "dinghies"}
_COLORS = {
    "red": _Words(("red",), ("bright red",), ("crimson",)),
    "orange": _Words(("orange",), (), ("amber",)),
    "yellow": _Words(("yellow",), ("bright yellow",), ("golden",)),
    "green": _Words(("green",), (), ("emerald",)),
    "blue": _Words(("blue",), ("bright blue",), ("navy",)),
    "purple": _Words(("purple",), ("violet",), ("plum",)),
    "white": _Words(("white",), (), ("ivory",)),
    "black": _Words(("black",), (), ("charcoal",)),
}
_TEXTURES = {
    "striped": _Words(("striped",), ("stripy",), ("banded",)),
    "spotted": _Words(("spotted",), ("dotted",), ("speckled",)),
    "checked": _Words(("checked",), ("chequered",), ("plaid",)),
}
_SIZES = {
    "small": _Words(("small",), ("little",), ("tiny",)),
    "large": _Words(("large",), ("big",), ("huge",)),
}
_SURFACES = {
    "meadow": _Words(("on the grass",), ("on the green grass",), ("on the lawn",)),
    "beach": _Words(("on the sand",), ("on the sandy beach",), ("on the shore",)),
    "snow": _Words(("on the snow",), ("on the snowy ground",), ("on the white frost",)),
    "street": _Words(("on the road",), ("on the street",), ("on the asphalt",)),
    "room": _Words(("on the wooden floor",), ("on the floor of a room",), ("on the floorboards",)),
    "table": _Words(("on the table",), ("on the kitchen table",), ("on the worktop",)),
}
_SETTINGS = {
    "meadow": _Words(("in a meadow",), ("in a grassy field",), ("in the countryside",)),
    "beach": _Words(("at the beach",), ("by the sea",), ("on the coast",)),
    "snow": _Words(("in the snow",), ("on a snowy day",), ("in a winter landscape",)),
    "street": _Words(("in the street",), ("beside a brick wall",), ("in an alley",)),
    "room": _Words(("in a room",), ("in a living room",), ("in a parlour",)),
    "table": _Words(("in a kitchen",), ("in the kitchen",), ("before a tiled wall",)),
}
_LIGHTS = {
    "day": _Words(("in bright light",), ("in clear daylight",), ("under a strong light",)),
    "evening": _Words(("in the evening light",), ("at sunset",), ("in a warm glow",)),
    "dull": _Words(("in dull light",), ("in grey light",), ("in the gloom",)),
}
_SPOTS = {
    "left": _Words(("on the left",), (), ("at the left edge",)),
    "middle": _Words(("in the middle",), (), ("at the centre",)),
    "right": _Words(("on the right",), (), ("at the right edge",)),
}
_RELATIONS = {
    "left_of": _Words(("to the left of",), ("left of",), ("on the left side of",)),
    "right_of": _Words(("to the right of",), ("right of",), ("on the right side of",)),
    "in_front_of": _Words(("in front of",), (), ("nearer than",)),
    "behind": _Words(("behind",), (), ("beyond",)),
    "above": _Words(("above",), ("over",), ("high above",)),
    "below": _Words(("below",), ("under",), ("lower than",)),
    "on": _Words(("on top of",), ("on",), ("atop",)),
    "under": _Words(("under",), ("underneath",), ("beneath",)),
    "inside": _Words(("inside",), ("in",), ("within",)),
    "next_to": _Words(("next to",), ("beside",), ("close to",)),
}
_NUMBERS = ("zero", "one", "two", "three", "four", "five")
# (singular, plural); standing things and hovering things
_STANDS: dict[Dialect, tuple[tuple[str, str], ...]] = {
    "source": (("sits", "sit"), ("stands", "stand")),
    "target": (("rests", "rest"), ("lies", "lie")),
}
_HOVERS: dict[Dialect, tuple[tuple[str, str], ...]] = {
    "source": (("floats", "float"), ("hangs", "hang")),
    "target": (("hovers", "hover"), ("drifts", "drift")),
}

# --------------------------------------------------------------------------------------------------------------- templates

# Slots: {a} {b} {c} {d} referents; {is} {stand} agree with {a}; {rel} is true of (a, b); {surface} needs every referent to stand
# on the ground itself; {spot_a} {spot_b} differ; {number} counts every object of the scene: the referents must be all of them.
_TEMPLATES: dict[Dialect, tuple[str, ...]] = {
    "source": (
        "{a} {stand} {surface}",
        "there {is} {a} {setting}",
        "{a} {setting} {light}",
        "{spot_a} of the picture there {is} {a}",
        "{a} seen {setting} {light}",
        "{a} {is} {rel} {b}",
        "{a} {rel} {b} {setting}",
        "{rel} {b} there {is} {a}",
        "{a} {stand} {rel} {b} {setting}",
        "{a} and {b} {surface}",
        "{spot_a} there {is} {a} and {spot_b} {b}",
        "{setting} there are {a} and {b}",
        "{a}, {b} and {c} {setting}",
        "{a} {rel} {b}, and also {c}",
        "there are {number} objects {setting}: {a}, {b} and {c}",
        "{number} things {setting}, {a} and {b}",
        "{a}, {b}, {c} and {d} {setting}",
    ),
    "target": (
        "a view of {a} {setting} {light}",
        "{a} can be seen {surface}",
        "this scene shows {a} {setting}",
        "{light}, {a} {stand} {surface}",
        "one finds {a} {spot_a} of the view",
        "{a} placed {rel} {b}",
        "{setting}, {a} {stand} {rel} {b}",
        "{rel} {b} one can see {a}",
        "a drawing of {a} {rel} {b} {setting}",
        "{a} together with {b} {surface}",
        "{a} {spot_a}, {b} {spot_b}",
        "a still life of {a} along with {b} {setting}",
        "a scene with {a}, {b} and {c} {setting}",
        "besides {a} and {b}, one finds {c} {setting}",
        "{number} items {setting}, namely {a}, {b} and {c}",
        "a pair of items, {a} and {b}, {setting}",
        "a composition of {a}, {b}, {c} and {d} {setting}",
    ),
}
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class _Template:
    """A template, taken apart: `pieces` are the text before a slot and the slot's name, `end` the text after the last one."""

    text: str
    pieces: tuple[tuple[str, str], ...]
    end: str
    slots: frozenset[str]
    arity: int


@cache
def _taken_apart(template: str) -> _Template:
    *parts, end = _SLOT.split(template)  # text, slot, text, slot, ..., text
    slots = frozenset(parts[1::2])
    return _Template(template, tuple(zip(parts[::2], parts[1::2], strict=True)), end, slots, len(slots & set("abcd")))


@dataclass(frozen=True, slots=True)
class _Referent:
    """Objects of one look, spoken of together.

    `spot` is the side of the picture that they all are on, if any; `grounded` says that all stand on the ground itself.
    """

    objects: tuple[SceneObject, ...]
    ids: tuple[int, ...]
    spot: str | None
    grounded: bool

    @classmethod
    def of(cls, things: Sequence[SceneObject]) -> _Referent:
        sides = {thing.region.split()[1] for thing in things}
        grounded = all(thing.support is None and not SHAPES[thing.kind].hovers for thing in things)
        return cls(tuple(things), tuple(thing.id for thing in things), sides.pop() if len(sides) == 1 else None, grounded)


_Predicates = dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]]
"""What can be said of one referent towards another, by their ids."""


@dataclass(slots=True)
class _Sentence:
    """Text under construction, with the phrases so far."""

    text: str = ""
    phrases: list[Phrase] = field(default_factory=list)

    def add(self, piece: str) -> None:
        self.text += piece

    def add_phrase(self, piece: str, chain: str, category: str, boxes: tuple[Box, ...]) -> None:
        start = len(self.text)
        self.text += piece
        self.phrases.append(Phrase(start, len(self.text), chain, category, boxes))


def describe(scene: Scene) -> tuple[Caption, ...]:
    """Five different captions with ids "<style>-<index>#<k>".

    Phrases of objects carry one box an object and the chain of their ids ("0", "0+1"), surroundings ("the grass") the category
    "scene" and no box, as Flickr30k Entities annotates them.
    """
    rng = random_for(scene.seed, scene.style, scene.index, 2, scene.domain)
    referents = _referents(scene)
    predicates = _predicates(referents, scene)
    orders = {count: list(permutations(referents, count)) for count in range(1, 5)}
    usable = [
        (dialect, template, bindings)
        for dialect in _dialects(scene)
        for template in map(_taken_apart, _TEMPLATES[dialect])
        if (bindings := [binding for binding in orders[template.arity] if _fits(template, binding, scene, predicates)])
    ]
    if scene.style == "web":  # a sentence in four or so is in the target's dialect
        usable = [entry for entry in usable if entry[0] == "source" or rng.random() < 0.35]
    # long sentences first, mostly: they say more about which image is meant
    weights = [rng.random() ** (1.0 / (0.6 + template.arity)) for _, template, _ in usable]
    ranked = [usable[i] for i in sorted(range(len(usable)), key=lambda i: -weights[i])]
    captions: list[Caption] = []
    texts: set[str] = set()
    turn = 0
    while len(captions) < CAPTIONS:
        dialect, template, bindings = ranked[turn % len(ranked)]
        turn += 1
        sentence = _write(template, _one_of(bindings, rng), scene, dialect, predicates, rng)
        if sentence.text in texts:
            continue
        texts.add(sentence.text)
        name = f"{scene.style}-{scene.index}#{len(captions)}"
        captions.append(Caption(name, sentence.text, tuple(sentence.phrases)))
    return tuple(captions)


def region_descriptions(scene: Scene) -> tuple[RegionDescription, ...]:
    """One short description for each object, and one for each pair that stands in a relation (one direction each)."""
    rng = random_for(scene.seed, scene.style, scene.index, 3, scene.domain)
    by_id = {thing.id: thing for thing in scene.objects}
    dialect: Dialect = _dialects(scene)[0]
    if scene.style == "web" and rng.random() < 0.25:
        dialect = "target"
    found = [RegionDescription(_noun_phrase((thing,), rng, dialect), thing.box, (thing.id,)) for thing in scene.objects]
    told: set[frozenset[int]] = set()
    for relation in scene.relations:
        pair = frozenset((relation.subject, relation.object))
        if relation.predicate in _RELATIONS and pair not in told and rng.random() < 0.7:
            told.add(pair)
            first, second = by_id[relation.subject], by_id[relation.object]
            words = (
                _noun_phrase((first,), rng, dialect),
                _RELATIONS[relation.predicate].pick(rng, dialect),
                _noun_phrase((second,), rng, dialect),
            )
            found.append(RegionDescription(" ".join(words), _union(first.box, second.box), (first.id, second.id)))
    return tuple(found)


def vocabulary() -> tuple[str, ...]:
    """Every lower-case word and punctuation mark that a caption or region description of either style can hold, sorted."""
    return tuple(sorted({word for text in _literals() for word in re.findall(r"\w+|[^\w\s]", text.lower())}))


def _literals() -> Iterator[str]:
    yield from ("a", "an", "is", "are", ".", *_NUMBERS)
    for dialect in get_args(Dialect):
        for template in _TEMPLATES[dialect]:
            yield _SLOT.sub(" ", template)
        for forms in (*_STANDS[dialect], *_HOVERS[dialect]):
            yield from forms
    tables = (_COLORS, _TEXTURES, _SIZES, _SURFACES, _SETTINGS, _LIGHTS, _SPOTS, _RELATIONS)
    for words in (words for table in tables for words in table.values()):
        yield from words.all()
    for noun in (noun for words in _NOUNS.values() for noun in words.all()):
        yield from (noun, _plural(noun))


# ---------------------------------------------------------------------------------------------------------------- grammar


def _dialects(scene: Scene) -> tuple[Dialect, ...]:
    return ("source", "target") if scene.style == "web" else (scene.style,)


def _referents(scene: Scene) -> list[_Referent]:
    groups: dict[tuple[str, str, str, str], list[SceneObject]] = {}
    for thing in scene.objects:
        groups.setdefault((thing.kind, thing.color, thing.texture, thing.size), []).append(thing)
    return [_Referent.of(things) for things in groups.values()]


def _predicates(referents: Sequence[_Referent], scene: Scene) -> _Predicates:
    """Predicates that hold between every object of the one and every object of the other; the telling ones alone if any."""
    between: dict[tuple[int, int], set[str]] = {}
    for relation in scene.relations:
        between.setdefault((relation.subject, relation.object), set()).add(relation.predicate)
    found: _Predicates = {}
    for first, second in permutations(referents, 2):
        shared = set.intersection(*(between.get((a, b), set()) for a in first.ids for b in second.ids))
        held = [predicate for predicate in _RELATIONS if predicate in shared]
        telling = [predicate for predicate in held if predicate in ("on", "under", "inside", "above")]
        found[first.ids, second.ids] = telling or held
    return found


def _fits(template: _Template, binding: tuple[_Referent, ...], scene: Scene, predicates: _Predicates) -> bool:
    """Whether the template can be said truthfully of these referents."""
    slots, first = template.slots, binding[0]
    if "rel" in slots and not predicates[first.ids, binding[1].ids]:
        return False
    if "surface" in slots and not all(referent.grounded for referent in binding):
        return False
    if "spot_a" in slots and first.spot is None:
        return False
    if "spot_b" in slots and binding[1].spot in (None, first.spot):
        return False
    if "number" in slots and sum(len(referent.ids) for referent in binding) != len(scene.objects):
        return False
    return not template.text.startswith("a pair of items") or sum(len(referent.ids) for referent in binding) == 2


def _write(
    template: _Template,
    binding: tuple[_Referent, ...],
    scene: Scene,
    dialect: Dialect,
    predicates: _Predicates,
    rng: np.random.Generator,
) -> _Sentence:
    sentence = _Sentence()
    for text, name in template.pieces:
        sentence.add(text)
        if name in "abcd":
            referent = binding["abcd".index(name)]
            chain = "+".join(str(number) for number in referent.ids)
            boxes = tuple(thing.box for thing in referent.objects)
            sentence.add_phrase(_noun_phrase(referent.objects, rng, dialect), chain, referent.objects[0].category, boxes)
        elif name in ("surface", "setting"):
            words = (_SURFACES if name == "surface" else _SETTINGS)[scene.background].pick(rng, dialect)
            preposition, rest = words.split(" ", 1)
            sentence.add(preposition + " ")
            sentence.add_phrase(rest, "scene", "scene", ())
        else:
            sentence.add(_filling(name, binding, scene, dialect, predicates, rng))
    sentence.add(template.end)
    sentence.text = f"{sentence.text[0].upper()}{sentence.text[1:]}."
    return sentence


def _filling(
    slot: str,
    binding: tuple[_Referent, ...],
    scene: Scene,
    dialect: Dialect,
    predicates: _Predicates,
    rng: np.random.Generator,
) -> str:
    plural = len(binding[0].objects) > 1
    match slot:
        case "is":
            return "are" if plural else "is"
        case "stand":
            verbs = _HOVERS[dialect] if SHAPES[binding[0].objects[0].kind].hovers else _STANDS[dialect]
            return _one_of(verbs, rng)[plural]
        case "rel":
            return _RELATIONS[_one_of(predicates[binding[0].ids, binding[1].ids], rng)].pick(rng, dialect)
        case "light":
            return _LIGHTS[scene.light].pick(rng, dialect)
        case "number":
            return _NUMBERS[len(scene.objects)]
        case "spot_a" | "spot_b":
            side = binding[0 if slot == "spot_a" else 1].spot
            assert side is not None
            return _SPOTS[side].pick(rng, dialect)
    raise AssertionError(f"template slot {{{slot}}} has no meaning")


def _noun_phrase(things: Sequence[SceneObject], rng: np.random.Generator, dialect: Dialect) -> str:
    thing, count = things[0], len(things)
    noun = _NOUNS[thing.kind].pick(rng, dialect)
    words = [_COLORS[thing.color].pick(rng, dialect)] if rng.random() < 0.93 else []
    if thing.texture in _TEXTURES and rng.random() < (0.6 if words else 1.0):
        words.insert(int(rng.integers(len(words) + 1)), _TEXTURES[thing.texture].pick(rng, dialect))
    if thing.size in _SIZES and rng.random() < 0.4:
        words.insert(0, _SIZES[thing.size].pick(rng, dialect))
    words.append(noun if count == 1 else _plural(noun))
    return f"{_determiner(words[0]) if count == 1 else _NUMBERS[count]} {' '.join(words)}"


def _determiner(word: str) -> Literal["a", "an"]:
    return "an" if word[0] in "aeiou" else "a"


def _plural(noun: str) -> str:
    return _IRREGULAR_PLURALS.get(noun, noun + "s")


def _union(first: Box, second: Box) -> Box:
    return Box(
        min(first.left, second.left),
        min(first.top, second.top),
        max(first.right, second.right),
        max(first.bottom, second.bottom),
    )
