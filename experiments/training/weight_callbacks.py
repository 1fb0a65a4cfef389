"""Callbacks that change weights, or what trains: which can be right in a run, and which are refused before it begins."""

from __future__ import annotations

import inspect
import pydoc
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.callbacks.finetuning import BaseFinetuning

from datamodules.errors import InputError
from lightning_modules.callbacks.ema import EMA

_EMA = f"{EMA.__module__}.{EMA.__name__}"
_REFUSED: tuple[tuple[type[Callback], str], ...] = (
    (
        StochasticWeightAveraging,
        f"averages when the last validation is over, so that what is tested was never validated. Use {_EMA}.",
    ),
    (
        WeightAveraging,
        f"averages frozen weights too, and is gone when the metrics are computed. Use {_EMA}, or derive from it.",
    ),
    (
        BaseFinetuning,
        "changes in mid-run what trains, and no earlier checkpoint would fit any more. Choose with model.tuning and train_heads.",
    ),
    (ModelPruning, "renames the weights, so that no checkpoint would fit. Prune the finished model with torch.nn.utils.prune."),
    (LearningRateFinder, "trains before the run does. Search model.optimization.lr with `crosslight sweep run`."),
    (BatchSizeFinder, "changes data.batch_size, which decides the result. Give one that fits, or a gradient_cache_chunk."),
    (
        GradientAccumulationScheduler,
        "changes the length of an epoch in steps, which the schedule and a resumed run count on. Give "
        "trainer.accumulate_grad_batches.",
    ),
)  # fmt: skip


def with_own_ema(callbacks: Any) -> Any:
    """The `trainer.callbacks` of a parsed configuration with our EMA where Lightning's is named: same options, frozen weights are
    left alone.

    Raises:
        InputError: It has an option that ours has not.
    """
    ours = inspect.signature(EMA).parameters
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = getattr(callback, "class_path", None)
        if name in (f"lightning.pytorch.callbacks.{EMAWeightAveraging.__name__}", _path(EMAWeightAveraging)):
            given = vars(callback.init_args)
            if further := [option for option, value in given.items() if option not in ours and value is not None]:
                raise InputError(f"trainer.callbacks: {_EMA} has no option {', '.join(further)}; it has {', '.join(ours)}.")
            callback.class_path = _EMA
            callback.init_args = Namespace(**{option: value for option, value in given.items() if option in ours})
    return callbacks


def refuse_unsound(callbacks: Any) -> None:
    """Look at the `trainer.callbacks` of a parsed configuration, before anything is built.

    Raises:
        InputError: One of the callbacks cannot be right in a run that is validated, saved and resumed.
    """
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        named = pydoc.locate(str(getattr(callback, "class_path", "")))
        for kind, reason in _REFUSED:
            if isinstance(named, type) and issubclass(named, kind):
                raise InputError(f"trainer.callbacks: {named.__name__} {reason}")


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"
