"""dial.json of a run folder: what a trained run measures at alpha of what it learnt; its one writer and its one reader.

    dial.json                    the record
    dial/ALPHA/DATA-STAGE.npz    ranks or scores of every query there

`experiments.analysis.dial` measures it.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.formats.typed import read_typed
from experiments.runs.results import DataDescription, Evaluation
from lightning_modules.checkpoints.run_folder import record_content, require_inside

Stage = Literal["val", "test"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Rule = Literal["target", "mean"]
SCHEMA = "crosslight.dial/1"
FILE = "dial.json"
FOLDER = "dial"
WORDS: dict[Rule, str] = {
    "target": "the best of the target",
    "mean": "the best mean of the target and of what is to be retained",
}


@dataclass(frozen=True)
class Point:
    """A place on the dial.

    Args:
        alpha: From 0 (the start) to 1 (as trained).
        evaluations: What was measured there.
    """

    alpha: float
    evaluations: tuple[Evaluation, ...] = ()

    def of(self, data: str, stage: Stage) -> Evaluation | None:
        """The evaluation of a split; None where there is none yet."""
        return next((each for each in self.evaluations if (each.data, each.stage) == (data, stage)), None)


@dataclass(frozen=True)
class Dialling:
    """What dial.json says.

    Args:
        checkpoint: SHA-256 of the weights that were dialled.
        turned: What alpha turns, in words.
        kept: Parameters that stay as trained at every alpha: nothing says what they were before.
        metric: That is drawn and picked by, as evaluations name it.
        better: Whether more or less of it is better.
        target: Name of the data that the run was trained on.
        retention: Names of the data whose numbers are to be retained.
        rule: How alpha is picked, on validation splits alone.
        picked: The alpha; None before all is measured.
        data: What was evaluated, by name.
        points: In the order of alpha.
        no_result: Why nothing of it is a result: the run or data are stand-ins, or it is a rehearsal. None = it may be one.
    """

    checkpoint: str
    turned: str
    kept: tuple[str, ...]
    metric: str
    better: Literal["max", "min"]
    target: str
    retention: tuple[str, ...] = ()
    rule: Rule = "target"
    picked: float | None = None
    data: dict[str, DataDescription] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    no_result: str | None = None

    @property
    def picked_by(self) -> str:
        """The rule in words, with the splits that it looked at."""
        names = [self.target, *(self.retention if self.rule == "mean" else ())]
        return f"{WORDS[self.rule]} ({self.metric} on the validation split of {' and '.join(names)})"

    def point(self, alpha: float) -> Point | None:
        """What was measured there; None where nothing was."""
        return next((point for point in self.points if point.alpha == alpha), None)

    def value(self, point: Point, data: str, stage: Stage) -> float | None:
        """The metric of a split at a point; None where it is not measured yet."""
        found = point.of(data, stage)
        return None if found is None else found.metrics.get(self.metric)

    def retained(self, point: Point, stage: Stage) -> float | None:
        """The mean over what is to be retained; None where there is none, or one of them is not measured."""
        values = [self.value(point, data, stage) for data in self.retention]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def score(self, point: Point) -> float | None:
        """What the rule compares, of validation splits alone. None where one is not measured."""
        target = self.value(point, self.target, "val")
        if target is None or self.rule == "target":
            return target
        retained = self.retained(point, "val")
        return None if retained is None else (target + retained) / 2

    def pick(self) -> float | None:
        """The alpha of the best score; of equal ones the smallest, which forgets least. None where nothing is measured."""
        sign = 1.0 if self.better == "max" else -1.0
        scores = {point.alpha: score for point in self.points if (score := self.score(point)) is not None}
        sound = {alpha: sign * score for alpha, score in scores.items() if math.isfinite(score)}
        return max(sorted(sound), key=lambda alpha: sound[alpha]) if sound else None


def per_query_file(alpha: float, data: str, stage: Stage) -> str:
    """Where the ranks or scores of a point's evaluation are, in the run folder."""
    return f"{FOLDER}/{alpha:g}/{data}-{stage}.npz"


def write_dial(folder: Path, dialling: Dialling) -> None:
    """Write dial.json, whole or not at all."""
    content = {"schema": SCHEMA, **asdict(dialling)}
    write_atomically(folder / FILE, json.dumps(content, indent=1, default=str) + "\n")


def read_dial(folder: Path) -> Dialling | None:
    """dial.json of a run folder; None where there is none.

    Raises:
        InputError: Not JSON, another schema, or a key that is unknown, missing or of another type.
    """
    file = folder / FILE
    if not os.path.lexists(file):
        return None
    content = {key: value for key, value in record_content(file, "the dial of a run", SCHEMA).items() if key != "schema"}
    dialling: Dialling = read_typed(Dialling, content, str(file))
    for place, point in enumerate(dialling.points):
        for evaluation in point.evaluations:
            where = f"{file}: points[{place}]: {evaluation.data} {evaluation.stage}"
            require_inside(evaluation.data, f"{where}: data")
            require_inside(evaluation.per_query_file or "", f"{where}: per_query_file")
    return dialling


def require_picked(folder: Path) -> tuple[Dialling, float]:
    """The dial of a run whose alpha has been picked, and that alpha.

    Raises:
        InputError: The run was not dialled, or not to the end.
    """
    dialling = read_dial(folder)
    if dialling is None or dialling.picked is None:
        state = "was not dialled" if dialling is None else "was dialled in part, and nothing is picked yet"
        raise InputError(f"{folder} {state}: `crosslight dial --run {folder}` does it, or give a number as --alpha.")
    return dialling, dialling.picked


def with_evaluation(dialling: Dialling, alpha: float, evaluation: Evaluation) -> Dialling:
    """The record with one more evaluation."""
    point = dialling.point(alpha) or Point(alpha)
    others = [each for each in dialling.points if each.alpha != alpha]
    added = replace(point, evaluations=(*point.evaluations, evaluation))
    return replace(dialling, points=tuple(sorted([*others, added], key=lambda each: each.alpha)))


def alphas_of(text: str) -> tuple[float, ...]:
    """Numbers from 0 to 1 with commas between them, ascending, each once.

    Raises:
        ValueError: It is something else.
    """
    found = sorted({round(float(part), 6) for part in text.replace(",", " ").split()})
    if not found or not all(0 <= alpha <= 1 for alpha in found):  # NaN is neither
        raise ValueError(f"no numbers from 0 to 1: {text}")
    return tuple(found)
