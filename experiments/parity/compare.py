"""Compares ours with what was recorded: the largest deviation of each group, and whether it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Verdict = Literal["ok", "OFF", "not checked"]


@dataclass(frozen=True)
class GroupCheck:
    """One group of things that were compared.

    Args:
        group: What was compared, in words.
        verdict: "ok", "OFF", or "not checked" (`note` says why).
        count: How many tensors, keys or lines.
        deviation: Largest absolute deviation; None where nothing is subtracted.
        tolerance: What was allowed, for the table.
        note: Where the largest deviation is, what is wrong, or why it was not checked.
    """

    group: str
    verdict: Verdict
    count: int = 0
    deviation: float | None = None
    tolerance: str = ""
    note: str = ""


def not_checked(group: str, why: str) -> GroupCheck:
    return GroupCheck(group, "not checked", note=why)


@dataclass(frozen=True)
class Tolerance:
    """|found - recorded| <= absolute * scale + relative * |recorded|, element by element.

    `scaled`: scale = the largest |recorded| of the tensor, at least `least`. Otherwise scale = 1.
    """

    absolute: float
    relative: float = 0.0
    scaled: bool = False
    least: float = 1.0

    def limit(self, recorded: Tensor) -> Tensor:
        recorded = recorded.double().abs()
        scale = max(self.least, float(recorded.max())) if self.scaled and recorded.numel() else 1.0
        return self.absolute * scale + self.relative * recorded

    def __str__(self) -> str:
        if not self.absolute and not self.relative:
            return "equal"
        unit = "" if not self.scaled else " s" if self.least == 1 else " g"
        part, unit = (self.relative, " r") if self.relative else (self.absolute, unit)
        return f"{part:.0e}{unit}".replace("e-0", "e-")


EQUAL = Tolerance(0.0)
OUTPUT = Tolerance(1e-5)

# Hidden states reach 12 in the recordings, and the recorded fp32 values themselves lie up to 1.4e-5 from a float64 evaluation
# (e_paper_count, text_hidden_3): 1e-5 is meant for values of order one, so it is taken of the tensor's scale.
STATE = Tolerance(1e-5, scaled=True)

# 1e-4 of each element; the floor is for elements near zero, whose rounding is that of the tensor's large elements.
GRADIENT = Tolerance(1e-6, relative=1e-4, scaled=True)

# UNITER's recorded gradients are hundredths, and sums of cancelling terms: taken of their tensor's largest, but of no rounding.
SMALL_GRADIENT = Tolerance(1e-4, scaled=True, least=1e-3)
LEGEND = """\
allowed: s = times the tensor's largest recorded value, at least 1; g = likewise, at least 1e-3;
r = times the recorded element, and 1e-6 s more (so that elements near zero may be rounded);
equal = no deviation at all"""


@dataclass
class Worst:
    """The largest deviation of a group, an offending one before all others."""

    deviation: float = 0.0
    where: str = ""
    off: bool = False
    problems: list[str] = field(default_factory=list)

    def see(self, name: str, found: Tensor, recorded: Tensor, tolerance: Tolerance) -> None:
        if found.shape != recorded.shape:
            self.problems.append(f"{name} has shape {list(found.shape)}, recorded {list(recorded.shape)}")
            return
        if not bool(found.isfinite().all()) or not bool(recorded.isfinite().all()):
            side = "is" if not bool(found.isfinite().all()) else "is recorded"
            self.problems.append(f"{name} {side} not finite")
            return
        if not recorded.numel():
            return
        difference = (found.detach().double() - recorded.double()).abs()
        deviation, off = float(difference.max()), bool((difference > tolerance.limit(recorded)).any())
        if (off, deviation) > (self.off, self.deviation) or not self.where:
            self.deviation, self.where, self.off = deviation, name, off


def compare(
    group: str, found: Mapping[str, Tensor], recorded: Mapping[str, Tensor], tolerance: Tolerance, note: str = ""
) -> GroupCheck:
    """Every recorded tensor against ours of the same name. One that we lack, of another shape, or not finite is OFF."""
    if not recorded:
        return not_checked(group, "the file records none of it")
    worst = Worst()
    for name, tensor in recorded.items():
        if name in found:
            worst.see(name, found[name], tensor, tolerance)
        else:
            worst.problems.append(f"{name} is recorded, our build has none")
    problems = worst.problems[:2] + ([f"and {len(worst.problems) - 2} more"] if len(worst.problems) > 2 else [])
    said = [*problems, worst.where if worst.off or (worst.deviation and not problems) else "", note]
    return GroupCheck(
        group,
        "OFF" if worst.off or worst.problems else "ok",
        len(recorded),
        worst.deviation if worst.where else None,
        str(tolerance),
        "; ".join(part for part in said if part),
    )


def compare_names(group: str, found: set[str], recorded: set[str], note: str = "") -> GroupCheck:
    """Two sets of names, which must be equal."""
    lacking, beyond = sorted(recorded - found), sorted(found - recorded)
    said = [f"{len(names)} {what}: {names[0]}" for names, what in ((lacking, "lacking"), (beyond, "too many")) if names]
    return GroupCheck(
        group, "OFF" if said else "ok", len(recorded), tolerance="equal", note="; ".join([*said, note] if note else said)
    )


def compare_lines(group: str, found: Mapping[str, Any], recorded: Mapping[str, Any], note: str = "") -> GroupCheck:
    """Things that must be equal, each with a name; the first difference is shown."""
    if not recorded:
        return not_checked(group, "the file records none of it")
    wrong = [name for name, value in recorded.items() if name not in found or found[name] != value]
    said = []
    if wrong:
        first = wrong[0]
        here = repr(found[first]) if first in found else "nothing"
        said.append(f"{len(wrong)} differ, first {first}: {_short(here)}, recorded {_short(repr(recorded[first]))}")
    beyond = sorted(found.keys() - recorded.keys())
    if beyond:
        said.append(f"{len(beyond)} that are not recorded, first {beyond[0]}")
    verdict: Verdict = "OFF" if said else "ok"
    return GroupCheck(group, verdict, len(recorded), tolerance="equal", note="; ".join([*said, note] if note else said))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def stacked(numbers: Mapping[str, float]) -> dict[str, Tensor]:
    """Plain numbers as float64 tensors, to be compared."""
    return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in numbers.items()}
