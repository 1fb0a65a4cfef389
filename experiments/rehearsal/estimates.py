"""What the notes of a rehearsal (watch.py) say of the whole run: steps, hours, memory, disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from experiments.rehearsal.changes import Settings, accumulated, batch_of, items_of
from experiments.rehearsal.checks import Facts
from experiments.runs.rehearsed import Figures
from experiments.runs.results import Results


@dataclass(frozen=True)
class Notes:
    """What the callback wrote, in its order."""

    events: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, file: Path) -> Notes:
        lines = file.read_text().splitlines() if file.exists() else []
        return cls(tuple(json.loads(line) for line in lines))

    def of(self, event: str) -> list[Mapping[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    @property
    def attempts(self) -> list[list[Mapping[str, Any]]]:
        """The batches of each start."""
        found: list[list[Mapping[str, Any]]] = []
        for each in self.events:
            if each["event"] == "fit":
                found.append([])
            elif each["event"] == "batch":
                found[-1].append(each)
        return found

    def losses(self, attempt: int, step: int) -> list[float | None]:
        """Of the batches of an optimizer step (from 0), in an attempt (from 0)."""
        return [each["loss"] for each in self.attempts[attempt] if each["step"] == step] if attempt < len(self.attempts) else []

    @property
    def seconds_per_step(self) -> float | None:
        """Median of the steps after the first of each start, which waits for workers and compiles.

        Where a start has so many that those which data workers had ready before it are used up, the mean of the later ones: the
        workers may be slower than the device, and their batches then come in bursts.
        """
        times = [[each["seconds"] for each in batches if each["stepped"]] for batches in self.attempts]
        behind = [seconds for start, ready in zip(times, self._ready, strict=True) for seconds in start[ready:]]
        if len(behind) >= max(self._ready, default=0) / 2 > 0:
            return mean(behind)
        later = [seconds for start in times for seconds in start[1:]]
        return median(later or [seconds for start in times for seconds in start]) if any(times) else None

    @property
    def _ready(self) -> list[int]:
        """Steps of each start whose batches the data workers make while the first is waited for."""
        return [-(-each.get("ahead", 0) // each.get("accumulated", 1)) for each in self.of("fit")]

    def most(self, name: str) -> int | None:
        return max((each[name] for each in self.events if name in each), default=None)


def steps_of(facts: Facts, notes: Notes) -> int | None:
    """Optimizer steps of the whole run; None where it has no end that can be counted."""
    trainer, fit = facts.config.get("trainer") or {}, notes.of("fit")
    most, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    ends = [most] if isinstance(most, int) and most > 0 else []
    batches = _batches(facts, fit)
    if isinstance(epochs, int) and epochs > 0 and batches is not None:
        ends.append(epochs * -(-batches // accumulated(facts.config)))
    return min(ends) if ends else None


def _batches(facts: Facts, fit: Sequence[Mapping[str, Any]]) -> int | None:
    """Of an epoch of the whole run: as the rehearsal counted them, of the batch that the run has."""
    if not fit or fit[0]["batches"] is None:
        return None
    return max(1, round(fit[0]["batches"] / _larger(facts)))


def _larger(facts: Facts) -> float:
    """How many times the run's batch is the rehearsal's."""
    whole = batch_of(facts.config)
    cut = next((word for word in facts.changes.options if word.startswith("--data.init_args.batch_size=")), None)
    return 1.0 if cut is None or whole is None else whole / int(cut.partition("=")[2])


def _more_rounds(facts: Facts) -> float:
    whole = accumulated(facts.config)
    cut = next((word for word in facts.changes.options if word.startswith("--trainer.accumulate_grad_batches=")), None)
    return 1.0 if cut is None else whole / int(cut.partition("=")[2])


def evaluation_seconds(facts: Facts, notes: Notes, settings: Settings) -> float | None:
    """Of all validations and tests of the whole run. The time of the batches grows with the images; so does what comes behind
    them, and where pairs are scored with their square: there the fastest of the evaluations counts, since the first one of a
    process also warms up, and a part that does not grow would count many times."""
    total = 0.0
    cut = items_of(facts.config, settings.items)
    own = next(iter(facts.counts), None)
    fastest = min((each["behind"] for each in notes.of("evaluated")), default=0.0)
    for each in notes.of("evaluated"):
        name = own if each["stage"] == "val" else each["data"]
        images = _images(facts, str(name), each["stage"], first=name == own)
        times = 1.0 if images is None else max(1.0, images / cut)
        once = each["batches"] * times + (fastest * times**2 if facts.pairwise else each["behind"] * times)
        total += once * (max(1, validations(facts, notes)) if each["stage"] == "val" else 1)
    return total if notes.of("evaluated") else None


def _images(facts: Facts, name: str, split: str, first: bool) -> int | None:
    """Of a split as the run cuts it."""
    count = facts.counts.get(name, {}).get(split)
    section = facts.config.get("data") if first else (facts.config.get("evaluate") or {}).get(name)
    limit = (((section or {}).get("init_args") or {}).get("limits") or {}).get(split)
    return count if limit is None or count is None else min(count, limit)


def validations(facts: Facts, notes: Notes) -> int:
    """Of the whole run; below 1 none comes. 1 where it cannot be counted."""
    trainer, steps, batches = facts.config.get("trainer") or {}, steps_of(facts, notes), _batches(facts, notes.of("fit"))
    every, nth = trainer.get("val_check_interval") or 1.0, trainer.get("check_val_every_n_epoch")
    if steps is None or batches is None or not isinstance(every, int | float):  # by the clock
        return 1
    epochs, rest = divmod(steps, -(-batches // accumulated(facts.config)))  # whole epochs, whose last step may be a smaller one
    rest *= accumulated(facts.config)
    if nth is None:
        return int((epochs * batches + rest) // every)
    between = every if isinstance(every, int) else max(1, int(every * batches))
    return int(epochs // nth * (batches // between) + (rest // between if (epochs + 1) % nth == 0 else 0))


def lower_for_a_validation(facts: Facts) -> str:
    """The option of the Trainer that keeps a run from its first validation."""
    trainer = facts.config.get("trainer") or {}
    nth, epochs = trainer.get("check_val_every_n_epoch"), trainer.get("max_epochs")
    gated = isinstance(nth, int) and isinstance(epochs, int) and 0 < epochs < nth
    return "check_val_every_n_epoch" if gated else "val_check_interval"


def counted_bytes(facts: Facts, results: Results | None, processes: int, planned: int) -> int | None:
    """Of training on one device: weights, their average (EMA), gradients, optimizer state, and what backward keeps of its share
    of the real batch.

    Args:
        facts: Of the run.
        results: Of the rehearsal, on a processor: there the last three are counted (callbacks/cost.py).
        processes: Of the rehearsal.
        planned: Devices of the real run.
    """
    if not facts.tunable:
        return facts.weight_bytes  # a test, whose batches are small beside them
    cost = None if results is None else results.cost
    if cost is None or cost.saved_activation_bytes is None:
        return None
    copies = cost.saved_copy_bytes or 0  # what is made of weights: the same for every batch
    kept = copies + (cost.saved_activation_bytes - copies) * _activations(facts, processes, planned)
    held = facts.weight_bytes + facts.average_bytes + (cost.gradient_bytes or 0) + (cost.optimizer_state_bytes or 0)
    return int(held + kept)


def planned_peak(facts: Facts, peak: int | None, processes: int, planned: int) -> int | None:
    """What a GPU's measured peak would be with the whole batch on the planned devices; None where it was measured so.

    Weights, gradients and AdamW's two moments (fp32) are the same for any batch; all else is taken to grow with it.
    """
    if peak is None or not facts.tunable or (times := _activations(facts, processes, planned)) == 1:
        return None
    fixed = min(peak, facts.weight_bytes + facts.average_bytes + 12 * facts.tunable)
    return int(fixed + (peak - fixed) * times)


def _activations(facts: Facts, processes: int, planned: int) -> float:
    """How many times what backward keeps is on a planned device what it was here: with a gradient cache a chunk at a time."""
    chunk = ((facts.config.get("model") or {}).get("init_args") or {}).get("gradient_cache_chunk")
    whole = batch_of(facts.config)
    if whole is None:
        return 1.0
    here, there = whole / _larger(facts) / processes, whole / planned
    if isinstance(chunk, int):
        here, there = min(here, chunk), min(there, chunk)
    return there / here


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def figures(
    facts: Facts, notes: Notes, settings: Settings, results: Results | None, folder: Path, gpus: int, planned: int
) -> Figures:
    """All of it.

    Args:
        facts: Of the run.
        notes: Of its rehearsal.
        settings: Likewise.
        results: Likewise; None where it did not finish.
        folder: Its run folder.
        gpus: That it had.
        planned: Devices of the real run.
    """
    device = None if results is None or results.provenance is None else results.provenance.device
    measured, processes = notes.seconds_per_step, gpus or settings.processes
    seconds = None if measured is None else measured * _larger(facts) * _more_rounds(facts)
    steps = steps_of(facts, notes)
    evaluations = evaluation_seconds(facts, notes, settings)
    training = 0.0 if not notes.of("fit") else None if steps is None or seconds is None else steps * seconds
    hours = None if training is None or evaluations is None else (training + evaluations) / 3600
    peak = notes.most("peak") or None
    return Figures(
        device="" if device is None else device.name, kind="cuda" if gpus else "cpu", processes=processes,
        precision=str((facts.config.get("trainer") or {}).get("precision")), parameters=facts.parameters or None,
        tunable_parameters=facts.tunable, weight_bytes=facts.weight_bytes, seconds_per_step=seconds, steps=steps,
        evaluation_seconds=evaluations, hours=hours, peak_bytes=peak, resident_bytes=notes.most("resident"),
        counted_bytes=(
            planned_peak(facts, peak, processes, planned) if gpus else counted_bytes(facts, results, processes, planned)
        ),
        disk_bytes=folder_bytes(folder) if folder.is_dir() else None, cut=facts.changes.cut,
    )  # fmt: skip
