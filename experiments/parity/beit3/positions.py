"""Kind `position-interpolation`: the image position table for another resolution (`load_model_and_may_interpolate`)."""

from __future__ import annotations

import torch

from datamodules.errors import InputError
from experiments.parity.compare import EQUAL, OUTPUT, GroupCheck, compare, not_checked
from experiments.parity.recordings import Recording
from lightning_modules.checkpoints.beit3 import interpolate_positions
from lightning_modules.networks.beit3 import UNUSED_POSITIONS


def check(recording: Recording) -> list[GroupCheck]:
    """Every recorded case; one whose grid does not change must stay as it is, bit by bit.

    Raises:
        InputError: A case lacks a table or a grid.
    """
    rows = []
    for number, case in enumerate(recording.value("cases")):
        if lacking := [key for key in ("grid_in", "grid_out", "input", "output") if key not in case]:
            raise InputError(f"{recording.path}: cases[{number}] has no {', '.join(lacking)}")
        old, new = case["grid_in"], case["grid_out"]
        group = f"{old}x{old} to {new}x{new}"
        if case.get("n_extra_rows", UNUSED_POSITIONS + 1) != UNUSED_POSITIONS + 1:
            rows.append(not_checked(group, f"{case['n_extra_rows']} extra rows; ours has two unused ones and the class token"))
            continue
        table, recorded = (torch.tensor(case[key], dtype=torch.float32) for key in ("input", "output"))
        if len(table) != old * old + UNUSED_POSITIONS + 1:
            raise InputError(f"{recording.path}: cases[{number}].input has {len(table)} rows, not those of a {old}x{old} grid")
        found = {"output": interpolate_positions(table, new)}
        rows.append(compare(group, found, {"output": recorded}, EQUAL if old == new else OUTPUT))
    return rows or [not_checked("cases", "the file records none")]
