"""Callbacks that change weights: which are refused, and what Lightning's EMA becomes."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from jsonargparse import Namespace
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Callback

from datamodules.errors import InputError
from experiments.training.weight_callbacks import refuse_unsound, with_own_ema


class Own(callbacks.WeightAveraging):
    pass


@pytest.mark.parametrize(
    "kind",
    [
        callbacks.StochasticWeightAveraging, callbacks.EMAWeightAveraging, Own, callbacks.BackboneFinetuning,
        callbacks.ModelPruning, callbacks.LearningRateFinder, callbacks.BatchSizeFinder, callbacks.GradientAccumulationScheduler,
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_by_name(kind: type[Callback], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_callbacks", SimpleNamespace(Own=Own))
    room = "own_callbacks" if kind is Own else "lightning.pytorch.callbacks"
    sound = [Namespace(class_path=f"lightning.pytorch.callbacks.{name}") for name in ("Timer", "EarlyStopping")]
    unsound = Namespace(class_path=f"{room}.{kind.__name__}")
    for given in (unsound, [*sound, unsound]):
        with pytest.raises(InputError, match=rf"trainer.callbacks: {kind.__name__} .*\.$"):
            refuse_unsound(given)
    for given in (sound, sound[0], None):
        refuse_unsound(given)


@pytest.mark.parametrize("path", ["lightning.pytorch.callbacks", "lightning.pytorch.callbacks.weight_averaging"])
def test_lightnings_ema_becomes_ours_with_its_options(path: str) -> None:
    given = Namespace(
        class_path=f"{path}.EMAWeightAveraging", init_args=Namespace(decay=0.9, update_every_n_steps=2, multi_avg_fn=None)
    )
    timer = Namespace(class_path="lightning.pytorch.callbacks.Timer", init_args=Namespace(duration=None))
    ours, other = with_own_ema([given, timer])
    assert ours.class_path == "lightning_modules.callbacks.ema.EMA"
    assert vars(ours.init_args) == {"decay": 0.9, "update_every_n_steps": 2}
    assert other.class_path == timer.class_path
    assert with_own_ema(None) is None


def test_an_option_that_ours_has_not() -> None:
    path = "lightning.pytorch.callbacks.EMAWeightAveraging"
    with pytest.raises(InputError, match="has no option avg_fn"):
        with_own_ema(Namespace(class_path=path, init_args=Namespace(decay=0.9, avg_fn="mine.average")))
