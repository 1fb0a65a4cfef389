"""What `crosslight ground` and a report of folders say of the maps of words: shares and the pointing game, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.analysis.stored_maps import Array, By, WordShares
from experiments.report.bootstrap import PerImage, interval

_MEASURES = (
    ("inside", "in the boxes"),
    ("area", "the boxes' area"),
    ("elsewhere", "other words' maps there"),
    ("pointed", "pointing game"),
    ("pointed_even", "of a random place"),
)


@dataclass(frozen=True)
class Share:
    """A measure in percent: its mean over words, and the 95 % interval with images resampled.

    Args:
        name: Of the measure.
        label: In words.
        mean: Of all words.
        low: Of the interval.
        high: Of the interval.
    """

    name: str
    label: str
    mean: float
    low: float
    high: float


def by_image(values_W: Array, image_W: Array, factor: float) -> PerImage:
    """Values of words, taken apart by their images."""
    count_I = np.bincount(image_W).astype(np.float64)
    total_I = np.bincount(image_W, values_W, len(count_I)).astype(np.float64)
    return PerImage(total_I[count_I > 0, None], count_I[count_I > 0, None], factor)


def measured(shares: WordShares) -> list[Share]:
    """All measures that a file has."""
    found = []
    for name, label in _MEASURES:
        if (values_W := getattr(shares, f"{name}_W")) is not None:
            of_images = by_image(values_W, shares.image_W, 100.0)
            found.append(Share(name, label, of_images.value(), *interval(of_images.resamples())))
    return found


def lines(shares: WordShares, by: By) -> list[str]:
    """A table for a terminal."""
    words, images = len(shares.image_W), len(set(shares.image_W.tolist()))
    head = f"{words:,} words of reference captions that name a thing with boxes, {images:,} images; maps by {by}: {shares.shown}"
    return [
        head,
        "percent, and the 95 % interval over images",
        *(f"  {each.label:24}{each.mean:6.1f}  ({each.low:.1f} to {each.high:.1f})" for each in measured(shares)),
    ]
