"""Rows of all processes, in the split's order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from datamodules.errors import InputError
from lightning_modules import collectives

_GATHERED_DTYPES = (torch.float32, torch.float64, torch.int64, torch.float16, torch.bfloat16)


def gather_rows(rows: Tensor, group: Any = None) -> list[Tensor]:
    """All processes' `rows` [N_r] or [N_r, D], in the order of ranks, the number of rows differing and possibly 0.

    torchmetrics' own gather fails where a process saw no data: its placeholder is float32 of one dimension, the others'
    tensors are not. Here a process without rows learns type and width from those that have some.

    Args:
        rows: Of this process.
        group: None: torchmetrics names one, and there is one.

    Raises:
        InputError: Processes whose rows differ in width or type (raised in all of them).
    """
    wide = rows.ndim == 2
    mine = (len(rows), rows.shape[1] if wide else -1, _GATHERED_DTYPES.index(rows.dtype))
    header = torch.tensor(mine, device=rows.device)
    counts, layouts = [], set()
    for count, *layout in (entry.tolist() for entry in collectives.gathered(header)):
        counts.append(count)
        if count:
            layouts.add(tuple(layout))
    if len(layouts) > 1:
        raise InputError(f"processes disagree on embedding width or type: {sorted(layouts)} (width, type)")
    if not layouts:
        return [rows] * len(counts)
    width, dtype = layouts.pop()
    padded = torch.zeros((max(counts),) if width < 0 else (max(counts), width), dtype=_GATHERED_DTYPES[dtype], device=rows.device)
    if len(rows):
        padded[: len(rows)] = rows
    return [part[:count] for part, count in zip(collectives.gathered(padded), counts, strict=True)]


def gather_values(values: Tensor, group: Any = None) -> list[Tensor]:
    """All processes' tensors of one shape, for metrics that add them up; `group` as for `gather_rows`."""
    return collectives.gathered(values)


def joined(state: list[Tensor] | Tensor) -> Tensor:
    """A state as one tensor: a list before synchronisation, a tensor after it."""
    return dim_zero_cat(state) if len(state) else torch.empty(0, dtype=torch.int64)


def split_order(index: Tensor, expected: int | None, what: str) -> Tensor:
    """The permutation that puts rows into the order of the split; refuses repeats and holes."""
    count = len(index) if expected is None else expected
    seen = torch.bincount(index.clamp_min(0), minlength=count)
    remedy = "every process must evaluate its own slice, nothing padded, repeated or dropped (check the sampler)"
    if bool((index < 0).any()) or len(seen) > count:
        wrong = int(index.min()) if bool((index < 0).any()) else int(index.max())
        raise InputError(
            f"{what} row {wrong} is outside 0..{count - 1}: "
            + (f"{len(index)} were evaluated, so rows are missing; {remedy}" if expected is None else f"{expected} were expected")
        )
    if bool((seen != 1).any()):
        holes, repeats = (seen == 0).nonzero().flatten().tolist(), (seen > 1).nonzero().flatten().tolist()
        said = [
            f"{len(rows)} {verb} (first: {', '.join(map(str, rows[:5]))})"
            for verb, rows in (("missing", holes), ("there more than once", repeats))
            if rows
        ]
        raise InputError(f"of {count} {what} rows {' and '.join(said)}: {remedy}")
    return torch.argsort(index)
