"""Tables of records as a file that is mapped into memory: opening it reads nothing but its sum, all processes of a machine share
one copy, and the kernel may drop what nobody looks at.

The file is one of safetensors: the columns of each split as NUMBER/COLUMN, and in its metadata, under `crosslight`, JSON of the
names of the splits by number, of the SHA-256 of each array, and of facts that whoever wrote it wants back.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file
from datamodules.formats.columns import Array
from datamodules.formats.record_table import Origin, RecordTable

_DTYPES = {"U8": np.uint8, "U32": np.uint32, "I32": np.int32, "I64": np.int64, "F64": np.float64}
_BLOCK = 2**20


def write_records(path: Path, splits: Mapping[str, RecordTable], facts: Mapping[str, Any]) -> None:
    """Write tables, whole or not at all.

    Args:
        path: The file; one that is there is replaced.
        splits: By name.
        facts: As JSON.

    Raises:
        OSError: It cannot be written.
    """
    arrays = {
        f"{number}/{name}": np.ascontiguousarray(column)
        for number, table in enumerate(splits.values())
        for name, column in table.arrays.items()
    }
    about = {"splits": list(splits), "facts": facts, "sha256": {name: _sum(column) for name, column in arrays.items()}}
    with whole_file(path) as part:
        save_file(arrays, part, {"crosslight": json.dumps(about)})


def open_records(path: Path, trusted: bool = False) -> tuple[dict[str, RecordTable], dict[str, Any]]:
    """The tables of a file by the name of their split, and the facts.

    Args:
        path: The file.
        trusted: Whether this very file has been opened before: its content is not read again then.

    Raises:
        InputError: It is no file of this kind, cut, or damaged.
        OSError: It is not there, or cannot be read.
    """
    with path.open("rb") as file:
        try:
            with safe_open(path, framework="np") as opened:  # sees that the header fits the file
                about = json.loads(opened.metadata()["crosslight"])
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
            if not trusted:
                _require_sums(file, 8 + length, header, about["sha256"])
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            columns: dict[int, dict[str, Array]] = defaultdict(dict)
            for key, entry in header.items():
                if key != "__metadata__":
                    number, _, name = key.partition("/")
                    columns[int(number)][name] = _array(mapped, 8 + length, entry)
            tables = {
                split: RecordTable(columns[number], origin=Origin(_one_split, (str(path), split)))
                for number, split in enumerate(about["splits"])
            }
            return tables, about["facts"]
        except (SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise InputError(f"{path} is damaged, or of another kind ({' '.join(str(error).split())}). Remove it.") from error


def _one_split(path: str, split: str) -> RecordTable:
    """In another process."""
    return open_records(Path(path), trusted=True)[0][split]


def _array(mapped: mmap.mmap, base: int, entry: Mapping[str, Any]) -> Array:
    dtype, start = _DTYPES[entry["dtype"]], base + entry["data_offsets"][0]
    if 0 in entry["shape"]:
        return np.zeros(entry["shape"], dtype)
    return np.frombuffer(mapped, dtype, int(np.prod(entry["shape"])), start).reshape(entry["shape"])


def _sum(column: Array) -> str:
    return hashlib.sha256(column.data if column.size else b"").hexdigest()


def _require_sums(file: Any, base: int, header: Mapping[str, Any], sums: Mapping[str, str]) -> None:
    """Read what the arrays are, not through the map: that would count as this process's memory.

    Raises:
        ValueError: One is not what was written.
    """
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        file.seek(base + start)
        found = hashlib.sha256()
        while start < stop and (block := file.read(min(stop - start, _BLOCK))):
            found.update(block)
            start += len(block)
        if found.hexdigest() != sums[name]:
            raise ValueError(f"{name} has changed since it was written")
