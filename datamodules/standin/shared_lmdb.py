"""An LMDB file in which many keys lead to the same few values: a database of 123,287 images that takes the disk of 200.

LMDB keeps a value that is larger than half a page in pages of its own, and its key has the number of the first one. Nothing keeps
two keys from having the same number as long as nobody writes to the file. The library has no call for it, so the pages are made
here, by the layout of LMDB 0.9 (mdb.c: MDB_meta, MDB_page, MDB_node): two meta pages, the values, the leaves in the order of
their keys, the branches above them, the root last. For reading only.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from datamodules.files.atomic import whole_file

PAGE = 4096
_HEADER = 16
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_BIG_DATA, _INTEGER_KEY = 1, 8
_MAGIC, _VERSION, _NONE = 0xBEEFC0DE, 1, 2**64 - 1


def write_shared(path: Path, values: Sequence[bytes], value_of: Mapping[bytes, int]) -> None:
    """Writes a data.mdb, whole or not at all.

    Args:
        path: The file.
        values: Each once.
        value_of: The place of each key's value among them; keys have 1 to 511 bytes.
    """
    with whole_file(path) as part, part.open("wb") as file:
        file.write(bytes(2 * PAGE))  # the meta pages come last
        page, places = 2, []
        for value in values:
            places.append(page)
            page += _write_value(file, page, value)
        overflow = page - 2
        level: list[tuple[bytes, int]] = []  # the first key of each page, and the page
        nodes: list[tuple[bytes, bytes]] = []
        for key in sorted(value_of):
            number = value_of[key]
            head = struct.pack("<IHH", len(values[number]), _BIG_DATA, len(key))
            nodes.append((key, head + key + struct.pack("<Q", places[number])))
        leaves = _write_level(file, page, _LEAF, nodes)
        page, level = page + len(leaves), leaves
        depth, branches = 1 if leaves else 0, 0
        while len(level) > 1:
            level = _write_level(file, page, _BRANCH, [(key, _branch_node(key, below)) for key, below in level])
            page, branches, depth = page + len(level), branches + len(level), depth + 1
        root = level[0][1] if level else _NONE
        table = struct.pack("<IHHQQQQQ", 0, 0, depth, branches, len(leaves), overflow, len(value_of), root)
        free = struct.pack("<IHHQQQQQ", PAGE, _INTEGER_KEY, 0, 0, 0, 0, 0, _NONE)
        file.seek(0)
        for number in range(2):
            meta = struct.pack("<IIQQ", _MAGIC, _VERSION, 0, page * PAGE) + free + table + struct.pack("<QQ", page - 1, number)
            file.write((struct.pack("<QHHI", number, 0, _META, 0) + meta).ljust(PAGE, b"\0"))


def _write_value(file: BinaryIO, page: int, value: bytes) -> int:
    """Returns its number of pages."""
    pages = -(-(_HEADER + len(value)) // PAGE)
    file.write((struct.pack("<QHHI", page, 0, _OVERFLOW, pages) + value).ljust(pages * PAGE, b"\0"))
    return pages


def _branch_node(key: bytes, page: int) -> bytes:
    return struct.pack("<IHH", page & 0xFFFFFFFF, page >> 32, len(key)) + key


def _write_level(file: BinaryIO, page: int, kind: int, nodes: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, int]]:
    """Nodes packed into pages from this one on. Returns the first key of each page, and the page."""
    written: list[tuple[bytes, int]] = []
    held: list[bytes] = []
    first, room = b"", 0
    for key, node in nodes:
        if held and room < len(node) + len(node) % 2 + 2:
            file.write(_page(page + len(written), kind, held))
            written.append((first, page + len(written)))
            held = []
        if not held:
            first, room = key, PAGE - _HEADER
            if kind == _BRANCH:  # the first node of a branch is below any key, and has none
                node = node[:6] + b"\0\0"
        held.append(node)
        room -= len(node) + len(node) % 2 + 2
    if held:
        file.write(_page(page + len(written), kind, held))
        written.append((first, page + len(written)))
    return written


def _page(number: int, kind: int, nodes: Sequence[bytes]) -> bytes:
    upper, pointers, body = PAGE, [], b""
    for node in nodes:
        node += b"\0" * (len(node) % 2)
        upper -= len(node)
        pointers.append(upper)
        body = node + body
    lower = _HEADER + 2 * len(nodes)
    head = struct.pack("<QHHHH", number, 0, kind, lower, upper) + struct.pack(f"<{len(nodes)}H", *pointers)
    return head.ljust(upper, b"\0") + body
