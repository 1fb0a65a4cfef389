"""Seeds of one thread do not reach another, nor the process afterwards."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from lightning_modules.networks.random_state import drawing


def _drawn(seed: int) -> list[float]:
    with drawing():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        found = []
        for _ in range(3):
            found += [float(torch.rand(())), float(np.random.rand()), random.random()]
            time.sleep(0.001)
        return found


def test_threads_draw_what_each_would_draw_alone() -> None:
    state = torch.get_rng_state()
    alone = [_drawn(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(_drawn, range(8))) == alone
    assert torch.equal(state, torch.get_rng_state())
