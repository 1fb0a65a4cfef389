"""What a recorded fixture is, and what a check of it reports.

A fixture is `NAME.json` (its `kind`, sizes, what was recorded) and mostly `NAME.safetensors` beside it, with tensors named
`weights/...`, `inputs/...`, `outputs/...` and `grads/...`. No size is assumed: all come from the two files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from datamodules.errors import InputError

Verdict = Literal["ok", "OFF", "not checked"]


# ------------------------------------------------------------------------------------------------------------ fixtures


@dataclass(frozen=True)
class Fixture:
    """One recording: what its .json says, and its tensors (none when it has no .safetensors)."""

    path: Path
    kind: str
    about: dict[str, Any]
    tensors: dict[str, Tensor]
    sha256: str | None  # of the .safetensors as it is now

    def value(self, *keys: str) -> Any:
        """A value of the .json, by its path of keys.

        Raises:
            InputError: The .json has no such key.
        """
        found: Any = self.about
        for depth, key in enumerate(keys):
            if not isinstance(found, dict) or key not in found:
                raise InputError(f"{self.path}: has no {'.'.join(keys[: depth + 1])!r}; a fixture of kind {self.kind} needs it")
            found = found[key]
        return found

    def tensor(self, name: str) -> Tensor:
        """A tensor that the check cannot do without (an input).

        Raises:
            InputError: The .safetensors has no such tensor.
        """
        if name not in self.tensors:
            source = self.path.with_suffix(".safetensors")
            raise InputError(f"{source}: has no tensor {name!r}; a fixture of kind {self.kind} needs it (record it again)")
        return self.tensors[name]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix/`, without it."""
        return {name.removeprefix(f"{prefix}/"): t for name, t in self.tensors.items() if name.startswith(f"{prefix}/")}


def read_fixture(path: Path) -> Fixture:
    """Read `NAME.json` and the `NAME.safetensors` beside it.

    Raises:
        InputError: A file is missing, damaged or no fixture. A fixture without tensors of its own (its .json says neither
            `tensors` nor `sha256`) needs no .safetensors here; its checker says so if it does.
    """
    if path.suffix != ".json":
        raise InputError(f"{path} is no fixture's .json; give the .json files (the .safetensors lie beside them)")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the .json files of recorded fixtures") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no valid JSON ({error}); it may be cut short: copy it again") from error
    if not isinstance(about, dict) or not isinstance(about.get("kind"), str):
        raise InputError(f"{path} has no 'kind', so it is no fixture; give the .json files of recorded fixtures")
    beside = path.with_suffix(".safetensors")
    if not beside.is_file():
        if "tensors" in about or "sha256" in about:
            raise InputError(f"{beside} is missing; it holds the tensors of {path.name} and must lie beside it")
        return Fixture(path, about["kind"], about, {}, None)
    try:
        stored = beside.read_bytes()
        tensors = load(stored)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{beside} cannot be read ({error}); it may be cut short: copy it again") from error
    return Fixture(path, about["kind"], about, tensors, hashlib.sha256(stored).hexdigest())


# ------------------------------------------------------------------------------------------------------------- reports


@dataclass(frozen=True)
class Row:
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


def not_checked(group: str, why: str) -> Row:
    return Row(group, "not checked", note=why)


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


def compare(group: str, found: Mapping[str, Tensor], recorded: Mapping[str, Tensor], tolerance: Tolerance, note: str = "") -> Row:
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
    return Row(
        group,
        "OFF" if worst.off or worst.problems else "ok",
        len(recorded),
        worst.deviation if worst.where else None,
        str(tolerance),
        "; ".join(part for part in said if part),
    )


def compare_names(group: str, found: set[str], recorded: set[str], note: str = "") -> Row:
    """Two sets of names, which must be equal."""
    lacking, beyond = sorted(recorded - found), sorted(found - recorded)
    said = [f"{len(names)} {what}: {names[0]}" for names, what in ((lacking, "lacking"), (beyond, "too many")) if names]
    return Row(group, "OFF" if said else "ok", len(recorded), tolerance="equal", note="; ".join([*said, note] if note else said))


def compare_lines(group: str, found: Mapping[str, Any], recorded: Mapping[str, Any], note: str = "") -> Row:
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
    return Row(group, verdict, len(recorded), tolerance="equal", note="; ".join([*said, note] if note else said))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def stacked(numbers: Mapping[str, float]) -> dict[str, Tensor]:
    """Plain numbers as float64 tensors, to be compared."""
    return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in numbers.items()}
