"""UNITER's optimizer, its learning rate, and the annealing of IAIS (`optim/{adamw,sched}.py`, `utils/tsa.py`)."""

from __future__ import annotations

import re

import torch

from experiments.parity.compare import OUTPUT, Tolerance, compare, not_checked, stacked
from experiments.parity.recordings import Recording
from experiments.parity.uniter.build import Ledger
from lightning_modules.objectives.annealing import Annealing
from lightning_modules.optimization import Optimization, UniterAdamW, schedule_factor

_NAME = re.compile(r"(linear|exp|log)_schedule(?:_scale([\d.]+))?")
_WEIGHT = Tolerance(1e-6)  # recorded in float32
_NUMBER = r"([-+.\d]+(?:e[-+]?\d+)?)"
_ADAMW = re.compile(rf"lr={_NUMBER}.*betas=\({_NUMBER}, ?{_NUMBER}\).*eps={_NUMBER}.*wd={_NUMBER}")
RECIPE = (1e-2, 0.9, 0.98, 1e-6, 0.01)  # of the recordings


def check(ledger: Ledger) -> None:
    annealing(ledger)
    learning_rate(ledger)
    adamw(ledger)


def annealing(ledger: Ledger) -> None:
    """Weights at equal distances from the first step to the last, recorded as tensors and again in the .json."""
    recording = ledger.recording
    named = {name: len(tensor) for name, tensor in recording.group("outputs/tsa").items()}
    listed = recording.about.get("tsa", {})
    found = {}
    for name, count in (named | {name: len(values) for name, values in listed.items()}).items():
        if (match := _NAME.fullmatch(name)) and count > 1:
            anneal = Annealing(match[1], float(match[2] or 5))  # type: ignore[arg-type]
            found[name] = torch.tensor([anneal(step, count - 1) for step in range(count)], dtype=torch.float64)
    if named:
        ledger.add("annealing", {f"outputs/tsa/{name}": found[name] for name in named if name in found}, _WEIGHT)
    wanted = {name: torch.tensor(values, dtype=torch.float64) for name, values in listed.items() if name in found}
    ledger.rows.append(compare("annealing, .json", found, wanted, _WEIGHT))
    if unknown := sorted((named.keys() | listed.keys()) - found.keys()):
        ledger.rows.append(not_checked("annealing", f"no counterpart of {', '.join(unknown)}"))


def learning_rate(ledger: Ledger) -> None:
    """Recorded by the number of steps that are done after the update it is for: ours counts those before it."""
    recorded = {int(step): float(value) for step, value in ledger.recording.about.get("lr_schedule", {}).items()}
    if len(recorded) < 3:
        ledger.rows.append(not_checked("learning rate", "the file does not record it"))
        return
    told = ledger.recording.about
    total = int(told.get("num_train_steps", max(recorded)))
    peak = float(told.get("learning_rate", max(recorded.values())))
    warmup = int(told.get("warmup_steps", max(recorded, key=lambda step: recorded[step])))
    settings = Optimization(lr=peak, min_lr=1e-8, warmup_fraction=warmup / total, schedule="linear")
    found = {f"step {step}": peak * schedule_factor(step - 1, total, settings) for step in recorded}
    wanted = {f"step {step}": value for step, value in recorded.items()}
    note = f"peak {peak:g} at {warmup} of {total}, read from the record"
    ledger.rows.append(compare("learning rate", stacked(found), stacked(wanted), Tolerance(1e-12), note))


def adamw(ledger: Ledger) -> None:
    """Parameters after every recorded gradient."""
    recording, name = ledger.recording, "outputs/adamw/params"
    start, slopes = (recording.tensors.get(f"inputs/adamw/{part}") for part in ("p0", "grads"))
    if start is None or slopes is None:
        ledger.rows.append(not_checked("AdamW", "the file does not record its inputs"))
        return
    told = _told(recording, name)
    lr, first, second, eps, decay = told or RECIPE
    parameter = torch.nn.Parameter(start.clone())
    optimizer = UniterAdamW([parameter], lr=lr, betas=(first, second), eps=eps, weight_decay=decay)
    after = []
    for slope in slopes:
        parameter.grad = slope.clone()
        optimizer.step()
        after.append(parameter.detach().clone())
    note = "" if told else "the file does not say its settings: those of the other recordings"
    ledger.add("AdamW", {name: torch.stack(after)}, OUTPUT, note)


def _told(recording: Recording, name: str) -> tuple[float, ...] | None:
    """lr, betas, eps and weight decay, where the file says them of a tensor."""
    about = recording.about.get("tensors", {}).get(name, {})
    match = _ADAMW.search(str(about.get("meaning", ""))) if isinstance(about, dict) else None
    return tuple(map(float, match.groups())) if match else None
