"""Tables of records as a file that is mapped into memory: all processes of a machine share one copy, and the kernel may drop what
nobody looks at.

The file is one of safetensors: the columns of each split as NUMBER/COLUMN, and in its metadata JSON (`crosslight`) of the names
of the splits by number, of the SHA-256 of each array, and of facts that whoever wrote it wants back; with its own SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file
from datamodules.formats.columns import Array
from datamodules.formats.record_table import Origin, RecordTable

_DTYPES = {name: np.dtype(kind) for name, kind in (("U8", "u1"), ("U32", "u4"), ("I32", "i4"), ("I64", "i8"), ("F64", "f8"))}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
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
    sums = {name: _begun(_NAMES[column.dtype], column.shape) for name, column in arrays.items()}
    for name, column in arrays.items():
        sums[name].update(column.data if column.size else b"")
    about = {"splits": list(splits), "facts": facts, "sha256": {name: found.hexdigest() for name, found in sums.items()}}
    text = json.dumps(about)
    with whole_file(path) as part:
        save_file(arrays, part, {"crosslight": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})


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
                metadata = opened.metadata()
            if hashlib.sha256(metadata["crosslight"].encode()).hexdigest() != metadata["sha256"]:
                raise ValueError("its metadata have changed since it was written")
            about = json.loads(metadata["crosslight"])
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


def _begun(dtype: str, shape: Sequence[int]) -> hashlib._Hash:
    """The sum of an array, before what is in it."""
    return hashlib.sha256(json.dumps([dtype, *shape]).encode())


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
        found = _begun(entry["dtype"], entry["shape"])
        while start < stop and (block := file.read(min(stop - start, _BLOCK))):
            found.update(block)
            start += len(block)
        if found.hexdigest() != sums[name]:
            raise ValueError(f"{name} has changed since it was written")
