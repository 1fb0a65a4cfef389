"""What a run folder's results.json says of its checkpoints. `experiments.runs.results` reads and writes the whole of it."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from datamodules.errors import InputError, shown
from datamodules.files.json_file import DECODER, why
from datamodules.files.stand_in import mark_of, said
from datamodules.files.text import read_text
from datamodules.formats.problems import is_sound
from datamodules.formats.typed import read_typed

RESULTS_SCHEMA = "crosslight.results/2"
# NaN is a metric's value too, of a model that says nothing.
_DECODER = json.JSONDecoder(object_pairs_hook=DECODER.object_pairs_hook)


@dataclass(frozen=True)
class Fit:
    """How a training ended.

    Args:
        steps: Of the optimizer.
        epochs: Complete ones.
        monitor: Validation metric that chose the best checkpoint.
        best_value: Its value.
        best_checkpoint: Path in the run folder.
        skipped: Why there was no training; None where there was.
    """

    steps: int
    epochs: int
    monitor: str | None = None
    best_value: float | None = None
    best_checkpoint: str | None = None
    skipped: str | None = None


def results_content(folder: Path) -> dict[str, Any]:
    """results.json of a run folder, its version checked.

    Raises:
        InputError: No such file, not JSON, no mapping, or a schema that this version does not read.
    """
    file = folder / "results.json"
    if not os.path.lexists(file):
        raise InputError(f"{file} does not exist: {folder} is not a run folder.")
    return record_content(file, "the results of a run", RESULTS_SCHEMA)


def record_content(file: Path, what: str, schema: str) -> dict[str, Any]:
    """A JSON record of a run folder that holds metrics, its version checked.

    Args:
        file: The file.
        what: It is, for errors.
        schema: That this version reads.

    Raises:
        InputError: It cannot be read, is not JSON, no mapping, or of another schema.
    """
    try:
        content = _DECODER.decode(read_text(file, what))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({why(error)}). Restore or delete it.") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is not {what}: it holds no mapping. Restore or delete it.")
    if (found := content.get("schema")) != schema:
        raise InputError(
            f"{file} has schema {found!r}; this version reads {schema!r}: it was written with other names, so run it "
            "again, or read it with the version that wrote it."
        )
    return content


def require_inside(name: str, where: str) -> None:
    """Refuse a file of a run that is named outside of the run's folder: a folder that was copied may hold anything.

    Raises:
        InputError: It is.
    """
    path = PurePath(name)
    longest = max(map(len, map(os.fsencode, path.parts)), default=0) if is_sound(name) else math.inf
    if path.is_absolute() or ".." in path.parts or "\0" in name or longest > 255:
        raise InputError(f"{where} is {shown(name)}, which is no file of this folder.")


def no_result(folder: Path) -> str | None:
    """Why nothing that is made of a run folder or an export is a result, in words (stand-ins, a rehearsal); None where it may be.

    Raises:
        InputError: results.json cannot be read.
    """
    if (mark := mark_of(folder)) is not None:
        return said(mark)
    if not os.path.lexists(folder / "results.json"):
        return None
    origin = results_content(folder).get("provenance")
    marks = [name for name in ("rehearsal", "stand_in") if isinstance(origin, dict) and origin.get(name)]
    return f"its provenance says {marks[0]}: none of its numbers is a result" if marks else None


def fit_of(folder: Path) -> Fit | None:
    """How the run of a folder was trained; None where its results do not say or are not there.

    Raises:
        InputError: results.json cannot be read.
    """
    if not os.path.lexists(folder / "results.json"):
        return None
    fit: Fit | None = read_typed(Fit | None, results_content(folder).get("fit"), f"{folder / 'results.json'}: fit")
    return fit


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that validation chose; None where the run kept none.

    Raises:
        InputError: results.json cannot be read, or names a file outside of the folder.
    """
    fit = fit_of(folder)
    named = None if fit is None else fit.best_checkpoint
    if named is not None:
        require_inside(named, f"{folder / 'results.json'}: fit: best_checkpoint")
    candidates = (folder / named if named else None, folder / "checkpoints" / "best.ckpt")
    return next((file for file in candidates if file is not None and file.exists()), None)
