"""What the variants of an exhibit write about the same images."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.report.collect import View
from experiments.runs.beside import Beside, read_beside
from experiments.runs.store import Run

SHOWN_IMAGES = 4  # Table 3 of I-Tuning shows the first four of the test split


@dataclass(frozen=True)
class Caption:
    """What the variants write about one image.

    Args:
        image_id: Of the data set.
        thumbnail: A data URI; None where the photograph is not on this machine.
        captions: Variant label, caption, and CIDEr of it in points, where it was scored.
        references: What people wrote.
    """

    image_id: str
    thumbnail: str | None
    captions: tuple[tuple[str, str, float | None], ...]
    references: tuple[str, ...]


def captions(view: View) -> list[Caption]:
    """The first images of the test split with what every variant's first finished run wrote about them."""
    if view.exhibit.figure is None or view.exhibit.figure.kind != "captions":
        return []
    found: dict[str, dict[str, Any]] = {}
    written: dict[str, list[tuple[str, str, float | None]]] = {}
    for variant in view.variants:
        run = next((run for runs in variant.runs.values() for run in runs if run.status == "finished"), None)
        for entry in _beside(run)[:SHOWN_IMAGES] if run is not None else []:
            if found.get(entry.image_id, {}).get("thumbnail") is None:
                found[entry.image_id] = {"thumbnail": thumbnail(entry.file), "references": entry.references}
            score = entry.scores.get("cider")
            points = None if score is None else 100 * score
            written.setdefault(entry.image_id, []).append((variant.label, entry.caption, points))
    return [Caption(name, each["thumbnail"], tuple(written[name]), each["references"]) for name, each in found.items()]


def _beside(run: Run) -> list[Beside]:
    evaluation = run.evaluation(None)
    return [] if run.folder is None or evaluation is None else read_beside(run.folder, evaluation.data)


def thumbnail(file: str | Path | None, side: int = 360) -> str | None:
    """An image file as a data URI, no side longer than that (pixels); None where there is no such file, or it cannot be read."""
    if not file:
        return None
    from datamodules.files.images import read_image  # most exhibits show none

    try:
        small = read_image(Path(file))
    except InputError:  # a report shows captions also without their pictures
        return None
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
