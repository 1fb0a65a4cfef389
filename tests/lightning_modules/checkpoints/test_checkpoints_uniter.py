"""Official UNITER checkpoints in and out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules.errors import InputError
from lightning_modules.checkpoints.uniter import load_official, official_names, to_official, write_official
from lightning_modules.networks.uniter import UniterRetrieval

SIZES = {"width": 16, "num_layers": 2, "heads": 2, "ffn_width": 32, "vocab_size": 40, "text_positions": 12, "feature_width": 8}


def network(**changes: int) -> UniterRetrieval:
    torch.manual_seed(len(changes))
    return UniterRetrieval(**{**SIZES, **changes})


def pretraining(source: UniterRetrieval) -> dict[str, Tensor]:
    """The layout of uniter-base.pt: the encoder, the matching head and the heads of masked pre-training; no ranking head."""
    state = {name: tensor for name, tensor in to_official(source.state_dict()).items() if not name.startswith("rank_output")}
    state["cls.predictions.bias"] = torch.zeros(40)
    state["feat_regress.weight"] = state["uniter.img_embeddings.img_linear.weight"]
    state["region_classifier.net.0.weight"] = torch.zeros(16, 16)
    return state


def test_round_trip_is_exact(tmp_path: Path) -> None:
    source, target = network(), network()
    for parameter in target.parameters():
        torch.nn.init.zeros_(parameter)
    path = write_official(source, tmp_path / "model_step_1.pt")
    assert load_official(target, path) == frozenset()
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name


def test_every_tensor_has_its_official_name() -> None:
    names = [each for name in network().state_dict() for each in official_names(name)]
    assert len(names) == len(set(names)) == 22 + 16 * (SIZES["num_layers"])  # base, 12 layers: 214
    assert "uniter.encoder.layer.1.attention.self.value.bias" in names
    with pytest.raises(InputError, match="no place in the official UNITER layout"):
        official_names("encoder.layers.0.multiway.knowledge.down.weight")


def test_pretraining_files_start_the_ranking_head_from_matched(tmp_path: Path) -> None:
    source, target = network(), network()
    torch.save(pretraining(source), tmp_path / "uniter-tiny.pt")
    extra = load_official(target, tmp_path / "uniter-tiny.pt")
    assert extra == {"cls.predictions.bias", "feat_regress.weight", "region_classifier.net.0.weight"}
    assert torch.equal(target.rank.weight, source.itm.weight[1:])
    assert torch.equal(target.rank.bias, source.itm.bias[1:])


def test_a_fine_tuned_ranking_head_is_kept(tmp_path: Path) -> None:
    source, target = network(), network()
    torch.save(to_official(source.state_dict()), tmp_path / "model_step_5000.pt")
    load_official(target, tmp_path / "model_step_5000.pt")
    assert torch.equal(target.rank.weight, source.rank.weight)
    assert not torch.equal(target.rank.weight, source.itm.weight[1:])


def test_old_names_prefixes_and_half_precision(tmp_path: Path) -> None:
    source, target = network(), network()
    old = {}
    for name, tensor in pretraining(source).items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        old[name.replace("uniter.", "bert.", 1)] = tensor.half()
    torch.save(old, tmp_path / "old.pt")
    load_official(target, tmp_path / "old.pt")
    for name, tensor in source.state_dict().items():
        if not name.startswith("rank."):
            torch.testing.assert_close(target.state_dict()[name], tensor.half().float(), atol=0, rtol=0, msg=name)
    assert all(parameter.dtype == torch.float32 for parameter in target.parameters())


def test_what_does_not_fit_is_told_and_nothing_changes(tmp_path: Path) -> None:
    torch.save(to_official(network().state_dict()), tmp_path / "tiny.pt")
    deeper, wider = network(num_layers=3), network(width=32)
    before = {name: tensor.clone() for name, tensor in deeper.state_dict().items()}
    with pytest.raises(InputError, match=r"tiny\.pt lacks 16 tensors .*num_layers"):
        load_official(deeper, tmp_path / "tiny.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in deeper.state_dict().items())
    with pytest.raises(InputError, match=r"other shapes .* \[40, 16\], here \[40, 32\]"):
        load_official(wider, tmp_path / "tiny.pt")
    with pytest.raises(InputError, match="exists already"):
        write_official(network(), tmp_path / "tiny.pt")
