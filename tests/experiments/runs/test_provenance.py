"""What a run says it was computed on, and leaves alone, on a machine that has a GPU as well."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from datamodules.flickr30k import Flickr30k
from experiments.runs.provenance import device_state


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("gpu")
def test_a_run_on_the_processor_is_no_run_on_the_gpu_beside_it() -> None:
    assert device_state("cpu")["kind"] == "cpu"
    assert device_state("cpu")["name"] != "a GPU"
    assert device_state("cuda")["name"] == device_state()["name"] == "a GPU"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_memory_is_pinned_for_the_gpu_that_trains(device: str) -> None:
    data = Flickr30k(root="nowhere")
    assert data._loading()["pin_memory"]
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))  # type: ignore[assignment]
    assert data._loading()["pin_memory"] == (device == "cuda:0")
