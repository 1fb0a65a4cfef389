"""Where words look, in numbers: what an exhibit's table cannot say, from the shares of attention that its runs have stored."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from experiments.analysis.stored_maps import stored_shares
from experiments.report.bootstrap import interval
from experiments.report.verdicts import paired_resamples

if TYPE_CHECKING:
    from experiments.report.collect import View


@dataclass(frozen=True)
class Look:
    """Of a row's words that name a thing; means over seeds.

    Args:
        label: Of the row.
        times: Attention inside of the boxes over their part of the image: 1 is no better than even.
        band: Its 95 % interval over images, where there is one.
        by_layer: The part of attention inside of the boxes (0 to 1) by layer, 0-based.
        patches: Over how many patches the least spread map is spread.
        peak: Part of the maps that have their peak on the patch where most have it: 1 is collapse onto one patch.
        words: How many, over all seeds.
        shown: Patches, heads and position in words.
    """

    label: str
    times: float
    band: tuple[float, float] | None
    by_layer: dict[int, float]
    patches: float
    peak: float
    words: int
    shown: str


def looks(view: View) -> list[Look]:
    """Of the rows whose shares have been measured; none where the exhibit has no columns of them."""
    columns = {column.attention: column.name for column in view.exhibit.columns if column.attention}
    found = []
    for variant in view.variants if {"inside", "area"} <= columns.keys() else ():
        inside, area = (variant.cells[columns[name]] for name in ("inside", "area"))
        folders = {run.folder for runs in variant.runs.values() for run in runs if run.status == "finished" and run.folder}
        of_seeds = [shares for folder in sorted(folders) if (shares := stored_shares(folder)) is not None]
        if inside.mean is None or not area.mean or not of_seeds:
            continue
        resampled = paired_resamples(inside, area)
        found.append(
            Look(
                label=variant.label,
                times=inside.mean / area.mean,
                band=None if resampled is None else interval(resampled[0] / resampled[1]),
                by_layer={
                    int(layer): statistics.fmean(float(shares.inside_LW[at].mean()) for shares in of_seeds)
                    for at, layer in enumerate(of_seeds[0].layers_L)
                },
                patches=min(float(shares.patches_W.min()) for shares in of_seeds),
                peak=statistics.fmean(float(np.bincount(shares.peak_W).max()) / len(shares.peak_W) for shares in of_seeds),
                words=sum(len(shares.peak_W) for shares in of_seeds),
                shown=of_seeds[0].shown,
            )
        )
    return found
