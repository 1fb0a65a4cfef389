"""Values that no run can have, on configurations that were parsed."""

from __future__ import annotations

from typing import Any

import pytest

from datamodules.errors import InputError
from experiments.training.ranges import require_values


def trained(**trainer: Any) -> None:
    require_values("run", {"seed_everything": 1, "trainer": trainer})


def test_an_average_that_would_begin_behind_the_last_epoch() -> None:
    ema = {"class_path": "lightning_modules.callbacks.ema.EMA", "init_args": {"update_starting_at_epoch": 3}}
    for callbacks in (ema, [{"class_path": "a.B"}, ema]):
        trained(callbacks=callbacks, max_epochs=4)
        trained(callbacks=callbacks, max_epochs=-1, max_steps=2)  # as a rehearsal has it
        trained(callbacks=callbacks, max_epochs=None)
        with pytest.raises(InputError, match=r"trainer.callbacks: EMA would begin at epoch 3 .*the training has 3"):
            trained(callbacks=callbacks, max_epochs=3)
