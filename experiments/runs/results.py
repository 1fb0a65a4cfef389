"""results.json of a run folder: the typed record that everything downstream reads, its one writer and its one reader."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from datamodules.files.atomic import write_atomically
from datamodules.formats.typed import read_typed
from experiments.runs.provenance import Provenance
from lightning_modules.callbacks.cost_record import Cost
from lightning_modules.checkpoints.run_folder import RESULTS_SCHEMA, Fit, require_inside, results_content

ResultsStatus = Literal["running", "finished", "failed", "oom", "interrupted", "stopped_early"]
RunScale = Literal["full", "reduced", "small", "miniature"]


@dataclass(frozen=True)
class Evaluation:
    """A test or validation of one split of one data set.

    Args:
        data: Name of the data.
        split: As the data calls it; cut by `limits` it is "test[:100]".
        stage: What it was for: the val split of some data sets is what they are tested on.
        metrics: In their own units: recalls in percent, caption scores as fractions.
        protocol: How it was tested, in words.
        per_query_file: Ranks or scores of every query, in the run folder.
        notes: What else the model says of it: a tokenizer, files of captions.
    """

    data: str
    split: str
    stage: Literal["val", "test"]
    metrics: dict[str, float]
    protocol: str | None = None
    per_query_file: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, str]:
        """Metrics that tables show as columns of their own, with their headings."""
        return dict(self.notes.get("columns", {}))


@dataclass(frozen=True)
class DataDescription:
    """What a data module says of its data.

    Args:
        kind: Its class.
        name: What the data set is called.
        fingerprint: Two roots with the same one hold the same splits.
        options: That decide what is in a split.
        splits: Counts of each split (images, captions).
        further: What else it says.
    """

    kind: str
    name: str | None = None
    fingerprint: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    further: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """What a run folder says of its run.

    Args:
        status: running (whoever runs holds the folder's lock; without one the process was killed, and opening the folder again
            resumes it), finished, failed, oom, interrupted, or stopped_early: a sweep's early_terminate found it hopeless.
        command: Sub-command that wrote it.
        name: What tables call it.
        config_hash: Of its configuration; empty in what a runner wrote of a run that crashed before it opened its folder.
        started: Of the first attempt, as an ISO time.
        attempts: Starts so far.
        error: Why it did not finish, or why it was stopped.
        seconds: Of all attempts, without what lay between them; None before the first has ended.
        finished: When the last attempt ended, as an ISO time.
        wandb_id: Of its W&B run, made from the folder's first name: a folder that was moved goes on with the same one.
        argv: Arguments of the last attempt.
        scale: Printed beside every number.
        parent: The run or weights that it starts from.
        resumed_from: The checkpoint of another run from which its training goes on.
        seed: Its seed.
        provenance: What it was computed with.
        data: What it was computed on, by the data's name.
        fit: Its training.
        cost: Of its training.
        evaluations: Its tests.
    """

    status: ResultsStatus
    command: str
    name: str
    config_hash: str
    started: str
    attempts: int = 1
    error: str | None = None
    seconds: float | None = None
    finished: str | None = None
    wandb_id: str | None = None
    argv: tuple[str, ...] = ()
    scale: RunScale | None = None
    parent: str | None = None
    resumed_from: str | None = None
    seed: int | None = None
    provenance: Provenance | None = None
    data: dict[str, DataDescription] = field(default_factory=dict)
    fit: Fit | None = None
    cost: Cost | None = None
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def code(self) -> str | None:
        """The revision that computed it, or the version of an installed one; None where that is not known."""
        if self.provenance is None or self.provenance.git.revision is None:
            return None if self.provenance is None else self.provenance.versions.get("crosslight")
        git = self.provenance.git
        return f"{git.revision:.10}" + (" with uncommitted changes" if git.dirty else "")

    def tests(self, data: str | None = None) -> list[Evaluation]:
        """Its tests, or those on one data set."""
        return [each for each in self.evaluations if each.stage == "test" and data in (None, each.data)]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_results(folder: Path, results: Results) -> None:
    """Write results.json, whole or not at all."""
    content = {"schema": RESULTS_SCHEMA, **asdict(results)}
    write_atomically(folder / "results.json", json.dumps(content, indent=1, default=str) + "\n")


def read_results(folder: Path) -> Results:
    """results.json of a run folder.

    Raises:
        InputError: No such file, not JSON, another schema, or a key that is unknown, missing or of another type.
    """
    content = {key: value for key, value in results_content(folder).items() if key != "schema"}
    results: Results = read_typed(Results, content, str(folder / "results.json"))
    for place, evaluation in enumerate(results.evaluations):
        where = f"{folder / 'results.json'}: evaluations[{place}]"
        for name in ("columns", "remarks"):
            read_typed(dict[str, str], evaluation.notes.get(name, {}), f"{where}: notes.{name}")
        require_inside(evaluation.data, f"{where}: data")
        require_inside(evaluation.per_query_file or "", f"{where}: per_query_file")
    return results
