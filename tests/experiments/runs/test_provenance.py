"""What a run says it was computed on, and leaves alone, on a machine that has a GPU as well."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules.files.stand_in import begin
from datamodules.flickr30k import Flickr30k
from experiments.runs.provenance import device_state, git_state, reads_stand_ins


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


def test_the_checkout_around_a_virtual_environment_is_not_ours(tmp_path: Path) -> None:
    ours, installed = tmp_path / "ours", tmp_path / ".venv" / "experiments"
    for folder in (ours, installed):
        folder.mkdir(parents=True)
        (folder / "code.py").touch()
    (tmp_path / ".gitignore").write_text(".venv\n")
    for words in ("init --quiet", "add .", "-c user.name=a -c user.email=a@b commit --quiet -m one"):
        subprocess.run(["git", "-C", str(tmp_path), *words.split()], check=True)
    assert git_state(ours)["revision"]
    assert git_state(ours)["dirty"] is False
    assert git_state(installed) == {"revision": None, "dirty": None}


def test_stand_ins_are_found_in_what_a_run_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CROSSLIGHT_CACHE", "HF_HOME"):
        monkeypatch.delenv(variable, raising=False)
    begin(tmp_path / "made", {"of": "coco"})
    (tmp_path / "made" / "best.ckpt").touch()
    (tmp_path / "real").mkdir()
    config = {"data": {"init_args": {"root": str(tmp_path / "real"), "x": ["words / with a slash", 3, None]}}}
    assert not reads_stand_ins(config)
    assert reads_stand_ins({**config, "model": [{"weights": f"{tmp_path}/made/best.ckpt#network."}]})
    monkeypatch.chdir(tmp_path / "made")
    assert reads_stand_ins({**config, "model": [{"weights": "best.ckpt"}]}), "named without a folder"
    assert not reads_stand_ins({**config, "prompt": "a " * 3000}), "no path could be so long"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "real"))
    assert not reads_stand_ins(config)
    for cache in ("HF_HOME", "HF_HUB_CACHE", "CROSSLIGHT_CACHE"):
        monkeypatch.setenv(cache, str(tmp_path / "made"))
        assert reads_stand_ins(config), cache
        monkeypatch.setenv(cache, str(tmp_path / "real"))
