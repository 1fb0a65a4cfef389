"""Adapter exports: load back equal, fit in little, and refuse what they do not belong to."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from datamodules.errors import InputError
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.tuning import set_tuning
from lightning_modules.checkpoints.adapter_export import build_adapter, export_adapter, load_adapter
from lightning_modules.checkpoints.fingerprint import backbone_fingerprint
from lightning_modules.checkpoints.trainable import load_trainable, trainable_state_dict


def trained(tiny: Any, mode: str = "adapter", seed: int = 0, **options: Any) -> tuple[Any, MultiWayAdapter | None]:
    network = tiny.network("dinov2", "bert", seed=seed)
    adapter = MultiWayAdapter(**options) if mode == "adapter" else None
    if adapter:
        adapter.inject(network)
    set_tuning(network, adapter, mode)
    with torch.no_grad():
        for index, parameter in enumerate(p for p in network.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.2)
    return network, adapter


def outputs(network: Any, tiny: Any) -> torch.Tensor:
    return torch.cat([network.encode_images(tiny.images()), network.encode_texts(tiny.texts())])


@pytest.mark.parametrize(
    "options", [{}, {"reading": "text", "towers": "text"}, {"reading": "released", "knowledge_extractor": False}]
)
@pytest.mark.parametrize("injected", [False, True])
def test_an_export_loads_onto_its_backbone_and_computes_the_same(tiny, tmp_path, options, injected):
    network, adapter = trained(tiny, **options)
    folder = export_adapter(
        network, adapter, tmp_path / "export", backbone={"model": {"image": "tiny"}, "seed": 0}, notes="Recall@1: 12.3"
    )
    assert {path.name for path in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    state = load_file(folder / "adapter_model.safetensors")
    assert state.keys() == trainable_state_dict(network).keys()
    card = (folder / "README.md").read_text()
    assert "Recall@1: 12.3" in card
    assert f"{sum(t.numel() for t in state.values()):,} trained parameters" in card

    fresh = tiny.network("dinov2", "bert")
    with torch.no_grad():  # heads are in the export: theirs need not be the same before
        fresh.image_projection.weight.zero_()
    if injected:
        MultiWayAdapter(**options).inject(fresh)
    loaded = load_adapter(fresh, folder)
    assert loaded is not None
    assert adapter is not None
    assert loaded.describe() == adapter.describe()
    assert torch.equal(outputs(fresh, tiny), outputs(network, tiny))


def test_heads_alone_can_be_exported(tiny, tmp_path):
    network, _ = trained(tiny, "head")
    export_adapter(network, None, tmp_path)
    fresh = tiny.network("dinov2", "bert")
    assert load_adapter(fresh, tmp_path) is None
    assert torch.equal(outputs(fresh, tiny), outputs(network, tiny))


def wrong_depth(tiny: Any) -> Any:
    network = tiny.network("dinov2", "bert")
    del network.text.model.encoder.layer[1]
    return network


def wrong_weights(tiny: Any) -> Any:
    network = tiny.network("dinov2", "bert")
    with torch.no_grad():
        network.image.model.layernorm.weight += 1e-3
    return network


def wrong_shape(tiny: Any) -> Any:
    network = tiny.network("dinov2", "bert")
    network.text.model.embeddings.word_embeddings = torch.nn.Embedding(41, 16)
    return network


def wrong_adapter(tiny: Any) -> Any:
    network = tiny.network("dinov2", "bert")
    MultiWayAdapter(knowledge_extractor_mid=3).inject(network)
    return network


@pytest.mark.parametrize(("build", "words"), [
    (lambda tiny: tiny.network("vit", "bert"), ["another architecture", "image.model", "which this network lacks"]),
    (wrong_depth, ["another architecture", "text.model.encoder.layer.1"]),
    (wrong_shape, ["text.model.embeddings.word_embeddings.weight is [41, 16] here and was [40, 16] there"]),
    (wrong_weights, ["other weights", "1 of", "image.model.layernorm.weight", "allow_other_weights"]),
    (wrong_adapter, ["other shapes", "[64] instead of [3]"]),
])  # fmt: skip
def test_another_backbone_is_refused_with_the_reason(tiny, tmp_path, build, words):
    network, adapter = trained(tiny)
    export_adapter(network, adapter, tmp_path)
    other = build(tiny)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_adapter(other, tmp_path)
    assert all(word in str(error.value) for word in [str(tmp_path), *words]), str(error.value)
    assert before.keys() == other.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_other_weights_can_be_allowed(tiny, tmp_path):
    network, adapter = trained(tiny)
    export_adapter(network, adapter, tmp_path)
    other = wrong_weights(tiny)
    load_adapter(other, tmp_path, allow_other_weights=True)
    name = "image.model.encoder.layer.0.multiway.knowledge_extractor.up.weight"
    assert torch.equal(other.state_dict()[name], network.state_dict()[name])


def edit(folder: Any, change: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    change(config)
    (folder / "adapter_config.json").write_text(json.dumps(config))


def drop_a_tensor(folder: Any) -> None:
    state = load_file(folder / "adapter_model.safetensors")
    state.pop("logit_scale")
    save_file(state, folder / "adapter_model.safetensors")


def cut(folder: Any) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(("damage", "words"), [
    (lambda f: (f / "adapter_config.json").unlink(), ["no adapter export", "adapter_config.json"]),
    (lambda f: (f / "adapter_config.json").write_text("{"), ["not valid JSON"]),
    (lambda f: (f / "adapter_config.json").write_text("[]"), ["not written by crosslight"]),
    (lambda f: edit(f, lambda c: c.update(library="peft")), ["not written by crosslight"]),
    (lambda f: edit(f, lambda c: c.pop("backbone")), ["'backbone' is missing"]),
    (lambda f: edit(f, lambda c: c.update(format=9)), ["format 9"]),
    (lambda f: edit(f, lambda c: c.update(tensors=[])), ["tensors is []; it must be a mapping"]),
    (lambda f: edit(f, lambda c: c["backbone"]["tensors"].update(x={"shape": "3"})), ["backbone", "x"]),
    (lambda f: edit(f, lambda c: c.update(trained="logit_scale")), ["trained is 'logit_scale'; it must be a list"]),
    (lambda f: edit(f, lambda c: c["adapter"].update(class_path=["os.system"])), ["class_path is ['os.system']"]),
    (lambda f: edit(f, lambda c: c["adapter"].update(class_path="os.system")), ["os.system", "which is not crosslight's"]),
    (lambda f: edit(f, lambda c: c["adapter"].update(class_path="datamodules.files.atomic.write_atomically")),
     ["write_atomically is not an adapter"]),
    (lambda f: edit(f, lambda c: c["adapter"].update(class_path="lightning_modules.adapters.adapter.inspect.Signature")),
     ["cannot be built", "adapter.inspect"]),
    (lambda f: edit(f, lambda c: c["adapter"]["init_args"].update(depth=1)), ["cannot be built", "depth"]),
    (lambda f: edit(f, lambda c: c["files"].update({"a" * 256: "0"})), ["which is no file of this folder"]),
    (lambda f: edit(f, lambda c: c["files"].update({"../secret": "0"})), ["'../secret', which is no file of this folder"]),
    (lambda f: edit(f, lambda c: c["files"].update({"lost.json": "0"})), ["lacks lost.json"]),
    (drop_a_tensor, ["adapter_model.safetensors was damaged or changed"]),
    (cut, ["adapter_model.safetensors was damaged or changed"]),
])  # fmt: skip
def test_damaged_exports_are_input_errors(tiny, tmp_path, damage, words):
    network, adapter = trained(tiny)
    export_adapter(network, adapter, tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError) as error:
        load_adapter(tiny.network("dinov2", "bert"), tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_what_cannot_be_exported(tiny, tmp_path):
    network, adapter = trained(tiny)
    with pytest.raises(InputError, match=r"backbone_config.model.weights is /data/w.pt, a path of this machine"):
        export_adapter(network, adapter, tmp_path, backbone={"model": {"weights": "/data/w.pt"}, "seed": 0})
    with pytest.raises(InputError, match="no parameter of the network trains"):
        export_adapter(network.requires_grad_(False), None, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    network, adapter = trained(tiny)
    with pytest.raises(InputError, match="is not an empty folder"):
        export_adapter(network, adapter, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_with_this_very_export_is_left_as_it_is(tiny, tmp_path):
    """It was written by a command that was killed before it could say so."""
    network, adapter = trained(tiny)
    folder = export_adapter(network, adapter, tmp_path / "export")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    export_adapter(network, adapter, folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    with torch.no_grad():
        network.logit_scale.add_(1)
    with pytest.raises(InputError, match="already holds an adapter export, of something else"):
        export_adapter(network, adapter, folder)
    cut(folder)
    with torch.no_grad():
        network.logit_scale.sub_(1)
    with pytest.raises(InputError, match="damaged or changed"):
        export_adapter(network, adapter, folder)


def test_full_tuning_is_exported_whole(tiny, tmp_path):
    network, _ = trained(tiny, "full")
    unused = "image.model.embeddings.mask_token"
    export_adapter(network, None, tmp_path, frozen={unused: network.state_dict()[unused]})
    fresh = tiny.network("dinov2", "bert", seed=3)  # nothing of it is left
    load_adapter(fresh, tmp_path)
    assert torch.equal(outputs(fresh, tiny), outputs(network, tiny))


def test_frozen_tensors_that_no_backbone_brings_go_along(tiny, tmp_path):
    network, adapter = trained(tiny)
    name = "image.model.layernorm.weight"
    export_adapter(network, adapter, tmp_path, frozen={name: network.state_dict()[name]})
    other = wrong_weights(tiny)
    load_adapter(other, tmp_path)
    assert torch.equal(outputs(other, tiny), outputs(network, tiny))


def test_fingerprints_are_of_the_values_not_of_dtype_or_training(tiny):
    network, _ = trained(tiny)
    found = backbone_fingerprint(network)
    assert not any(".multiway." in name or "_projection" in name for name in found["tensors"])
    again, _ = trained(tiny)
    with torch.no_grad():
        for parameter in again.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert backbone_fingerprint(again) == found
    assert backbone_fingerprint(again.double()) == found
    other, _ = trained(tiny, seed=1)
    assert backbone_fingerprint(other)["architecture"] == found["architecture"]
    assert backbone_fingerprint(other)["weights"] != found["weights"]


def test_trainable_state_goes_back_only_where_it_belongs(tiny):
    network, _ = trained(tiny)
    state = {name: value.clone() for name, value in trainable_state_dict(network).items()}
    assert state.keys() == {name for name, p in network.named_parameters() if p.requires_grad}
    fresh = tiny.network("dinov2", "bert")
    adapter = MultiWayAdapter()
    adapter.inject(fresh)
    set_tuning(fresh, adapter, "adapter")
    load_trainable(fresh, state)
    assert torch.equal(outputs(fresh, tiny), outputs(network, tiny))
    name = next(iter(state))
    for changed, words in (
        ({k: v for k, v in state.items() if k != name}, f"missing: {name}"),
        ({**state, "image.model.layernorm.weight": torch.ones(16)}, "do not belong: image.model.layernorm.weight"),
        ({**state, name: torch.zeros(1, 2, 3)}, f"{name} [1, 2, 3]"),
    ):
        with pytest.raises(InputError) as error:
            load_trainable(fresh, changed, "last.ckpt")
        assert words in str(error.value)
        assert "last.ckpt" in str(error.value)


def test_statistics_of_a_batch_norm_that_trains_are_trained_state(tiny):
    network = tiny.network("cnn")
    set_tuning(network, None, "head")
    assert not any("running" in name for name in trainable_state_dict(network))
    assert any("running_mean" in name for name in backbone_fingerprint(network)["tensors"])
    set_tuning(network, None, "full")
    assert trainable_state_dict(network).keys() == network.state_dict().keys()


def test_trained_state_goes_back_beside_a_frozen_batch_norm(tiny):
    """A file without the frozen norms: they make up their number of batches, so PyTorch does not count it as missing."""
    network = tiny.network("cnn")
    set_tuning(network, None, "head")
    assert any(name.endswith("num_batches_tracked") for name in network.state_dict())
    state = {name: tensor + 1 for name, tensor in trainable_state_dict(network).items()}
    frozen = {name: tensor.clone() for name, tensor in network.state_dict().items() if name not in state}
    load_trainable(network, state)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, {**frozen, **state}[name], rtol=0, atol=0, msg=name)


def test_every_adapter_option_survives_its_description():
    adapter = MultiWayAdapter(
        reading="text", scale=0.3, alignment_enhancer_mid="ffn", towers="image", layer_norm="out", dropout=0.0
    )
    again = build_adapter(json.loads(json.dumps(adapter.describe())))
    assert again.describe() == adapter.describe()
