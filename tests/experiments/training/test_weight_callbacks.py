"""Callbacks that change weights: which are refused, and what Lightning's EMA becomes."""

from __future__ import annotations

import pytest
from jsonargparse import Namespace
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Callback

from datamodules.errors import InputError
from experiments.training.weight_callbacks import refuse_unsound, with_own_ema


class Own(callbacks.WeightAveraging):
    pass


@pytest.mark.parametrize(
    "callback",
    [
        callbacks.StochasticWeightAveraging(swa_lrs=0.1), callbacks.EMAWeightAveraging(), Own(), callbacks.BackboneFinetuning(),
        callbacks.ModelPruning("l1_unstructured"), callbacks.LearningRateFinder(), callbacks.BatchSizeFinder(),
        callbacks.GradientAccumulationScheduler({1: 2}),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_by_name(callback: Callback) -> None:
    with pytest.raises(InputError, match=rf"trainer.callbacks: {type(callback).__name__} .*\.$"):
        refuse_unsound([callbacks.Timer(), callback])
    refuse_unsound([callbacks.Timer(), callbacks.EarlyStopping("val/rsum")])


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
