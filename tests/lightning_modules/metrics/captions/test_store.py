"""Captions that are kept while they are made: half a line of a killed process is made again, a damaged one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import InputError
from lightning_modules.metrics.captions.store import CaptionStore

PART = "part-00000.jsonl"


def kept(folder: Path) -> CaptionStore:
    store = CaptionStore(folder)
    store.read()
    return store


def test_half_a_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(b'[[0, "a cube", true, -1.5], [1, "a", false, -2]]\n[[2, "a du')
    store = kept(tmp_path)
    assert store.found([0, 1]) == ["a cube", "a"]
    assert store.found([2]) is None
    assert store.unended == {1}


@pytest.mark.parametrize(
    "line", [b'[[0, "a \xff\xfe', b"[[0, 1, true, -1]]", b'{"a": 1}', b"[" * 5000, b"[[0]]", b'[["x", "a", true, -1]]']
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / PART).write_bytes(line + b"\n")
    with pytest.raises(InputError, match=rf"{PART} has a line that is no batch of captions: .*Delete {tmp_path} to write all"):
        kept(tmp_path)
