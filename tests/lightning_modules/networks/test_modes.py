"""Evaluation for a while: modes come back, and threads take turns."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_run import run_folder
from torch import nn

from datamodules.records import ImageBatch
from lightning_modules.networks.modes import evaluating


def test_each_part_has_its_own_mode_again() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(model):
        assert not any(part.training for part in model.modules())
        with evaluating(model):  # again, in the same thread
            assert not model.training
    assert [part.training for part in model.modules()] == [True, True, False]


def test_threads_that_share_a_model_get_what_each_would_get_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MultiWay-Adapter's hooks hand on the input of a block's FFN by its module: threads that took each other's would give the
    vectors of other images."""
    model = run_folder(tmp_path / "run").eval()
    ffn = model.network.image.model.blocks[0].mlp
    ffn.register_forward_pre_hook(lambda *_: time.sleep(0.01))  # between the hook that keeps it and the one that takes it
    images = [ImageBatch((str(row),), torch.tensor([row]), torch.randn(1, 3, 16, 16)) for row in range(8)]
    alone = [model.encode_batch(image) for image in images]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(model.encode_batch, images))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
