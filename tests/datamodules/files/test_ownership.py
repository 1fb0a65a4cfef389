"""Whose a folder is: ours is taken up, an empty one begun, anything else refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from datamodules.files.ownership import take_up, write_label

ABOUT: dict[str, Any] = {"weights": "a", "sizes": (1, 2), "ids": list(range(100))}


def taken(folder: Path, about: dict[str, Any] = ABOUT) -> bool:
    strangers = [file for file in folder.iterdir() if file.suffix == ".bin"]
    return take_up(folder / "about.json", about, what="job", strangers=strangers, remedy="Delete it.")


def test_ours_is_taken_up_and_an_empty_one_begun(tmp_path: Path) -> None:
    assert not taken(tmp_path)
    write_label(tmp_path / "about.json", ABOUT)
    (tmp_path / "content.bin").touch()
    assert taken(tmp_path), "what was a tuple is a list in JSON"


def test_another_ones_is_refused_by_what_differs(tmp_path: Path) -> None:
    write_label(tmp_path / "about.json", ABOUT)
    other = {"weights": "b", "sizes": (1, 2), "ids": list(range(1, 101)), "new": 1}
    with pytest.raises(InputError) as refused:
        taken(tmp_path, other)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'about.json'} is of another job: ")
    assert message.endswith("ids differs; new was None and is 1; weights was 'a' and is 'b'. Delete it.")
    write_label(tmp_path / "about.json", {})
    with pytest.raises(InputError, match=r"k0 was None and is 0; .*; and 94 more\. Delete it\."):
        taken(tmp_path, {f"k{number}": number for number in range(100)})


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_label_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "about.json").write_bytes(content)
    with pytest.raises(InputError, match=r"about\.json cannot be read \(.*\)\. Delete it\."):
        taken(tmp_path)


def test_strangers_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.bin").touch()
    with pytest.raises(InputError, match=r"has no about\.json to say whose it is \('thesis\.bin' is there\)\. Delete it\."):
        taken(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.bin"]
