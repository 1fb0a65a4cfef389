"""rehearsed.json of a folder of runs: what `crosslight sweep rehearse` found of each, and what was measured on its way.

What was measured on a GPU takes the place of a run's estimate wherever costs are shown or used: `measured_cost`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.json_file import read_json
from datamodules.formats.typed import read_typed
from experiments.papers.plan import PlannedRun
from experiments.papers.schema import Cost

FILE = "rehearsed.json"
SCHEMA = "crosslight.rehearsed/1"

Stage = Literal["parse", "devices", "data", "weights", "disk", "steps", "resume", "evaluation", "memory", "export", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Outcome = Literal["passed", "failed", "unknown", "skipped"]


@dataclass(frozen=True)
class Verdict:
    """What a stage of a run's life showed.

    Args:
        stage: Which.
        outcome: failed: the run would fail, or not be the run that it should be. unknown: this machine cannot tell. skipped: the
            run has no such stage.
        said: One line: what was found, and where something is wrong the remedy.
        without: Words of --set that the run has no option for.
    """

    stage: Stage
    outcome: Outcome
    said: str = ""
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    """What a rehearsal measured or counted. None: it did not get so far.

    Args:
        device: It ran on.
        kind: "cpu" or "cuda".
        processes: At once.
        precision: As the trainer calls it.
        parameters: Of the network.
        tunable_parameters: That train.
        weight_bytes: Of the network's parameters and buffers.
        seconds_per_step: Of an optimizer step of the real batch: the median of those after the first.
        steps: Of the whole run.
        evaluation_seconds: Of all its validations and tests.
        hours: Of the whole run on the clock, on this device and so many processes.
        peak_bytes: Of a GPU's memory (the allocator's), of one process.
        resident_bytes: Of the machine's memory, of one process.
        counted_bytes: Weights, gradients, optimizer state and what backward keeps of the real batch, on one planned device:
            counted on a processor; on a GPU computed from `peak_bytes` where that is of another batch or number of devices.
        disk_bytes: Of its run folder, at its largest.
        cut: What was made smaller than in the real run, in words.
    """

    device: str
    kind: Literal["cpu", "cuda"]
    processes: int = 1
    precision: str = ""
    parameters: int | None = None
    tunable_parameters: int | None = None
    weight_bytes: int | None = None
    seconds_per_step: float | None = None
    steps: int | None = None
    evaluation_seconds: float | None = None
    hours: float | None = None
    peak_bytes: int | None = None
    resident_bytes: int | None = None
    counted_bytes: int | None = None
    disk_bytes: int | None = None
    cut: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rehearsed:
    """One configuration.

    Args:
        title: What tables say.
        revision: Of the code that was rehearsed.
        settings: What it was rehearsed with (device, processes, cuts): with other ones it is rehearsed again.
        verdicts: Of the stages, in their order; those after the first that the run cannot go on from are not there.
        figures: What was measured.
        when: As an ISO time.
    """

    title: str
    revision: str
    settings: str
    verdicts: tuple[Verdict, ...] = ()
    figures: Figures | None = None
    when: str = ""

    @property
    def faults(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.outcome == "failed"]

    @property
    def whole(self) -> bool:
        """It went through all stages and nothing is wrong."""
        return not self.faults and len(self.verdicts) == len(STAGES)


@dataclass(frozen=True)
class _File:
    schema: str
    runs: dict[str, Rehearsed]


def read_rehearsed(root: Path) -> dict[str, Rehearsed]:
    """Of a folder of runs, by key; empty where nothing was rehearsed.

    Raises:
        InputError: The file is none of this version's.
    """
    file = root / FILE
    if not os.path.lexists(file):
        return {}
    content = read_json(file, "what was rehearsed")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{file} is not {SCHEMA}: another version wrote it. Move it away, and rehearse again.")
    record: _File = read_typed(_File, content, str(file))
    return record.runs


def write_rehearsed(root: Path, runs: Mapping[str, Rehearsed]) -> None:
    """Whole or not at all."""
    content = asdict(_File(SCHEMA, dict(runs)))
    write_atomically(root / FILE, json.dumps(content, indent=1) + "\n")


def measured_in(rehearsed: Mapping[str, Rehearsed], run: PlannedRun, estimate: Cost | None) -> Cost | None:
    """What a planned run costs by `measured_cost`: a configuration is rehearsed with seed 0, and costs the same with any."""
    if not rehearsed:
        return None
    record = rehearsed.get(run.key) or rehearsed.get(run.first_seed_key)
    return None if record is None else measured_cost(record, estimate)


def measured_cost(run: Rehearsed, estimate: Cost | None) -> Cost | None:
    """What a run costs by what was measured on a GPU to its end with nothing cut, in place of its estimate; None where it was
    not."""
    figures, ended = run.figures, any(each.stage == "evaluation" and each.outcome == "passed" for each in run.verdicts)
    if figures is None or figures.kind != "cuda" or figures.hours is None or figures.cut or not ended:
        return None
    before = estimate or Cost(0.0)
    taken = figures.counted_bytes or figures.peak_bytes
    memory = before.memory_gb if taken is None else round(taken / 1e9, 1)
    # device-hours: taken to be as many on any number of devices
    return replace(before, hours=figures.hours * figures.processes, device=figures.device, memory_gb=memory)
