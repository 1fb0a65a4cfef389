"""What makes a run the run that it is: what of its configuration decides its result, and not where it runs or what watches it."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import PurePath
from typing import Any

from datamodules.errors import InputError
from datamodules.files.references import look_up

# The sections that decide.
DECIDING = ("command", "seed_everything", "model", "data", "evaluate", "trainer", "checkpoint")
# Of the trainer: where it computes (the global batch is the same on any number of devices), what it shows and what it writes.
_TRAINER = {
    "default_root_dir", "logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "log_every_n_steps",
    "devices", "num_nodes", "accelerator", "strategy", "profiler", "num_sanity_val_steps", "detect_anomaly",
}  # fmt: skip
# Of data and models, wherever they stand: how fast and in what memory they do the same, and where a data set lies. What is in a
# data set its fingerprint says, which a resumed run compares.
_ANYWHERE = {
    "root", "num_workers", "eval_batch_size", "cache_pixels", "gradient_cache_chunk", "checkpoint_activations", "compile",
}  # fmt: skip
# Callbacks that watch or write.
_WATCHING = {
    "RichProgressBar", "TQDMProgressBar", "ProgressBar", "ModelSummary", "RichModelSummary", "DeviceStatsMonitor",
    "LearningRateMonitor", "ThroughputMonitor", "ModelCheckpoint", "OnExceptionCheckpoint", "CostMonitor",
}  # fmt: skip
_CHECKPOINT = {"every_n_steps"}
_FILES_OF_A_RUN = {"checkpoints", "best.ckpt", "last.ckpt"}
SEED_AND_KEY = re.compile(r"-s(\d+)-([0-9a-f]{8})(?=$|/)")
"""How the folder name of a planned run ends (`PlannedRun.folder_name`)."""


def deciding(config: dict[str, Any]) -> dict[str, Any]:
    """What of a resolved configuration decides the result, without what is not set.

    Files and folders that are named by an absolute path count by their name: they may be moved.
    """
    kept = {key: config[key] for key in DECIDING if config.get(key) is not None}
    for section in ("model", "data", "evaluate"):
        if section in kept:
            kept[section] = _without(kept[section], _ANYWHERE)
    if isinstance(kept.get("checkpoint"), dict):
        kept["checkpoint"] = _without(kept["checkpoint"], _CHECKPOINT)
        if not kept["checkpoint"]:
            del kept["checkpoint"]
    if isinstance(trainer := kept.get("trainer"), dict):
        kept["trainer"] = {key: value for key, value in trainer.items() if key not in _TRAINER}
        if callbacks := [one for one in listed(trainer.get("callbacks")) if not _watches(one)]:
            kept["trainer"]["callbacks"] = callbacks
        else:
            kept["trainer"].pop("callbacks", None)
    placed: dict[str, Any] = _placed(kept)
    return placed


def config_hash(config: dict[str, Any]) -> str:
    """12 hex digits over what decides the result."""
    text = json.dumps(deciding(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def without_seed(config: dict[str, Any]) -> dict[str, Any]:
    """What decides the result but the run's and the data's seeds: runs that are alike in this are seeds of one configuration."""
    kept = deciding(config)
    kept.pop("seed_everything", None)
    for section in ("data", "evaluate"):
        if section in kept:
            kept[section] = _without(kept[section], {"seed"})
    if isinstance(kept.get("model"), dict):
        kept["model"] = _unseeded(kept["model"])
    return kept


def differing_keys(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Dotted names of the leaves in which two configurations differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names: list[str] = []
        for key in sorted(set(ours) | set(theirs), key=str):
            names += differing_keys(ours.get(key), theirs.get(key), f"{prefix}{key}.")
        return names
    one_kind = isinstance(ours, float) == isinstance(theirs, float)  # 1 is one batch to Lightning, and 1.0 all of them
    return [] if ours == theirs and one_kind else [prefix.rstrip(".")]


def without_new_options(config: Any, stored: Any) -> Any:
    """A configuration without the options that a stored one has no word of and that are at their defaults here: those of a later
    version, which a run of an earlier one is not another run for."""
    if isinstance(config, list) and isinstance(stored, list) and len(config) == len(stored):
        return [without_new_options(ours, theirs) for ours, theirs in zip(config, stored, strict=True)]
    if not isinstance(config, dict) or not isinstance(stored, dict):
        return config
    kept = {key: without_new_options(value, stored.get(key)) for key, value in config.items()}
    ours, theirs = kept.get("init_args"), stored.get("init_args")
    if isinstance(ours, dict) and isinstance(theirs, dict) and kept.get("class_path") == stored.get("class_path"):
        new = {key: value for key, value in ours.items() if key not in theirs}
        if new:
            defaults = _defaults(str(kept["class_path"]))
            at_default = {key for key, value in new.items() if key in defaults and _plain(value) == _plain(defaults[key])}
            kept["init_args"] = {key: value for key, value in ours.items() if key not in at_default}
    return kept


def _defaults(class_path: str) -> dict[str, Any]:
    """Of a class's constructor, and of those that it hands options on to; nothing where it cannot be imported."""
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return {}
    found: dict[str, Any] = {}
    for one in reversed(kind.__mro__[:-1]):
        if "__init__" in vars(one):
            parameters = inspect.signature(one.__init__).parameters.values()
            found |= {each.name: each.default for each in parameters if each.default is not each.empty}
    return found


def _plain(value: Any) -> Any:
    """As a file of configurations has it."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    return json.loads(json.dumps(value, default=str))


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, names) for key, inner in value.items() if key not in names}
    return [_without(inner, names) for inner in value] if isinstance(value, list) else value


def _placed(value: Any) -> Any:
    """With absolute paths as names."""
    if isinstance(value, dict):
        return {key: _placed(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_placed(inner) for inner in value]
    if isinstance(value, float) and value.is_integer() and value != 1.0:
        return int(value)  # one number; but 1 is one batch to Lightning, and 1.0 all of them
    if isinstance(value, str):
        with suppress(InputError):  # not set here, where the run is only looked at
            value = look_up(value)  # what a file keeps as a reference decides by its value
    return _name_of(value) if isinstance(value, str) and value.startswith("/") else value


def _name_of(path: str) -> str:
    """The last part of a path; of a file in a run folder with the folder's, since all runs have a best.ckpt."""
    parts = PurePath(path).parts
    first = len(parts) - 1
    while first > 1 and parts[first] in _FILES_OF_A_RUN:
        first -= 1
    return "/".join(parts[first:])


def _unseeded(value: Any) -> Any:
    """With the seed and key of parents' folders taken out: each seed starts from a parent of its own."""
    if isinstance(value, dict):
        return {key: _unseeded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unseeded(inner) for inner in value]
    return SEED_AND_KEY.sub("", value) if isinstance(value, str) else value


def listed(callbacks: Any) -> list[Any]:
    """The trainer's callbacks, which may be one, or null."""
    return callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]


def _watches(callback: Any) -> bool:
    named = str(callback.get("class_path", "")) if isinstance(callback, dict) else str(callback)
    ours = named.startswith(("lightning.", "lightning_modules.")) or "." not in named
    return ours and named.rpartition(".")[2] in _WATCHING
