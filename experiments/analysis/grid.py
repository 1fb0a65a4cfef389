"""Where a visual token is in the image, and how much of a map lies in a box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.loading.images import covered_area as covered_area  # beside what it is for
from datamodules.records import Box
from lightning_modules.networks.captioner import Captioner


@dataclass(frozen=True)
class Grid:
    """Visual tokens of an image: `special` ones first, then rows x columns of patches, row by row."""

    rows: int
    columns: int
    special: int = 0


def find_grid(network: Captioner) -> Grid:
    """How the visual tokens of a captioner lie in the image. Runs the vision tower once, on a plain image.

    Raises:
        InputError: The captioner sees one vector of an image, or the patches are no square.
    """
    if network.visual == "pooled":
        raise InputError(
            "attention maps: this captioner sees one vector of an image (visual: pooled), so there are no places to attend to. "
            "`crosslight ground RUN --by gradient` measures what its words depend on."
        )
    grid = tower_grid(network)
    return grid if network.visual == "tokens" else Grid(grid.rows, grid.columns)


@torch.no_grad()
def tower_grid(network: Captioner) -> Grid:
    """How the tokens of a captioner's vision tower lie in the image, whatever of them the captioner sees.

    Raises:
        InputError: The patches are no square.
    """
    size, weight = network.vision.image_input.size, next(network.vision.parameters())
    tokens_1VD, special = network.vision.tokens(torch.zeros(1, 3, size, size, dtype=weight.dtype, device=weight.device))
    patches = tokens_1VD.shape[1] - special
    side = math.isqrt(patches)
    if not patches or side * side != patches:
        raise InputError(
            f"attention maps: the vision tower gives {patches} patches of a square image, which are not as many rows as columns; "
            "how they lie in the image is unknown"
        )
    return Grid(side, side, special)


@dataclass(frozen=True)
class Share:
    """Of the attention to patches and of the area that they cover: the part inside of a box, both 0 to 1."""

    attention: float
    area: float

    @property
    def times(self) -> float:
        """How much more the box gets than it would of attention that is even over the image: 1 = no better. nan where nothing of
        the box is covered, or the patches got no attention at all."""
        return self.attention / self.area if self.area else math.nan


def share_in_box(map_YX: NDArray[Any], boxes: Box | Sequence[Box], covered: Box) -> Share:
    """Share of a map inside a box, or inside the union of several, by exact overlap of the grid's cells with it.

    Attention is even inside a cell. Both shares are of what the grid covers: what of a box lies outside counts nowhere, nor does
    attention to special tokens.

    Args:
        map_YX: Attention to the patches.
        boxes: In pixels of the image.
        covered: The part of the image under the grid (`covered_area`).
    """
    part_YX = part_in_boxes([boxes] if isinstance(boxes, Box) else boxes, covered, *map_YX.shape)
    total = float(map_YX.sum(dtype=np.float64))
    attention = float((map_YX * part_YX).sum(dtype=np.float64))
    return Share(attention / total if total else math.nan, float(part_YX.mean()))


def part_in_boxes(boxes: Sequence[Box], covered: Box, rows: int, columns: int) -> NDArray[np.float64]:
    """[Y, X]: the part of each cell of a grid inside the union of boxes, 0 to 1.

    Args:
        boxes: In pixels of the image.
        covered: The part of the image under the grid (`covered_area`).
        rows: Of the grid.
        columns: Likewise.
    """
    # Cut the plane at every edge of a cell or box: then each piece is wholly inside or outside of each.
    cells_y, cells_x = (
        np.linspace(covered.top, covered.bottom, rows + 1),
        np.linspace(covered.left, covered.right, columns + 1),
    )
    y = np.unique(np.clip([*cells_y, *(at for box in boxes for at in (box.top, box.bottom))], covered.top, covered.bottom))
    x = np.unique(np.clip([*cells_x, *(at for box in boxes for at in (box.left, box.right))], covered.left, covered.right))
    middle_y, middle_x = (y[1:] + y[:-1]) / 2, (x[1:] + x[:-1]) / 2
    inside = np.zeros((len(middle_y), len(middle_x)), bool)
    for box in boxes:
        inside |= np.outer((middle_y > box.top) & (middle_y < box.bottom), (middle_x > box.left) & (middle_x < box.right))
    area = np.outer(np.diff(y), np.diff(x)) * inside
    inside_YX = np.zeros((rows, columns))
    np.add.at(inside_YX, np.ix_(np.searchsorted(cells_y, middle_y) - 1, np.searchsorted(cells_x, middle_x) - 1), area)
    return inside_YX * rows * columns / ((covered.right - covered.left) * (covered.bottom - covered.top))
