"""Models from what a folder says of itself, and what `load` says of folders that cannot give one."""

from __future__ import annotations

import pickle
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_run import configuration, run_folder

import lightning_modules
from datamodules.errors import InputError
from lightning_modules.checkpoints.adapter_export import export_adapter
from lightning_modules.checkpoints.weights import read_weights
from lightning_modules.loading import build, read_checkpoint


def test_a_run_and_its_export_give_the_same_model_without_touching_the_random_state(tmp_path: Path) -> None:
    model = run_folder(tmp_path / "run")
    backbone = {"model": configuration(), "seed": 7}
    export_adapter(model.network, model.adapter, tmp_path / "export", backbone=backbone)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for folder in ("run", "export"):
        loaded = lightning_modules.load(tmp_path / folder)
        assert not any(module.training for module in loaded.modules())
        for name, value in model.network.state_dict().items():
            assert torch.equal(loaded.network.state_dict()[name], value), (folder, name)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])


def test_randomly_initialized_parts_are_those_of_the_seed(tmp_path: Path) -> None:
    run_folder(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"seed_everything": 8}))
    with pytest.raises(InputError, match="same architecture but with other weights"):
        lightning_modules.load(tmp_path)


def test_folders_that_give_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a run folder"):
        lightning_modules.load(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"format": 1')
    with pytest.raises(InputError, match=r"adapter_config.json is not valid JSON"):
        lightning_modules.load(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "config.yaml").write_text("name: something\n")
    with pytest.raises(InputError, match=r"config.yaml has no section `model`"):
        lightning_modules.load(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": configuration()}))
    with pytest.raises(InputError, match=r"holds no best checkpoint"):
        lightning_modules.load(tmp_path)


def test_an_export_of_unknown_origin_points_to_load_adapter(tmp_path: Path) -> None:
    model = run_folder(tmp_path / "run")
    export_adapter(model.network, model.adapter, tmp_path / "export")
    with pytest.raises(InputError, match=r"does not say how its backbone is built. Use load_adapter"):
        lightning_modules.load(tmp_path / "export")


def test_configuration_of_another_version(tmp_path: Path) -> None:
    config = configuration()
    config["init_args"]["no_such_option"] = 1
    with pytest.raises(InputError, match=r"no_such_option"):
        build(config)


def test_a_class_of_somebody_else_needs_trust_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder(tmp_path / "run")
    (tmp_path / "somebody_elses.py").write_text(
        "from lightning_modules.objectives.contrastive import ContrastiveLoss\nclass Own(ContrastiveLoss): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["model"]["init_args"]["objective"] = "somebody_elses.Own"  # no class_path beside it
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"config.yaml names the class 'somebody_elses.Own'"):
        lightning_modules.load(tmp_path / "run")
    assert "somebody_elses" not in sys.modules
    model: Any = lightning_modules.load(tmp_path / "run", trust=["somebody_elses"])
    assert type(model.objective).__name__ == "Own"


@pytest.mark.parametrize(("content", "words"), [
    (b"", "is empty"), (b"not a checkpoint", "cannot be read"), (b"PK\x03\x04 half a zip", "cannot be read"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
    (pickle.dumps({"state_dict": 1}), "cannot be read: it is no file of plain tensors"),
    (pickle.dumps(Path("x")), "cannot be read"),
])  # fmt: skip
def test_damaged_checkpoints(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "best.ckpt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"best.ckpt.* {words}") as error:
        read_checkpoint(file)
    assert "\n" not in str(error.value)


def test_a_truncated_checkpoint_and_a_foreign_one(tmp_path: Path) -> None:
    run_folder(tmp_path)
    file = tmp_path / "checkpoints" / "best.ckpt"
    whole = file.read_bytes()
    for length in (len(whole) - 1, len(whole) - 1000, len(whole) // 2, 100):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match="truncated"):
            lightning_modules.load(tmp_path)
        with pytest.raises(InputError, match="truncated"):
            read_weights(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(InputError, match="not of a crosslight run"):
        lightning_modules.load(tmp_path)
