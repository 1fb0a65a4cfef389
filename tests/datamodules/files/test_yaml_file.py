"""YAML is read with limits, and what is wrong is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.files import yaml_file
from datamodules.files.yaml_file import parse_yaml, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{last}'] * 9)}]\n" for last, this in zip("abcdefghi", "bcdefghij", strict=True)
)


def test_what_is_yaml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: &shared {b: 1, c: [x, 2.5]}\nd: {<<: *shared, b: 2}\ne: [*shared, *shared]\n1: x\n'1': y\n")
    shared = {"b": 1, "c": ["x", 2.5]}
    assert read_yaml(path) == {"a": shared, "d": {**shared, "b": 2}, "e": [shared, shared], 1: "x", "1": "y"}
    assert parse_yaml("", "nothing") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"line \d+, column \d+: not YAML: aliases make more than 1,000,000 values"),
        ("a: &a [1, *a]\n", "line 1, column 4: not YAML: an alias contains itself"),
        ("a: &a {b: {c: *a}}\n", "an alias contains itself"),
        ("lr: 1\nlr: 2\n", "line 2, column 1: not YAML: 'lr' is there twice"),
        ("1: a\n0x1: b\n", "line 2, column 1: not YAML: '0x1' is there twice"),
        ("a: [\n", "line 2, column 1: not YAML: "),
        ("a: *none\n", "undefined alias 'none'"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("[1, 2]: 3\n", "unhashable key"),
        ("a: 2024-13-45\n", "a value cannot be read"),
        ("a: " + "9" * 5000, "a value cannot be read"),
        ("[" * 5000, "nested too deeply"),
        ("a: \x00\n", "not YAML: "),
    ],
)
def test_what_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"a\.yaml.*{message}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text", ["{", "a: [1, 2", "a: b: c", "a: 1\n b: 2", "'open", "- a\nb: 1", "%oops", "a: !!nothing 1", "a: *gone", "\tx: 1"]
)
def test_a_mistake_is_told_alike_with_and_without_libyaml(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as fast:
        parse_yaml(text, "x.yaml")
    monkeypatch.setattr(yaml_file, "_Fast", yaml_file._Strict)
    with pytest.raises(InputError) as plain:
        parse_yaml(text, "x.yaml")
    assert str(fast.value) == str(plain.value)
