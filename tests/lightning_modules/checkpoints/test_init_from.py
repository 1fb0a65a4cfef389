"""New training from old weights: what is taken, what may be missing, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from datamodules.errors import InputError
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.tuning import set_tuning
from lightning_modules.checkpoints.adapter_export import export_adapter
from lightning_modules.checkpoints.init_from import require_backbone, short_fingerprint, start_from
from lightning_modules.checkpoints.run_folder import RESULTS_SCHEMA
from lightning_modules.checkpoints.trainable import trainable_state_dict


def adapted(tiny: Any, seed: int) -> tuple[Any, MultiWayAdapter]:
    network, adapter = tiny.network(seed=seed), MultiWayAdapter()
    adapter.inject(network)
    set_tuning(network, adapter, "adapter")
    return network, adapter


def checkpoint(network: Any, path: Path) -> Path:
    """A whole network as a Lightning checkpoint holds it."""
    torch.save({"state_dict": {f"network.{name}": value for name, value in network.state_dict().items()}}, path)
    return path


def same(ours: Any, theirs: Any, names: set[str]) -> bool:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in names)


def test_a_new_adapter_on_old_weights_starts_fresh(tiny: Any, tmp_path: Path) -> None:
    parent = tiny.network(seed=1)
    network, adapter = adapted(tiny, seed=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fresh = start_from(network, adapter, checkpoint(parent, tmp_path / "parent.ckpt"))
    assert set(fresh) == {name for name in before if adapter.owns(name)}
    assert fresh
    assert same(network, parent, set(parent.state_dict()))
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in fresh)


def test_heads_may_be_missing(tiny: Any, tmp_path: Path) -> None:
    parent, network = tiny.network(seed=1), tiny.network(seed=2)
    heads = {name for name, _ in network.head_parameters()}
    towers = {name: value for name, value in parent.state_dict().items() if name not in heads}
    save_file({name: value.contiguous() for name, value in towers.items()}, tmp_path / "towers.safetensors")
    assert set(start_from(network, None, tmp_path / "towers.safetensors")) == heads
    assert same(network, parent, set(towers))
    assert network.loaded_heads == frozenset()


def test_heads_that_the_file_brings_are_entered(tiny: Any, tmp_path: Path) -> None:
    parent, network = tiny.network(seed=1), tiny.network(seed=2)
    heads = {name for name, _ in network.head_parameters()}
    some = {name: value for name, value in parent.state_dict().items() if name != "logit_scale"}
    torch.save(some, tmp_path / "some.pt")
    assert start_from(network, None, tmp_path / "some.pt") == ["logit_scale"]
    assert network.loaded_heads == heads - {"logit_scale"}
    start_from(network, None, checkpoint(parent, tmp_path / "parent.ckpt"))
    assert network.loaded_heads == heads


def test_a_run_folder_gives_its_best_checkpoint(tiny: Any, tmp_path: Path) -> None:
    parent, network = tiny.network(seed=1), tiny.network(seed=2)
    (tmp_path / "checkpoints").mkdir()
    checkpoint(parent, tmp_path / "checkpoints" / "chosen.ckpt")
    fit = {"steps": 1, "epochs": 1, "best_checkpoint": "checkpoints/chosen.ckpt"}
    (tmp_path / "results.json").write_text(json.dumps({"schema": RESULTS_SCHEMA, "fit": fit}))
    assert start_from(network, None, tmp_path) == []
    assert same(network, parent, set(parent.state_dict()))
    (tmp_path / "checkpoints" / "chosen.ckpt").unlink()
    with pytest.raises(InputError, match="kept no best checkpoint"):
        start_from(network, None, tmp_path)


def test_an_export_or_adapter_checkpoint_brings_adapter_and_heads(tiny: Any, tmp_path: Path) -> None:
    parent, adapter = adapted(tiny, seed=1)
    tiny.randomise(parent, "multiway")
    export_adapter(parent, adapter, tmp_path / "export")
    state = {f"network.{name}": value for name, value in trainable_state_dict(parent).items()}
    torch.save({"state_dict": state}, tmp_path / "best.ckpt")
    for source in (tmp_path / "export", tmp_path / "best.ckpt"):
        network, own = adapted(tiny, seed=1)
        assert start_from(network, own, source) == []
        assert same(network, parent, set(parent.state_dict()))


def test_what_does_not_fit_is_refused(tiny: Any, tmp_path: Path) -> None:
    network, adapter = adapted(tiny, seed=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = tiny.network(seed=2)

    with pytest.raises(InputError, match=r"do not belong to this network \(.*multiway.*Use the network, and the adapter"):
        start_from(plain, None, checkpoint(network, tmp_path / "adapted.ckpt"))

    wrong = dict(plain.state_dict())
    wrong["image_projection.weight"] = torch.zeros(3, 3)
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(InputError, match=r"wrong.pt: other shapes .*: image_projection.weight \[3, 3\] instead of \[8, 16\]"):
        start_from(network, adapter, tmp_path / "wrong.pt")

    lacking = {name: value for name, value in plain.state_dict().items() if "blocks.0" not in name}
    torch.save(lacking, tmp_path / "lacking.pt")
    with pytest.raises(InputError, match=r"backbone tensors of this network are missing there \(image.model.blocks.0"):
        start_from(network, adapter, tmp_path / "lacking.pt")

    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither a weights file, a run folder, nor an adapter export"):
        start_from(network, adapter, tmp_path / "empty")
    with pytest.raises(InputError, match=r"nowhere does not exist .* If it was moved, say where it is now: model\.init_from"):
        start_from(network, adapter, tmp_path / "nowhere")
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())  # untouched by all of these


def test_checkpoints_of_trained_parts_know_their_backbone(tiny: Any) -> None:
    network, _ = adapted(tiny, seed=1)
    stored, state = short_fingerprint(network), trainable_state_dict(network)
    require_backbone(network, stored, state, "it")
    tiny.randomise(network, "multiway")
    require_backbone(network, stored, state, "it")  # training moves only what is not part of it
    other, _ = adapted(tiny, seed=2)
    with pytest.raises(InputError, match="it was trained on a backbone of the same architecture but with other weights"):
        require_backbone(other, stored, state, "it")
    with pytest.raises(InputError, match="it belongs to a network of another architecture"):
        require_backbone(tiny.network(text="roberta"), stored, state, "it")
    with pytest.raises(InputError, match="does not say which backbone"):
        require_backbone(network, None, state, "it")
