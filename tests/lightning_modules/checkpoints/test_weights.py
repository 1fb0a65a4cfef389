"""Weight files: whole, and a part of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules.errors import InputError
from lightning_modules.checkpoints.weights import read_weights


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "best.ckpt"
    names = ("network.image.model.a", "network.image.model.b.c", "network.images.a", "logit_scale")
    torch.save({"state_dict": {name: torch.full((2,), float(at)) for at, name in enumerate(names)}, "epoch": 3}, path)
    return path


def test_a_part_is_what_begins_with_the_prefix(file: Path) -> None:
    part = read_weights(f"{file}#network.image.model.")
    assert {name: tensor.tolist() for name, tensor in part.items()} == {"a": [0.0, 0.0], "b.c": [1.0, 1.0]}
    assert len(read_weights(file)) == 4


def test_a_part_that_is_not_there_says_what_is(file: Path) -> None:
    with pytest.raises(InputError, match=r"no tensor whose name begins with 'network\.text\.' \(it has logit_scale, network"):
        read_weights(f"{file}#network.text.")
    with pytest.raises(InputError, match=r"none\.ckpt does not exist"):
        read_weights(f"{file.parent / 'none.ckpt'}#network.")


def test_a_file_may_have_the_mark_in_its_name(file: Path) -> None:
    named = file.rename(file.with_name("run#1.ckpt"))
    assert len(read_weights(named)) == 4
    assert list(read_weights(f"{named}#network.images.")) == ["a"]
