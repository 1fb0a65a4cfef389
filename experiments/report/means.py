"""The mean of several differences (a gain averaged over rows and data sets), and how it varies with the images and the seeds.

Test sets of different data are resampled independently of each other, rows that were tested on the same one together; seeds are
resampled together for all rows. A printed number of a system that is not run here is taken as exact.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.papers.schema import Gain
from experiments.report.bootstrap import RESAMPLES, Floats, seed_weights
from experiments.report.collect import Cell, View


@dataclass(frozen=True)
class MeanGain:
    """A `Gain` as it was measured.

    Args:
        by_seed: Of each seed.
        resamples: [B] of it, over images and seeds; None where not every value is a mean over images.
    """

    by_seed: dict[int, float]
    resamples: Floats | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed.values())


def common_seeds(cells: Sequence[Cell]) -> list[int]:
    """Seeds that all cells have; what knows no seed has them all."""
    of_cells = [{each.seed for each in cell.measured} for cell in cells if not cell.seedless]
    return sorted(set.intersection(*of_cells)) if of_cells else [cells[0].measured[0].seed]


def with_seeds(cell: Cell, seeds: Sequence[int]) -> Cell:
    """A cell with these seeds alone."""
    return cell if cell.seedless else replace(cell, measured=tuple(each for each in cell.measured if each.seed in seeds))


def mean_gain(view: View, gain: Gain, seeds: Sequence[int], data: Sequence[str | None]) -> MeanGain:
    """A gain of these seeds.

    Args:
        view: Where its cells are.
        gain: The gain.
        seeds: From `common_seeds`.
        data: Fingerprints of all test sets, in one order for everything that is compared.
    """
    sides = [
        [with_seeds(view.cell(row, column), seeds) for row in rows for column in gain.columns] for rows in (gain.of, gain.over)
    ]
    of, over = ({seed: statistics.fmean(_value(cell, seed) for cell in side) for seed in seeds} for side in sides)
    by_seed = {seed: of[seed] - over[seed] for seed in seeds}
    if any(cell.by_image is None and not cell.quoted for side in sides for cell in side):
        return MeanGain(by_seed, None)
    drawn = [np.mean([resamples(cell, _shift(cell, data)) for cell in side], axis=0) for side in sides]
    return MeanGain(by_seed, drawn[0] - drawn[1])


def fingerprints(cells: Sequence[Cell]) -> list[str | None]:
    """Of all test sets, each once."""
    return list(dict.fromkeys(each.fingerprint for cell in cells if not cell.quoted for each in cell.measured))


def resamples(cell: Cell, shift: int = 0) -> Floats:
    """[B] means over resampled seeds on resampled images. Cells of one shift draw the same images; others draw independently."""
    if cell.quoted:
        return np.full(RESAMPLES, cell.measured[0].value)
    measured = sorted(cell.measured, key=lambda each: each.seed)  # the rows of a pair draw the same seeds
    of_seeds_BS = np.stack([each.by_image.resamples() for each in measured if each.by_image is not None], 1)
    return (np.roll(of_seeds_BS, shift, axis=0) * seed_weights(len(measured))).sum(1)


def _shift(cell: Cell, data: Sequence[str | None]) -> int:
    return 0 if cell.quoted else data.index(cell.measured[0].fingerprint)


def _value(cell: Cell, seed: int) -> float:
    return next(each.value for each in cell.measured if cell.seedless or each.seed == seed)
