"""What a SIGKILL would leave of a run folder at every moment of a run: copies of it, made while the run goes on undisturbed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch.trainer.call as hooks
import pytest


@contextmanager
def snapshots(folder: Path, copies: Path) -> Iterator[dict[str, Path]]:
    """Copies of `folder` before and after every hook of the callbacks, and before and after every file that is put in place, by
    the first moment at which its content was so. A moment that changes nothing gives no further copy."""
    taken: dict[str, Path] = {}
    seen: set[str] = set()
    call_hooks, replace = hooks._call_callback_hooks, os.replace

    def take(moment: str) -> None:
        if not folder.exists() or (content := _digest(folder)) in seen:
            return
        seen.add(content)
        copy = copies / f"{len(taken):03d}"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".lock"))
        taken[f"{len(taken):03d} {moment}"] = copy

    def call_and_take(trainer: Any, hook: str, *arguments: Any, **options: Any) -> Any:
        take(f"before {hook}")
        result = call_hooks(trainer, hook, *arguments, **options)
        take(f"after {hook}")
        return result

    def replace_and_take(part: Any, path: Any) -> None:
        take(f"before {Path(path).name} is put in place")
        replace(part, path)
        take(f"after {Path(path).name} is put in place")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "_call_callback_hooks", call_and_take)
        patch.setattr(os, "replace", replace_and_take)
        yield taken


def _digest(folder: Path) -> str:
    content = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"):
        content.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        content.update(path.read_bytes())
    return content.hexdigest()
