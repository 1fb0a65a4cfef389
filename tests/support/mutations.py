"""Files made wrong in every way that we know of, the same ones each time."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

_DEEP = "[" * 3000 + "]" * 3000
VALUES: tuple[Any, ...] = (
    None, True, -1, 10**30, 1.5, "", "x", "../../etc/passwd", "/etc/passwd", "a\0b", "\ud83d", "a\nb\x1b[2J",
    [], {}, [[]], {"a": 1},
)  # fmt: skip


def wrong_json(content: Any, rng: random.Random) -> tuple[bytes, str]:
    """JSON with a value of another kind, a key less, an element twice, or a value that is no JSON; and what was done."""
    changed = copy.deepcopy(content)
    places = list(_places(changed))
    holder, key = rng.choice(places)
    what = rng.choice(("value", "value", "value", "remove", "twice", "raw"))
    if what == "value":
        holder[key] = rng.choice(VALUES)
        return json.dumps(changed).encode(), f"{key!r} = {holder[key]!r}"
    if what == "remove" and isinstance(holder, dict):  # a list that is shorter is a list
        del holder[key]
        return json.dumps(changed).encode(), f"without {key!r}"
    if what == "twice" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
        return json.dumps(changed).encode(), f"element {key} twice"
    raw = rng.choice(("NaN", "-Infinity", "9" * 5000, _DEEP, '{"a": 1, "a": 1}', "", "'a'", "0x10", "tru"))
    holder[key] = "<here>"
    return json.dumps(changed).replace('"<here>"', raw, 1).encode(), f"{key!r} = {raw[:20]}"


def _places(content: Any) -> Any:
    """(container, key) of every value below one, those of long lists from their ends."""
    if isinstance(content, dict):
        keys: Any = content
    else:
        keys = range(len(content)) if len(content) < 8 else (0, 1, len(content) // 2, len(content) - 1)
    for key in list(keys):
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from _places(content[key])


def wrong_bytes(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A file that is cut, has a byte flipped, is of another encoding or kind, or has something before or behind it."""
    place = rng.randrange(len(raw))
    wrong: dict[str, Callable[[], bytes]] = {
        f"cut at {place}": lambda: raw[:place],
        f"bit of byte {place}": lambda: raw[:place] + bytes([raw[place] ^ 1 << rng.randrange(8)]) + raw[place + 1 :],
        f"byte {place} zero": lambda: raw[:place] + b"\0" + raw[place + 1 :],
        f"16 bytes at {place} lost": lambda: raw[:place] + raw[place + 16 :],
        f"latin-1 at {place}": lambda: raw[:place] + b"\xe9" + raw[place:],
        "empty": lambda: b"",
        "web page": lambda: b"<!DOCTYPE html><html></html>",
        "LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "gzip": lambda: b"\x1f\x8b\x08" + raw,
        "image": lambda: b"\xff\xd8\xff\xe0" + raw,
        "twice": lambda: raw + b"\n" + raw,
        "tail": lambda: raw + b"}",
    }
    what = rng.choice(list(wrong))
    return wrong[what](), what


def same_in(encoding: str, raw: bytes) -> bytes:
    """The text of a file in another encoding that says which it is."""
    return raw.decode().encode(encoding)
