"""JSON is read strictly, and an error says what is wrong and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.files.json_file import read_json


def test_what_is_json_is_read_as_python_reads_it(tmp_path: Path) -> None:
    content = {"a": [1, -2.5e3, None, True, "ä\ud83d"], "b": {}, "": 12345678901234567890}
    path = tmp_path / "a.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(json.dumps(content).encode(encoding))
        assert read_json(path, "things") == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": 2}\n', r"is JSON lines, with a value on each.*`jq -s \. FILE`"),
        (
            '{"a": [1, 2',
            r"at line 1, column 12 of 11 characters.*It ends too early: it was not copied or downloaded",
        ),
        ('["a dog', r"Unterminated string.*It ends too early"),
        ("[1,\n2 3]", r"Expecting ',' delimiter at line 2, column 3 of 8 characters\); expected things\.$"),
        ("[NaN]", "holds NaN, which is no JSON"),
        ("[-Infinity]", "holds -Infinity, which is no JSON"),
        ('{"a": 1, "b": 2, "a": 1}', "has the key 'a' twice"),
        ("[" + "9" * 5000 + "]", "a number of thousands of digits"),
        ("[" * 100_000, "nested too deeply"),
        ("{}]", r"Extra data at line 1, column 3 of 3 characters"),
    ],
)
def test_what_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"a\.json .*{message}") as caught:
        read_json(path, "things")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
