"""Values that no run can have, refused on the parsed command line: before a seed is set, a folder is made or anything is built.

Types are jsonargparse's to check, and most values are Lightning's (`lightning_cli` asks its Trainer early). Here is what neither
refuses, or what is refused hours later.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from datamodules.errors import InputError
from datamodules.workers import most_workers
from experiments.training.typed_values import mistyped
from experiments.training.untyped import unsaid

_TRAINS = ("run", "fit")
_WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
_SEEDS = 2**32


def require_values(command: str, config: Mapping[str, Any]) -> None:
    """Refuse values that are out of range or contradict each other.

    Args:
        command: The sub-command.
        config: Its options as plain values (what config.yaml will hold, with run_dir).

    Raises:
        InputError: The first of them, with what to give.
    """
    problem = next(_problems(command, config), None)
    if problem is not None:
        raise InputError(problem)


def _problems(command: str, config: Mapping[str, Any]) -> Iterator[str]:
    yield from _names(config)
    yield from _nulls(config)
    yield from unsaid(config)
    seed = config.get("seed_everything")
    if isinstance(seed, bool) or seed is None or not 0 <= seed < _SEEDS:
        yield f"seed_everything is {_shown(seed)}: give a number from 0 to {_SEEDS - 1}, so that the run can be repeated."
    trainer = config.get("trainer") or {}
    for name, value in trainer.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"trainer.{name} is {value}: give a finite number."
    yield from _always(trainer)
    if command in _TRAINS:
        yield from _training(trainer)
        every = (config.get("checkpoint") or {}).get("every_n_steps")
        if every is not None and every < 1:
            yield f"checkpoint.every_n_steps is {every}: give at least 1, or null for a checkpoint at each validation."
    evaluate, cores = config.get("evaluate") or {}, os.cpu_count() or 1
    for option, section in (("data", config.get("data")), *((f"evaluate.{name}", given) for name, given in evaluate.items())):
        workers, most = ((section or {}).get("init_args") or {}).get("num_workers"), most_workers()
        if isinstance(workers, int) and workers > most:
            yield f"{option}.init_args.num_workers is {workers}, but this machine has {cores} cores: give at most {most}."
    if odd := next((name for name in evaluate if not re.fullmatch(r"\w[\w.-]{0,99}", name)), None):
        yield f"evaluate has {odd!r}, which is to name files of the run: give up to 100 letters, digits, _, - and dots."
    yield from _wandb(config.get("wandb") or {}, os.environ.get("WANDB_MODE"))


def _nulls(config: Mapping[str, Any]) -> Iterator[str]:
    """Options that must have a value: jsonargparse lets the null of a file pass, whatever the type. Without a monitor the last
    checkpoint would be taken for the best."""
    needed = {
        "": ("name",), "checkpoint": ("monitor", "mode"), "wandb": ("enabled", "project", "tags"),
        "trainer": ("max_steps",), "model.init_args": ("tuning", "train_heads", "optimization", "eval_frozen"),
        "data.init_args": ("root", "batch_size", "eval_batch_size", "num_workers", "train_unit", "augment"),
    }  # fmt: skip
    for section, names in needed.items():
        held: Any = config
        for part in section.split(".") if section else ():
            held = held.get(part) or {}
        for name in names:
            if name in held and held[name] is None:
                yield f"{section}{'.' * bool(section)}{name} is null: give it a value, or leave it out for its default."
    for section in ("model", "data", "evaluate", "trainer"):
        yield from mistyped(config.get(section), section)


def _names(config: Mapping[str, Any]) -> Iterator[str]:
    """Of the run and its folder: what a file system, YAML or W&B cannot hold."""
    for key in ("name", "run_dir"):
        text = config.get(key)
        if text is None:
            continue
        if len(text.encode(errors="replace")) > 200 and key == "name":
            yield f"--name has {len(text)} characters, more than a folder's name can have: give a shorter one."
        if odd := next((character for character in text if unicodedata.category(character) in ("Cc", "Cs")), None):
            yield f"--{key} {text!r} holds the character {odd!r}, which no file name should: leave it out."
        if not text.strip():
            yield f"--{key} is empty: give it a name, or leave the option out."
    name = config.get("name") or ""
    if name.startswith(("/", "~")) or ".." in name.split("/"):
        yield f"--name {name!r} would leave the folder runs/: give a plain name, and the place as --run_dir."


def _always(trainer: Mapping[str, Any]) -> Iterator[str]:
    if trainer.get("barebones"):
        yield "trainer.barebones switches off checkpoints, loggers and progress, which make a run folder: leave it false."
    if trainer.get("enable_checkpointing") is False:
        yield "trainer.enable_checkpointing is false, but a run keeps its best and its last checkpoint: leave it out."
    if trainer.get("default_root_dir") is not None:
        yield "trainer.default_root_dir is settled by the run's folder: give --run_dir instead."
    for name, least in (("accumulate_grad_batches", 1), ("num_nodes", 1), ("log_every_n_steps", 0), ("num_sanity_val_steps", -1),
                        ("gradient_clip_val", 0), ("min_epochs", 0), ("min_steps", 0)):  # fmt: skip
        value = trainer.get(name)
        if isinstance(value, (int, float)) and value < least:
            yield f"trainer.{name} is {value}: give at least {least}."
    devices, cores = trainer.get("devices"), os.cpu_count() or 1
    if trainer.get("accelerator") == "cpu" and str(devices).isdecimal() and int(str(devices)) > max(8, cores):
        yield (
            f"trainer.devices is {devices}, but this machine has {cores} cores, and on a CPU each device is a process: give 1."
        )
    overfit = trainer.get("overfit_batches") or 0
    if overfit > 0:
        yield (
            f"trainer.overfit_batches is {overfit}, but recalls and caption scores are of whole splits. Shorten the split "
            "instead: --data.init_args.limits.train=N --data.init_args.limits.val=N."
        )


def _training(trainer: Mapping[str, Any]) -> Iterator[str]:
    """How long it lasts, and whether a validation can come: the best checkpoint is chosen by one."""
    epochs, steps, time = trainer.get("max_epochs"), trainer.get("max_steps", -1), trainer.get("max_time")
    if epochs == -1 and steps == -1 and time is None:
        yield "trainer.max_epochs is -1 and max_steps too, so the training would never end: give one of them."
    for name, value in (
        ("max_epochs", epochs),
        ("max_steps", steps),
        ("limit_train_batches", trainer.get("limit_train_batches")),
    ):
        if value == 0:
            yield f"trainer.{name} is 0, so nothing would be trained: give more (crosslight test tests a model as it is)."
    for name, most in (("epochs", epochs), ("steps", steps)):
        least = trainer.get(f"min_{name}")
        if least is not None and most is not None and most >= 0 and least > most:
            yield f"trainer.min_{name} is {least}, more than max_{name} ({most}): give it at most that."
    if trainer.get("limit_val_batches") == 0:
        yield "trainer.limit_val_batches is 0, so no validation could choose the best checkpoint: leave it out."
    every = trainer.get("check_val_every_n_epoch")
    if every is not None and every < 1:
        yield f"trainer.check_val_every_n_epoch is {every}: give at least 1 (null counts steps over epochs)."
    if every is not None and epochs is not None and epochs > 0 and every > epochs:
        yield (
            f"trainer.check_val_every_n_epoch is {every} and max_epochs {epochs}, so no validation would come: give at most "
            f"{epochs}."
        )
    interval = trainer.get("val_check_interval")
    if interval is not None and not isinstance(interval, bool) and _nothing(interval):
        yield f"trainer.val_check_interval is {interval}: give a number of batches, or a share of an epoch up to 1.0."
    for name, begin in _late_averages(trainer.get("callbacks")):
        if epochs is not None and 0 < epochs <= begin:
            yield (
                f"trainer.callbacks: {name} would begin at epoch {begin} (from 0), and the training has {epochs}: give "
                "update_starting_at_epoch less than max_epochs."
            )
    if time is not None and _nothing(time):
        yield f"trainer.max_time is {time}, so nothing would be trained: give DD:HH:MM:SS, for example 00:12:00:00."


def _late_averages(callbacks: Any) -> Iterator[tuple[str, int]]:
    """Averages of the weights that begin with an epoch, and that one."""
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        options = callback.get("init_args") if isinstance(callback, Mapping) else None
        if isinstance(options, Mapping) and isinstance(begin := options.get("update_starting_at_epoch"), int):
            yield str(callback.get("class_path")).rpartition(".")[2], begin


def _wandb(wandb: Mapping[str, Any], mode: str | None) -> Iterator[str]:
    if not wandb.get("enabled"):
        return
    if mode is not None and mode not in _WANDB_MODES:
        yield f"the environment variable WANDB_MODE is {mode!r}: set it to {', '.join(_WANDB_MODES[:3])}, or unset it."
    project = wandb.get("project") or ""
    if not project or len(project) > 128 or re.search(r"[/\\#?%:\x00-\x1f]", project):
        yield f"wandb.project is {project!r}: W&B takes 1 to 128 characters without / \\ # ? % :."
    if (group := wandb.get("group")) is not None and not 1 <= len(group) <= 128:
        yield f"wandb.group is {group[:40]!r}: W&B takes 1 to 128 characters."
    for tag in wandb.get("tags") or ():
        if not 1 <= len(tag) <= 64:
            yield f"wandb.tags has {tag[:80]!r}: W&B takes 1 to 64 characters a tag."


def _nothing(length: Any) -> bool:
    """Whether a number or a time (DD:HH:MM:SS, a mapping, a timedelta) is nothing at all. What cannot be read is Lightning's."""
    if isinstance(length, (int, float)):
        return length == 0
    if isinstance(length, timedelta):
        return length <= timedelta(0)
    if isinstance(length, Mapping):
        return not any(length.values())
    return bool(re.fullmatch(r"[0:]+", str(length)))


def _shown(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool) or value is None else str(value)
