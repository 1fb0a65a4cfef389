"""Files that were damaged, or are something else than their name says."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

Mutation = Callable[[Path], None]


def _written(change: Callable[[bytes], bytes]) -> Mutation:
    return lambda file: (file.write_bytes(change(file.read_bytes())), None)[1]


def _in_place(make: Callable[[Path], object]) -> Mutation:
    def mutate(file: Path) -> None:
        file.unlink()
        make(file)

    return mutate


def _flipped(seed: int) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[random.Random(seed).randrange(len(changed))] ^= 0x55
        return bytes(changed)

    return flip


# By what is wrong, for any kind of file.
ANY: dict[str, Mutation] = {
    "half of it": _written(lambda content: content[: len(content) // 2]),
    "empty": _written(lambda content: b""),
    "zeros": _written(lambda content: bytes(len(content))),
    "noise": _written(lambda content: random.Random(0).randbytes(len(content))),
    "web page": _written(lambda content: b"<!doctype html><html><body>404</body></html>"),
    "gzip": _written(lambda content: b"\x1f\x8b\x08" + content),
    "Latin-1": _written(lambda content: b"\xe9\xff" + content),
    "UTF-16 of half": _written(lambda content: '{"schema'.encode("utf-16")[:-1]),
    "deep": _written(lambda content: b"[" * 100_000),
    "number": _written(lambda content: b"3"),
    "null": _written(lambda content: b"null\n"),
    "list": _written(lambda content: b"[1, [2, {}]]\n"),
    "digits": _written(lambda content: b'{"schema": ' + b"9" * 5000 + b"}"),
    "pipe": _in_place(lambda file: os.mkfifo(file)),
    "loop": _in_place(lambda file: file.symlink_to(file)),
    "nowhere": _in_place(lambda file: file.symlink_to("/nowhere/at/all")),
    "device": _in_place(lambda file: file.symlink_to("/dev/zero")),
    "folder": _in_place(lambda file: file.mkdir()),
}

# Of archives, which carry sums of what is in them.
FLIPPED: dict[str, Mutation] = {f"flipped {seed}": _written(_flipped(seed)) for seed in range(6)}


def replaced(old: str, new: str) -> Mutation:
    """A text file with a part that says something else."""

    def change(content: bytes) -> bytes:
        assert old.encode() in content, old
        return content.replace(old.encode(), new.encode(), 1)

    return _written(change)
