"""Sweep files of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from experiments.sweep.sweep_file import Sweep, read_sweep

LR = "model.init_args.optimization.lr"


BAYES = {"method": "bayes", "metric": {"name": "val/rsum", "goal": "maximize"}, "parameters": {"x": {"min": 0.0, "max": 1.0}}}


def sweep_of(folder: Path, **content: Any) -> Sweep:
    """A sweep of parameters, a grid unless said otherwise."""
    file = folder / "lr.yaml"
    file.write_text(yaml.safe_dump({"method": "grid", "command": ["crosslight", "run", "${args}"], **content}))
    return read_sweep(file)
