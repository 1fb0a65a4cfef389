"""results.json of a run folder: what it holds, written and read in one place."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datamodules.errors import InputError

SCHEMA = "crosslight.results/1"

# What a run is, as opposed to where it writes and how it looks: only these sections decide the configuration hash.
HASHED = ("command", "seed_everything", "model", "data", "evaluate", "trainer", "checkpoint")
_NOT_HASHED_TRAINER = (
    "default_root_dir", "logger", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "devices", "num_nodes",
    "accelerator", "strategy", "profiler", "callbacks",
)  # fmt: skip
_TIMED = ("config.yaml", "results.json", "metrics.csv", "checkpoints/last.ckpt")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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


def seconds_of_attempt(folder: Path) -> float:
    """Of an attempt that could not say so itself: from its config.yaml, which it wrote first, to the last of its results, metrics
    and checkpoints. 0 without a config.yaml."""
    times = {name: (folder / name).stat().st_mtime for name in _TIMED if (folder / name).exists()}
    if "config.yaml" not in times:
        return 0.0
    return max(times.values()) - times["config.yaml"]


def read_results(folder: str | Path) -> dict[str, Any]:
    """`results.json` of a run folder.

    Raises:
        InputError: No such file, not JSON, no mapping, a schema that this version does not read, or no status.
    """
    file = Path(folder) / "results.json"
    try:
        results = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"{file} does not exist: {folder} is not a run folder.") from None
    except ValueError as error:  # of JSON, or of UTF-8
        raise InputError(f"{file} is not JSON ({error}). Restore or delete it.") from None
    if not isinstance(results, dict):
        raise InputError(f"{file} is not the results of a run: it holds no mapping. Restore or delete it.")
    if results.get("schema") != SCHEMA:
        raise InputError(f"{file} has schema {results.get('schema')!r}; this version reads {SCHEMA!r}.")
    if not isinstance(results.get("status"), str):
        raise InputError(f"{file} has no status. Restore or delete it.")
    return results
