"""A resolved configuration, for tests of what makes a run the run that it is."""

from __future__ import annotations

import json
from typing import Any

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "name": "mwa",
    "model": {"class_path": "a.Model", "init_args": {"optimization": {"lr": 1e-3}, "adapter": None}},
    "data": {"class_path": "a.Data", "init_args": {"batch_size": 64}},
    "trainer": {"max_epochs": 2, "devices": 1, "logger": None, "precision": "bf16-mixed"},
    "wandb": {"enabled": True},
}


def changed(**leaves: Any) -> dict[str, Any]:
    """CONFIG with leaves replaced: `changed(trainer__devices=2)`."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in leaves.items():
        *path, last = name.split("__")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    return config
