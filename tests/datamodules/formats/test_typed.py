"""Typed reading: every mistake names file and key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from datamodules.errors import InputError
from datamodules.formats.typed import read_typed


@dataclass(frozen=True)
class Inner:
    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    named: dict[str, float] = field(default_factory=dict)
    listed: list[str] = field(default_factory=list)
    free: Any = None


def test_content_becomes_records() -> None:
    content = {"kind": "a", "inner": {"size": 3, "share": 1}, "several": [{"size": 1}], "named": {"x": 2}, "free": {"y": [None]}}
    outer = read_typed(Outer, content, "f")
    assert outer == Outer("a", Inner(3, 1.0), (Inner(1),), {"x": 2.0}, [], {"y": [None]})
    assert isinstance(outer.inner.share, float)
    assert read_typed(Outer, {"kind": "b", "inner": None}, "f") == Outer("b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "f: 'kind' is missing"),
        ({"kind": "a", "inside": 1}, "f: unknown key 'inside'; there are kind, inner, several, named, listed, free"),
        ({"kind": "c"}, "f: kind is 'c'; it is one of a, b"),
        ({"kind": "a", "inner": {"size": True}}, "f: inner: size is True; it must be of type int"),
        ({"kind": "a", "inner": {"size": 1.5}}, "f: inner: size is 1.5; it must be of type int"),
        ({"kind": "a", "inner": 3}, "f: inner is 3; it must be a mapping"),
        ({"kind": "a", "several": [{"size": 1}, {}]}, "f: several[1]: 'size' is missing"),
        ({"kind": "a", "several": {"size": 1}}, "f: several is {'size': 1}; it must be a list"),
        ({"kind": "a", "named": {"x": "1"}}, "f: named.x is '1'; it must be of type float"),
        ({"kind": "a", "named": []}, "f: named is []; it must be a mapping"),
        ({"kind": "a", "listed": "x"}, "f: listed is 'x'; it must be a list"),
    ],
)
def test_a_mistake_names_its_place(content: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        read_typed(Outer, content, "f")
    assert str(refused.value) == message
