"""Lightning's own checks of its Trainer's options, asked before a folder is made and weights are read."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer

from datamodules.errors import InputError
from experiments.training.failures import one_line

_PLAIN = (str, int, float, list, dict, timedelta, type(None))
_SETTLED = ("callbacks", "logger", "enable_progress_bar", "enable_model_summary", "default_root_dir")
# What Lightning says where it does not say what to do.
_ADVICE = (
    (r"No supported gpu backend found.*", "this machine has no GPU that torch can use. Set it to cpu or auto."),
    (r"`devices` selected with `CPUAccelerator`.*|`Trainer\(devices=.*using cpu accelerator.*",
     "on a CPU it is the number of processes, from 1 on (for GPUs set trainer.accelerator to gpu)."),
)  # fmt: skip


def require_trainer(options: Mapping[str, Any]) -> int:
    """Make a Trainer of the options that are plain values, and let it go.

    Args:
        options: Of the Trainer's constructor.

    Returns:
        Devices of a machine that it would use.

    Raises:
        InputError: It refuses one of them, or would take another precision in its place.
    """
    asked = {name: value for name, value in options.items() if name not in _SETTLED and isinstance(value, _PLAIN)}
    if not isinstance(asked.get("plugins"), (str, type(None))):  # objects: the run's own Trainer takes them
        del asked["plugins"]
    try:
        trainer = _trainer(asked)
    except Exception as error:
        option = next((name for name, value in asked.items() if value is not None and _without(asked, name)), None)
        text = one_line(error)
        for theirs, ours in _ADVICE:
            text = re.sub(theirs, ours, text)
        said = f"trainer.{option} is {asked[option]!r}" if option else "the Trainer refuses its options"
        raise InputError(f"{said}: {text}") from error
    precision = str(asked.get("precision"))
    if precision in ("16", "16-mixed") and trainer.precision != "16-mixed":
        raise InputError(f"trainer.precision is {precision!r}, which a CPU cannot do: set it to bf16-mixed or 32-true.")
    return trainer.num_devices


def _trainer(options: Mapping[str, Any]) -> Trainer:
    with warnings.catch_warnings(action="ignore"):  # the run's own Trainer says it again
        return Trainer(**options, logger=False, enable_progress_bar=False, enable_model_summary=False)


def _without(options: Mapping[str, Any], name: str) -> bool:
    """Whether all is well without one option: then it is the mistake."""
    try:
        _trainer({key: value for key, value in options.items() if key != name})
    except Exception:
        return False
    return True
