"""Recordings that were tampered with, and what a check says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.parity.compare import GroupCheck

Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]


def edited(source: Path, target: Path, edit: Edit) -> Path:
    """A copy of a recording with changed contents; its counts and checksums are made to fit."""
    about, beside = json.loads(source.read_text()), source.with_suffix(".safetensors")
    tensors = load_file(beside) if beside.exists() else {}
    edit(about, tensors)
    if tensors:
        save_file(tensors, target / beside.name)
        about.pop("sha256", None)
        about.pop("n_tensors", None)
    path = target / source.name
    path.write_text(json.dumps(about))
    return path


def verdicts(rows: list[GroupCheck]) -> dict[str, str]:
    return {row.group: row.verdict for row in rows}


def off(rows: list[GroupCheck]) -> set[str]:
    return {row.group for row in rows if row.verdict == "OFF"}
