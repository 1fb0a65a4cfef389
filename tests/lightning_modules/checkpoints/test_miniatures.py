"""`miniature:NAME` wherever a weights file may be named, with its SHA-256 checked."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
import torch
import yaml
from shipped import ship
from torch import nn

from datamodules.errors import InputError
from lightning_modules.checkpoints import miniatures
from lightning_modules.checkpoints.fill import fill
from lightning_modules.checkpoints.init_from import start_from
from lightning_modules.checkpoints.places import is_path
from lightning_modules.checkpoints.stored import stored
from lightning_modules.checkpoints.weights import read_weights, write_weights
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.towers.timm import TimmImageTower
from lightning_modules.networks.uniter import UniterRetrieval

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 16,
        "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 2}


PACKAGE = miniatures.FOLDER
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the package's miniatures."""
    monkeypatch.setattr(miniatures, "FOLDER", tmp_path)
    return tmp_path


def _beit3(weights: str) -> nn.Module:
    return BEiT3Retrieval(32, 24, 2, 2, 48, 16, 40, 16, max_tokens=12, weights=weights, init="scratch")


def _uniter(weights: str) -> nn.Module:
    return UniterRetrieval(24, 2, 2, 48, 40, 16, 5, tokenizer=None, weights=weights)


def _tower(weights: str) -> nn.Module:
    return TimmImageTower("vit_tiny_patch16_224", weights=weights, image_size=32, options=VIT)


def _language(weights: str) -> nn.Module:
    return LanguageModel(config=GPT2, weights=weights, max_tokens=12)


@pytest.mark.parametrize("build", [_beit3, _uniter, _tower, _language])
def test_networks_towers_and_language_models_take_it_by_name(build: Callable[[str], nn.Module]) -> None:
    made = build("random")
    ship("small", stored(made))
    again = fill(build("miniature:small"))
    for (name, tensor), given in zip(again.state_dict().items(), made.state_dict().values(), strict=True):
        assert tensor.dtype is given.dtype, name  # it computes in fp32
        torch.testing.assert_close(tensor, given.half().to(given.dtype), rtol=0, atol=0)
    assert not getattr(again, "fresh", frozenset())


def test_a_new_training_starts_from_one_or_from_a_part_of_it() -> None:
    ship("own", {"weight": torch.full((1, 2), 3.0), "bias": torch.zeros(1)})
    ship("within", {"network.head.weight": torch.full((1, 2), 4.0), "network.head.bias": torch.zeros(1), "else": torch.zeros(1)})
    network = nn.Linear(2, 1)
    start_from(network, None, "miniature:own")
    assert network.weight.tolist() == [[3.0, 3.0]]
    start_from(network, None, "miniature:within#network.head.")
    assert network.weight.tolist() == [[4.0, 4.0]]
    assert read_weights("miniature:within#network.head.").keys() == {"weight", "bias"}
    with pytest.raises(InputError, match=r"in an official layout, is for `weights`"):
        start_from(network, None, "miniature:within")


def test_an_unknown_name_tells_the_known_ones_closest_first() -> None:
    with pytest.raises(InputError, match=r"none is in .*make pretrain-miniature"):
        read_weights("miniature:any")
    for name in ("beit3_base", "uniter_base", "vision"):
        ship(name, {"weight": torch.ones(1)})
    for wrong, near in (("beit3_bas", "beit3_base"), ("Vision", "vision"), ("../vision", "vision")):
        with pytest.raises(InputError, match=rf"no miniature:{re.escape(wrong)}; .*\(the closest name first\) {near}, \w+, \w+$"):
            read_weights(f"miniature:{wrong}")


def test_a_changed_file_is_refused_with_a_remedy(folder: Path) -> None:
    ship("vision", {"weight": torch.ones(2)})
    file = folder / "vision.safetensors"
    write_weights({"weight": torch.zeros(2)}, file)  # whole in itself, and yet not what was released
    with pytest.raises(InputError, match=r"miniature:vision: .*vision.safetensors has SHA-256 .* git checkout"):
        fill(_tower("miniature:vision"))
    file.unlink()
    with pytest.raises(InputError, match=r"vision.safetensors is not there; install crosslight again"):
        read_weights("miniature:vision")
    (folder / miniatures.SUMS_FILE).write_text("what is this\n")
    with pytest.raises(InputError, match=r"SHA256SUMS, line 1: no SHA-256"):
        read_weights("miniature:vision")


def test_the_name_is_no_path_of_this_machine() -> None:
    for key in ("weights", "init_from"):
        assert not is_path(("network", key), "miniature:vision#blocks.")


def test_a_text_names_the_weights_that_it_depends_on() -> None:
    ship("vision", {"weight": torch.ones(2)})
    (digest,) = miniatures.read_sums(miniatures.FOLDER).values()
    text = '{"weights": "miniature:vision#a.", "other": "miniature:gone", "more": "random"}'
    assert miniatures.sums_named_in(text) == {"vision": digest, "gone": ""}
    assert miniatures.sums_named_in("vision") == {}


# --------------------------------------------------------------------------------------------------------- what is shipped


def _named() -> list[str]:
    return list(yaml.safe_load((ROOT / "experiments" / "pretraining" / "miniatures.yaml").read_text()))


def test_a_wheel_takes_in_weights_cards_and_sums() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lightning_modules"]
    inside = PACKAGE.relative_to(ROOT / "lightning_modules")
    for file in (miniatures.SUMS_FILE, *(f"{name}.{kind}" for name in _named() for kind in ("safetensors", "md"))):
        assert any(PurePosixPath(inside / file).match(pattern) for pattern in patterns), file


def test_what_is_committed_is_whole_small_and_has_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miniatures, "FOLDER", PACKAGE)
    names = _named()
    assert sorted(miniatures.read_sums(PACKAGE)) == sorted(names)
    assert {file.name for file in PACKAGE.iterdir()} == {
        miniatures.SUMS_FILE, *(f"{name}.{kind}" for name in names for kind in ("safetensors", "md"))
    }  # fmt: skip
    for name in names:
        assert all(tensor.dtype is torch.float16 for tensor in read_weights(f"miniature:{name}").values() if tensor.ndim > 1)
        assert (PACKAGE / f"{name}.md").read_text().startswith(f"# miniature:{name}\n")
    assert sum(file.stat().st_size for file in PACKAGE.iterdir()) <= 25_000_000
