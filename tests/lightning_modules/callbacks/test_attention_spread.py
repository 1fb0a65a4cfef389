"""How spread attention is, over training: the three numbers, when they are measured, and that measuring changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training import captioning, fit, retrieval

from datamodules.errors import InputError
from lightning_modules.callbacks.attention_spread import AttentionSpread, spread


def test_even_and_collapsed_maps() -> None:
    mask_BT = torch.tensor([[True, True, False], [True, False, False]])
    even_BHTV = torch.full((2, 1, 3, 8), 1 / 8)
    collapsed_BHTV = torch.zeros(2, 1, 3, 8)
    collapsed_BHTV[..., 5] = 1
    collapsed_BHTV[~mask_BT[:, None]] = torch.eye(8)[0]  # padding does not count
    apart_BHTV = torch.zeros(2, 1, 3, 8)
    apart_BHTV[0, 0, 0, 1] = apart_BHTV[0, 0, 1, 2] = apart_BHTV[1, 0, 0, 3] = 1
    expected = {"tokens": [8, 1, 1], "peak": [1 / 8, 1, 1], "same": [1, 1, 1 / 3]}
    for number, maps_BHTV in enumerate((even_BHTV, collapsed_BHTV, apart_BHTV)):
        for name, value in spread(maps_BHTV, mask_BT).items():
            assert value.item() == pytest.approx(expected[name][number]), (name, number)


def test_it_measures_and_changes_nothing(tiny: Any) -> None:
    plain, batches = captioning(tiny)
    fit(plain, batches)
    watched, batches = captioning(tiny)
    fit(watched, batches, callbacks=[AttentionSpread()], log_every_n_steps=2)
    logged = {name for name in watched.trainer.logged_metrics if name.startswith("attention/")}
    assert {"attention/tokens", "attention/peak", "attention/same", "attention/tokens_layer0"} <= logged
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_it_refuses_what_has_no_attention_to_images(tiny: Any) -> None:
    module, batches = retrieval(tiny)
    with pytest.raises(InputError, match="has none: take the callback out"):
        fit(module, batches, callbacks=[AttentionSpread()])
