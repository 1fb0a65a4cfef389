"""What makes a run the run that it is: its configuration without where it writes and how it looks."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Only these sections decide the configuration hash.
HASHED = ("command", "seed_everything", "model", "data", "evaluate", "trainer", "checkpoint")
_NOT_HASHED_TRAINER = (
    "default_root_dir", "logger", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "devices", "num_nodes",
    "accelerator", "strategy", "profiler", "callbacks",
)  # fmt: skip


def config_hash(config: dict[str, Any]) -> str:
    """12 hex digits over what decides the result. Devices do not: the global batch is the same on any number of them."""
    kept = {key: config[key] for key in HASHED if config.get(key) is not None}
    if isinstance(kept.get("trainer"), dict):
        kept["trainer"] = {k: v for k, v in kept["trainer"].items() if k not in _NOT_HASHED_TRAINER}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differing_keys(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Dotted names of the leaves in which two configurations differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names: list[str] = []
        for key in sorted(set(ours) | set(theirs), key=str):
            names += differing_keys(ours.get(key), theirs.get(key), f"{prefix}{key}.")
        return names
    return [] if ours == theirs else [prefix.rstrip(".")]
