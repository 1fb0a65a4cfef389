"""A launch: a run as a machine needs it. Its fields say what it is, and its command line is made of them here, nowhere else."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.errors import InputError, shown
from datamodules.files.references import look_up, starting
from experiments.papers.schema import Cost, Style

PROGRAM = (sys.executable, "-m", "experiments.cli")
COMMANDS = ("run", "fit", "validate", "test", "predict")  # those of crosslight that have a run folder
# the option of each field that is one
_OPTIONS = {
    "seed": "seed_everything", "scale": "scale", "accelerator": "trainer.accelerator", "devices": "trainer.devices",
    "nodes": "trainer.num_nodes", "strategy": "trainer.strategy",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A run as a machine needs it. Fields that are None are left to the configuration.

    Args:
        key: Tells it from all others.
        title: What tables say.
        kind: Launches of one kind take about the same time.
        folder: Its run folder, absolute.
        command: Crosslight's, one of COMMANDS; None: another program's run.
        program: What is started: crosslight, or that program.
        configs: YAML files, later ones win.
        options: Further words of the command line, as they stand there; ${envvar:NAME} is looked up where it starts.
        name: What the run is called.
        seed: Of everything.
        scale: Full, small or miniature.
        accelerator: As Lightning's Trainer takes it.
        devices: Of a node, likewise: a number, "auto", a list.
        nodes: Their number.
        strategy: As Lightning's Trainer takes it.
        environment: Variables to set.
        after: Keys of the launches that must be finished first.
        gpus: Devices that it wants to itself; 0 runs on the processor.
        cost: Estimate.
        world: Style of the embedded world that must be there first; `environment` says where.
        reads: Names of what the user must have first (experiments/papers/inputs.yaml).
        names: PAPER/RUN, all that a run of papers is called.
        measured: `cost` is no estimate: a rehearsal measured it on a GPU.
    """

    key: str
    title: str
    kind: str
    folder: Path
    command: str | None
    program: tuple[str, ...] = PROGRAM
    configs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    name: str | None = None
    seed: int | None = None
    scale: str | None = None
    accelerator: str | None = None
    devices: str | None = None
    nodes: int | None = None
    strategy: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    gpus: int = 0
    cost: Cost | None = None
    world: Style | None = None
    reads: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    measured: bool = False

    @property
    def argv(self) -> tuple[str, ...]:
        """Its command line."""
        return (*self.program, *((self.command,) if self.command is not None else ()), *self.arguments)

    @property
    def started(self) -> tuple[str, ...]:
        """Its command line where a process starts: crosslight looks up ${envvar:NAME} itself, another program does not."""
        return self.argv if self.command is not None else tuple(starting(self.argv))

    @property
    def arguments(self) -> tuple[str, ...]:
        """Its command line behind the program, or behind crosslight's command."""
        given = [(option, getattr(self, name)) for name, option in _OPTIONS.items()]
        return (
            *(word for file in self.configs for word in ("-c", file)),
            *((f"--name={self.name}",) if self.name is not None else ()),
            *self.options,
            *(f"--{option}={value}" for option, value in given if value is not None),
            f"--run_dir={self.folder}",
        )

    @property
    def files(self) -> tuple[str, ...]:
        """The YAML files that it names: its configurations, and those that are values of other options."""
        values = (word.partition("=")[2] if word.startswith("-") else word for word in self.options)
        return (*self.configs, *(value for value in values if value.endswith((".yaml", ".yml"))))

    @property
    def data(self) -> tuple[str, ...]:
        """Names of the packaged data configurations: coco, flickr30k_regions."""
        return tuple(Path(file).stem for file in self.files if file.startswith("configs/data/"))

    @property
    def processes(self) -> int:
        """On a node, as far as its own command line says."""
        return int(self.devices) if self.devices is not None and self.devices.isdigit() else 1

    @property
    def is_forked(self) -> bool:
        """Whether it may start in a process that has imported everything: a command of ours in one process, on no GPU."""
        return self.command is not None and not self.gpus and self.devices is None and self.strategy is None

    @property
    def whole_environment(self) -> dict[str, str]:
        """Its variables; for another program also how W&B is to write, which crosslight sees to itself."""
        if self.command is not None or "WANDB_MODE" in os.environ:
            return dict(self.environment)
        from experiments.training.loggers import wandb_logged_in

        return {**self.environment, **({} if wandb_logged_in() else {"WANDB_MODE": "offline"})}


def split_options(options: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a launch that dotted options and their texts say: those that are fields, and the rest as words."""
    fields: dict[str, Any] = {name: options[option] for name, option in _OPTIONS.items() if option in options}
    fields |= {name: int(fields[name]) for name in ("seed", "nodes") if name in fields}
    rest = options.keys() - {"name", *_OPTIONS.values()}
    words = tuple(f"--{option}={value}" for option, value in options.items() if option in rest)
    return {**fields, "name": options.get("name"), "options": words}


def read_command(words: Sequence[str], where: str) -> dict[str, Any]:
    """The fields of a launch that a command line says, which is crosslight's or another program's.

    Args:
        words: With the program.
        where: Whose they are, for errors.

    Raises:
        InputError: They name the run folder, which every run of a sweep has of its own; or they are no command of ours that makes
            a run.
    """
    words = list(words[1:] if list(words[:1]) == ["/usr/bin/env"] else words)
    if any(word.startswith("--run_dir") for word in words):
        raise InputError(f"{where}: leave --run_dir out of the command: every point gets a folder of its own.")
    own = _own_words(words)
    if own is None:
        return {"command": None, "program": tuple(words[:1]), "options": tuple(words[1:])}
    command = own[0] if own else ""
    if command not in COMMANDS:
        raise InputError(f"{where}: `crosslight {command}` makes no run; a sweep is of {', '.join(COMMANDS)}.")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[], dest="configs")
    parser.add_argument("--name")
    for name, option in _OPTIONS.items():
        parser.add_argument(f"--{option}", dest=name)
    try:
        fields, rest = parser.parse_known_args(own[1:])
    except argparse.ArgumentError as error:
        raise InputError(f"{where}: command: {error}") from None
    # what decides where and how it starts is no secret, and must be known now
    fields.configs = [look_up(file) for file in fields.configs]
    for name, option in {"name": "name", **_OPTIONS}.items():
        if (value := getattr(fields, name)) is not None:
            value = look_up(value)
            if name in ("seed", "nodes") and not value.isdecimal():
                raise InputError(f"{where}: command: argument --{option}: invalid int value: {shown(value)}")
            setattr(fields, name, int(value) if name in ("seed", "nodes") else value)
    return {**vars(fields), "command": command, "configs": tuple(fields.configs), "options": tuple(rest)}


def _own_words(words: Sequence[str]) -> list[str] | None:
    """The words behind the program where it is crosslight; None: it is another program."""
    if not words:
        return None
    if Path(words[0]).name == "crosslight":
        return list(words[1:])
    python = Path(words[0]).name.startswith("python")
    if python and list(words[1:3]) == ["-m", "experiments.cli"]:
        return list(words[3:])
    return list(words[2:]) if python and len(words) > 1 and words[1].endswith("experiments/cli/main.py") else None
