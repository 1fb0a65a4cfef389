"""Lists in JSON files, element by element, against the standard library reading them whole."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from datamodules.formats.json_stream import stream_list


def some_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [some_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {f"k{number}": some_value(rng, depth + 1) for number in range(rng.randrange(4))}
    return (None, rng.random() < 0.5, rng.randrange(-(10**9), 10**9), rng.random() * 1e9, 'é"\\ }],\u2028 \n', "")[kind]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
def test_any_list_at_any_chunk_is_what_json_reads(tmp_path: Path, chunk: int) -> None:
    rng = random.Random(chunk)
    path = tmp_path / "list.json"
    for case in range(40):
        values = [some_value(rng) for _ in range(rng.randrange(6))]
        indent, ascii_only = rng.choice([None, 0, 3]), rng.random() < 0.5
        path.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        assert list(stream_list(path, "values", chunk=chunk)) == json.loads(path.read_text("utf-8")), case
        content = {"a": some_value(rng), "values": values, "z": 1}
        path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        assert list(stream_list(path, "values", "values", chunk=chunk)) == json.loads(path.read_text("utf-8"))["values"], case


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = json.dumps([{"id": 12, "text": "a [b, {c"}, {"id": 345, "regions": [1, 2]}, 67]).encode()
    path = tmp_path / "cut.json"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.json: .*expected things.*It ends too early|cut\.json is empty"):
            list(stream_list(path, "things", chunk=5))
    path.write_bytes(whole)
    assert len(list(stream_list(path, "things", chunk=5))) == 3


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('{"a": 1}', None, "top level is not a list"),
        ("[1]", "images", "top level is not an object"),
        ('{"a": [1], "b": 2}', "images", "has no 'images'"),
        ("{}", "images", "has no 'images'"),
        ('{"images": 5}', "images", "'images' is not a list"),
        ("[1 2]", None, "no comma or closing bracket after an element after 1 elements"),
        ("[1,]", None, "Expecting value after 1 elements"),
        ('[1, {"a" 2}]', None, "Expecting ':' delimiter after 1 elements"),
        ("[1] [2]", None, "more after its end after 1 elements"),
        ("[" * 100_000, None, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, key: str | None, message: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        list(stream_list(path, "things", key))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json does not exist; expected things there"):
        list(stream_list(tmp_path / "none.json", "things"))
    with pytest.raises(InputError, match=r"is a folder"):
        list(stream_list(tmp_path, "things"))
    (tmp_path / "binary.json").write_bytes(b'["\xff\xfe"]')
    with pytest.raises(InputError, match=r"binary\.json is not a text file"):
        list(stream_list(tmp_path / "binary.json", "things"))


def test_only_a_piece_of_the_file_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"number": number, "text": "x" * 200} for number in range(8000)]))
    assert path.stat().st_size > 1_800_000
    tracemalloc.start()
    count = sum(1 for _ in stream_list(path, "things", chunk=1 << 14))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8000
    assert peak < 300_000
