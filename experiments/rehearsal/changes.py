"""What a rehearsal changes of a run's command line: as little as makes it short, and each change that matters is said."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.sweep.launches import Launch

WATCH = "experiments.rehearsal.watch.Watch"
ITEMS = 10
LENGTHS = {
    "max_steps": "", "max_epochs": "-1", "min_epochs": "null", "min_steps": "null", "check_val_every_n_epoch": "null",
    "val_check_interval": "1",  # the callback moves it to the last step
}  # fmt: skip
"""Options of the Trainer that say how long it trains and when it validates, and what they are in a rehearsal."""


@dataclass(frozen=True)
class Settings:
    """How short a rehearsal is.

    Args:
        steps: Optimizer steps.
        items: Images of each validation and test, about.
        batch: Samples of a batch over all processes; None = as the run has it.
        processes: On a processor.
        options: Further words of the command line, the last say.
        gpus: Of this machine.
        stand_in: Data and weights are stand-ins.
        devices: GPUs of each run where that is said; None = as many as its recipe has, or the machine that it is meant for.
    """

    steps: int
    items: int = ITEMS
    batch: int | None = None
    processes: int = 1
    options: tuple[str, ...] = ()
    gpus: int = 0
    stand_in: bool = False
    devices: int | None = None

    @property
    def words(self) -> str:
        """Two rehearsals with the same ones show the same."""
        where = f"{self.gpus} GPUs" if self.gpus else f"{self.processes} processes"
        batch = "" if self.batch is None else f", batch {self.batch}"
        batch += "" if self.devices is None else f", {self.devices} devices a run"
        others = "".join(f", {word}" for word in (*self.options, *(["stand-ins"] if self.stand_in else [])))
        return f"{where}, {self.steps} steps, {self.items} images{batch}{others}"


@dataclass(frozen=True)
class Changes:
    """Options over a run's own, what of it they make another run, in words, and those of --set that it does not have."""

    options: tuple[str, ...]
    cut: tuple[str, ...]
    without: tuple[str, ...] = ()


def training(command: str | None) -> bool:
    return command in ("run", "fit")


def batch_of(config: Mapping[str, Any]) -> int | None:
    """Samples of a batch over all devices, where the data have such an option."""
    batch = _arguments(config.get("data")).get("batch_size")
    return batch if isinstance(batch, int) else None


def accumulated(config: Mapping[str, Any]) -> int:
    return int((config.get("trainer") or {}).get("accumulate_grad_batches") or 1)


def changes(command: str | None, config: Mapping[str, Any], settings: Settings, gpus: int, watch: Path) -> Changes:
    """Of a run.

    Args:
        command: Of crosslight.
        config: The run's, resolved.
        settings: Of the rehearsal.
        gpus: That it gets; 0 = on the processor.
        watch: File of the callback.
    """
    devices, trainer = gpus or settings.processes, config.get("trainer") or {}
    words = {
        "wandb.enabled": "false", "trainer.accelerator": "gpu" if gpus else "cpu", "trainer.devices": str(devices),
        "trainer.num_nodes": "1",
    }  # fmt: skip
    cut = []
    if not gpus:
        words["trainer.strategy"] = "ddp" if devices > 1 else "auto"
        if str(trainer.get("precision")) == "16-mixed":
            words["trainer.precision"] = "bf16-mixed"
            cut.append("bf16 in place of fp16, which processors lack")
        if trainer.get("sync_batchnorm"):
            words["trainer.sync_batchnorm"] = "false"
            cut.append("batch norms of each process, which torch synchronizes on GPUs alone")
        workers, cores = _arguments(config.get("data")).get("num_workers"), len(os.sched_getaffinity(0))
        if isinstance(workers, int) and workers > cores:
            words["data.init_args.num_workers"] = str(cores)
    if training(command):
        batch, rounds = batch_of(config), accumulated(config)
        if settings.batch is not None and batch is not None and settings.batch < batch:
            words["data.init_args.batch_size"] = str(settings.batch)
            cut.append(f"batch {settings.batch} of {batch}")
            if rounds > 2:
                words["trainer.accumulate_grad_batches"] = "2"
                cut.append(f"accumulation 2 of {rounds}")
        words |= {
            **{f"trainer.{name}": value for name, value in LENGTHS.items()}, "trainer.max_steps": str(settings.steps),
            "trainer.log_every_n_steps": "1", "checkpoint.every_n_steps": str(settings.steps - 1),
        }  # fmt: skip
    words |= _limits(config, settings.items)
    own = tuple(word for word in settings.options if _has(config, word))  # of all runs of a target only some have it
    return Changes(
        (
            *(f"--{name}={value}" for name, value in words.items()), f"--trainer.callbacks+={WATCH}",
            f"--trainer.callbacks.file={watch}", f"--trainer.callbacks.steps={settings.steps}", *own,
        ),
        (*cut, *own),
        tuple(word for word in settings.options if word not in own),
    )  # fmt: skip


def _has(config: Mapping[str, Any], word: str) -> bool:
    """Whether a run has the option of a word of the command line: its resolved configuration has all that there are."""
    *sections, name = word.removeprefix("--").partition("=")[0].removesuffix("+").split(".")
    held: Any = config
    for section in sections:
        held = held.get(section) if isinstance(held, Mapping) else None
    return isinstance(held, Mapping) and name in held


def changed(launch: Launch, made: Changes, gpus: int, processes: int) -> Launch:
    """The launch of a rehearsal: its command line with the changes behind all that the sweep would give."""
    several = str(gpus or processes) if gpus or processes > 1 else None  # in one process on the processor it may be forked
    plain = replace(launch, accelerator=None, nodes=None, strategy=None, devices=several, gpus=gpus)
    return replace(plain, options=(*launch.options, *made.options))


def items_of(config: Mapping[str, Any], items: int) -> int:
    """Images of a cut split: as many as the folds of a test divide."""
    folds = _arguments(config.get("model")).get("folds") or 1
    return -(-items // folds) * folds


def _limits(config: Mapping[str, Any], items: int) -> dict[str, str]:
    """Options that cut validation and tests, of the data modules that take limits."""
    count = items_of(config, items)
    words: dict[str, str] = {}
    data = _arguments(config.get("data"))
    if "limits" in data:
        own = data["limits"] or {}
        words |= {f"data.init_args.limits.{split}": str(_least(own.get(split), count)) for split in ("val", "test")}
    if others := config.get("evaluate"):
        others = copy.deepcopy(dict(others))
        for other in others.values():
            arguments = _arguments(other)
            if "limits" in arguments:
                own = arguments["limits"] or {}
                arguments["limits"] = {**own, "test": _least(own.get("test"), count)}
        words["evaluate"] = json.dumps(others)
    return words


def _least(own: int | None, count: int) -> int:
    return count if own is None else min(own, count)


def _arguments(section: Any) -> Any:
    return (section.get("init_args") or {}) if isinstance(section, Mapping) else {}
