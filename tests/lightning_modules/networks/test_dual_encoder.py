"""Towers and dual encoder: pooling, layer ids, frozen towers, checkpointing, loading, and their errors."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from datamodules.errors import InputError
from datamodules.records import ImageBatch
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.tuning import set_mode, set_tuning
from lightning_modules.checkpoints.fill import fill
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.networks.towers.hugging_face import HFImageTower, HFTextTower
from lightning_modules.networks.towers.timm import TimmImageTower


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def loss(network: DualEncoder, tiny: Any) -> torch.Tensor:
    similarity = network.encode_images(tiny.images()) @ network.encode_texts(tiny.texts()).T
    return (similarity * network.logit_scale.exp()).log_softmax(-1).diagonal().sum()


class Saved:
    """Counts the bytes autograd keeps for the backward pass."""

    def __enter__(self) -> Saved:
        self.bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


PAIRS = [("timm_vit", "bert"), ("vit", "roberta"), ("clip", "clip"), ("dinov2", "bert"), ("cnn", "bert")]


@pytest.mark.parametrize(("image", "text"), PAIRS)
def test_every_tower_gives_unit_vectors_and_full_tuning_reaches_every_trainable_parameter(tiny, image, text):
    network = tiny.network(image, text)
    set_tuning(network, None, "full")
    images, texts = network.encode_images(tiny.images(size=network.inputs.image.size)), network.encode_texts(tiny.texts())
    assert images.shape == texts.shape == (4, 8)
    assert images.norm(dim=1).allclose(torch.ones(4))
    assert texts.norm(dim=1).allclose(torch.ones(4))
    ((images @ texts.T) * network.logit_scale.exp()).log_softmax(-1).diagonal().sum().backward()
    without = {name for name, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert not without  # DDP would wait for these for ever


@pytest.mark.parametrize("kind", ["timm_vit", "vit", "clip", "dinov2"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_image_pooling_is_what_it_says(tiny, kind, pooling):
    tower = tiny.image_tower(kind, pooling)
    pixels = tiny.images().pixels_B3HW
    output = tower.model.forward_features(pixels) if kind == "timm_vit" else tower.model(pixels).last_hidden_state
    naive = {"cls": [output[:, 0]], "mean": [output[:, 1:].mean(1)], "cls+mean": [output[:, 0], output[:, 1:].mean(1)]}[pooling]
    assert torch.equal(tower.eval()(pixels), torch.cat(naive, 1))
    assert tower.width == 16 * len(naive)


def test_text_pooling_sees_real_tokens_only(tiny):
    batch = tiny.texts()
    for pooling in ("cls", "mean", "last"):
        tower = tiny.text_tower("bert", pooling).eval()
        hidden = tower.model(batch.tokens_BT, attention_mask=batch.mask_BT.long()).last_hidden_state
        pooled = tower(batch.tokens_BT, batch.mask_BT)
        for row, (tokens, mask) in enumerate(zip(hidden, batch.mask_BT, strict=True)):
            real = tokens[mask]
            naive = {"cls": real[0], "mean": real.mean(0), "last": real[-1]}[pooling]
            assert torch.allclose(pooled[row], naive, atol=1e-6)
        padded = torch.cat([batch.tokens_BT, torch.zeros(4, 2, dtype=torch.int64)], 1)
        mask = torch.cat([batch.mask_BT, torch.zeros(4, 2, dtype=torch.bool)], 1)
        assert torch.allclose(tower(padded, mask), pooled, atol=1e-5)


def test_layer_ids_count_from_the_embeddings_and_align_at_the_top(tiny):
    network = tiny.network()
    network.text = HFTextTower(
        config={"model_type": "bert", "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
        | {"num_attention_heads": 2},
        tokenizer="none",
    )
    assert network.num_layers == 2
    ids = {
        "image.model.cls_token": 0,
        "image.model.pos_embed": 0,
        "image.model.patch_embed.proj.weight": 0,
        "image.model.blocks.0.norm1.weight": 1,
        "image.model.blocks.1.mlp.fc1.weight": 2,
        "image.model.norm.weight": 3,
        "image_projection.weight": 3,
        "text_projection.weight": 3,
        "logit_scale": 3,
        "text.model.embeddings.word_embeddings.weight": 1,  # one layer less than the image tower: one closer to the top
        "text.model.encoder.layer.0.attention.self.query.weight": 2,
    }
    assert set(ids) <= {name for name, _ in network.named_parameters()}
    assert {name: network.layer_id(name) for name in ids} == ids


@pytest.mark.parametrize(("kind", "stem", "last"), [
    ("clip", "model.pre_layrnorm.weight", "model.post_layernorm.weight"),
    ("dinov2", "model.embeddings.cls_token", "model.layernorm.weight"),
    ("vit", "model.embeddings.position_embeddings", "model.layernorm.weight"),
    ("cnn", "model.conv_stem.weight", "model.conv_head.weight"),
])  # fmt: skip
def test_layer_ids_of_other_towers(tiny, kind, stem, last):
    tower = tiny.image_tower(kind)
    names = [name for name, _ in tower.named_parameters()]
    assert {stem, last} <= set(names)
    assert tower.layer_id(stem) == 0
    assert tower.layer_id(last) == tower.num_layers + 1
    assert {tower.layer_id(name) for name in names} == set(range(tower.num_layers + 2))


def test_a_frozen_tower_records_nothing_and_a_tower_that_trains_does(tiny):
    network = tiny.network()
    set_tuning(network, None, "head")
    with Saved() as saved:
        vector = network.image(tiny.images().pixels_B3HW)
    assert saved.bytes == 0
    assert not vector.requires_grad
    assert network.encode_images(tiny.images()).requires_grad  # the projection still trains
    set_tuning(network, None, "full")
    with Saved() as saved:
        assert network.image(tiny.images().pixels_B3HW).requires_grad
    assert saved.bytes > 0
    with torch.no_grad():
        assert not network.encode_images(tiny.images()).requires_grad
    pixels = tiny.images().pixels_B3HW.requires_grad_()  # gradients to the pixels (explanations) pass a frozen tower
    set_tuning(network, None, "head")
    network.image(pixels).sum().backward()
    assert pixels.grad is not None


@pytest.mark.parametrize(("image", "text"), PAIRS[:4])
@pytest.mark.parametrize("mode", ["full", "adapter"])
@pytest.mark.parametrize("order", ["checkpoint_first", "adapter_first"])
def test_checkpointing_gives_the_same_gradients_from_less_memory(tiny, image, text, mode, order):
    plain = tiny.network(image, text)
    adapter = MultiWayAdapter(dropout=0.0) if mode == "adapter" else None
    networks = [plain, copy.deepcopy(plain)]
    for network in networks:
        steps = [
            lambda network=network: (
                network is plain or (network.image.checkpoint_activations(), network.text.checkpoint_activations())
            ),
            lambda network=network: adapter and adapter.inject(network),
        ]
        for step in steps if order == "checkpoint_first" else steps[::-1]:
            step()
        tiny.randomise(network, "multiway")
        set_tuning(network, adapter, mode)
        set_mode(network, True, adapter)  # frozen blocks in eval mode: where the libraries' own switches stay off
    found = []
    for network in networks:
        with Saved() as saved:
            value = loss(network, tiny)
        value.backward()
        found.append((value, gradients(network), saved.bytes))
    (value, grads, kept), (other_value, other_grads, other_kept) = found
    assert torch.equal(value, other_value)
    assert grads.keys() == other_grads.keys()
    assert all(torch.equal(grads[name], other_grads[name]) for name in grads)
    assert other_kept < 0.6 * kept
    assert [*networks[1].state_dict()] == [*plain.state_dict()]


def test_checkpointing_repeats_dropout(tiny):
    plain = tiny.network("vit", "bert", drop=0.3)
    remembering = copy.deepcopy(plain)
    remembering.image.checkpoint_activations()
    remembering.text.checkpoint_activations()
    results = []
    for network in (plain, remembering):
        set_tuning(network, None, "full")
        network.train()
        torch.manual_seed(3)
        loss(network, tiny).backward()
        results.append(gradients(network))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    torch.manual_seed(4)
    plain.zero_grad()
    loss(plain, tiny).backward()
    assert not all(torch.equal(results[1][name], g) for name, g in gradients(plain).items())  # dropout is really on


@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_encoders_compute_the_same(tiny, checkpointed):
    torch._dynamo.reset()
    network = tiny.network(checkpoint_activations=checkpointed)
    adapter = MultiWayAdapter(dropout=0.0)
    adapter.inject(network)
    tiny.randomise(network, "multiway")
    set_tuning(network, adapter, "adapter")
    loss(network, tiny).backward()
    expected = gradients(network)
    compiled = copy.deepcopy(network)
    compiled.zero_grad()
    compiled.compile_encoders(backend="eager")  # aot_eager takes ten seconds and graphs no other code
    loss(compiled, tiny).backward()
    found = gradients(compiled)
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.allclose(expected[name], found[name], atol=1e-5), name
    assert [*compiled.state_dict()] == [*network.state_dict()]


def test_autocast_gives_fp32_unit_vectors_close_to_fp32(tiny):
    network = tiny.network("dinov2", "bert")
    exact = network.encode_images(tiny.images())
    with torch.autocast("cpu", torch.bfloat16):
        rough = network.encode_images(tiny.images())
    assert rough.dtype == torch.float32
    assert (exact * rough).sum(1).min() > 0.99
    assert not torch.equal(exact, rough)


# ------------------------------------------------------------------------------------------------------------ loading


def test_a_timm_weights_file_loads_strictly_in_half_precision_and_without_its_classifier(tiny, tmp_path):
    import timm

    source = timm.create_model("test_efficientnet", num_classes=7)
    state = {key: value.half() if value.is_floating_point() else value for key, value in source.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    tower = fill(TimmImageTower("test_efficientnet", weights=str(tmp_path / "w.safetensors"), mean=[0.1, 0.2, 0.3]))
    assert tower.model.conv_stem.weight.dtype == torch.float32
    assert torch.equal(tower.model.conv_stem.weight, source.conv_stem.weight.half().float())
    assert tower.image_input.mean == (0.1, 0.2, 0.3)
    assert tower.width == source.head_hidden_size


def test_a_hugging_face_weights_file_and_folder_load(tiny, tmp_path):
    source = tiny.image_tower("dinov2").model
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    config = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2} | {
        "image_size": 16, "patch_size": 8, "mlp_ratio": 4,
    }  # fmt: skip
    tower = fill(HFImageTower(config=config, weights=str(tmp_path / "w.safetensors"), image_size=32)).eval()
    assert tower.image_input.size == 32
    assert tower(tiny.images(size=32).pixels_B3HW).shape == (4, 16)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    again = fill(HFImageTower(config=config, weights=str(tmp_path / "w.pt")))
    assert all(torch.equal(value, again.model.state_dict()[key]) for key, value in source.state_dict().items())

    bert = tiny.text_tower("bert")
    bert.model.save_pretrained(tmp_path / "bert")
    text = HFTextTower(name=str(tmp_path / "bert"), max_tokens=8)
    batch = tiny.texts()
    assert torch.equal(text.eval()(batch.tokens_BT, batch.mask_BT), bert.eval()(batch.tokens_BT, batch.mask_BT))
    assert text.text_input.tokenizer == str(tmp_path / "bert")


def test_one_side_of_a_clip_folder_loads(tiny, tmp_path):
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(text_config={**sizes, "vocab_size": 40, "max_position_embeddings": 8},
                                vision_config={**sizes, "image_size": 16, "patch_size": 8}))  # fmt: skip
    clip.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]}))
    image = HFImageTower(name=str(tmp_path), pooling="pooler", image_size=32).eval()
    assert image.image_input.mean == (0.4, 0.4, 0.4)
    assert not image.unused_parameters()
    pixels = tiny.images(size=32).pixels_B3HW
    expected = clip.eval().vision_model(pixels, interpolate_pos_encoding=True).pooler_output
    assert torch.allclose(image(pixels), expected, atol=1e-6)
    text = HFTextTower(name=str(tmp_path), pooling="last", max_tokens=8).eval()
    batch = tiny.texts()
    hidden = clip.text_model(batch.tokens_BT, attention_mask=batch.mask_BT.long()).last_hidden_state
    assert torch.allclose(text(batch.tokens_BT, batch.mask_BT)[0], hidden[0, int(batch.mask_BT[0].sum()) - 1], atol=1e-6)


def test_an_image_size_resamples_position_embeddings_of_timm(tiny):
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 16}
    tower = TimmImageTower("vit_tiny_patch16_224", image_size=32, options=options)
    assert tower(tiny.images(size=32).pixels_B3HW).shape == (4, 16)
    assert tower.image_input.size == 32


DINO = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def bad_files(folder: Any) -> None:
    good = HFImageTower(config=DINO).model.state_dict()
    save_file({k: v for k, v in good.items() if "norm1" not in k}, folder / "missing.safetensors")
    save_file({**good, "more.weight": torch.zeros(1)}, folder / "extra.safetensors")
    save_file({**good, "layernorm.weight": torch.zeros(5)}, folder / "shape.safetensors")
    whole = (folder / "extra.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(good, folder / "full.pt")
    (folder / "cut.pt").write_bytes((folder / "full.pt").read_bytes()[:500])
    torch.save({"oops": DualEncoder}, folder / "pickle.pt")
    torch.save([1, 2], folder / "list.pt")


@pytest.mark.parametrize(("file", "words"), [
    ("nothing.safetensors", ["nothing.safetensors", "does not exist"]),
    ("missing.safetensors", ["missing.safetensors", "2 missing: encoder.layer.0.norm1.bias", "architecture"]),
    ("extra.safetensors", ["1 not in the model: more.weight"]),
    ("shape.safetensors", ["layernorm.weight [5] instead of [16]"]),
    ("cut.safetensors", ["cut.safetensors", "truncated"]),
    ("cut.pt", ["cut.pt", "truncated"]),
    ("pickle.pt", ["pickle.pt", "more than plain tensors"]),
    ("list.pt", ["list.pt", "no plain dictionary"]),
])  # fmt: skip
def test_bad_weights_files_are_named_with_their_keys(tmp_path, file, words):
    bad_files(tmp_path)
    with pytest.raises(InputError) as error:
        fill(HFImageTower(config=DINO, weights=str(tmp_path / file)))
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(("build", "words"), [
    (lambda: TimmImageTower("vit_tinny_patch16_224"), ["no model 'vit_tinny_patch16_224'", "vit_"]),
    (lambda: TimmImageTower("test_vit", options={"dept": 3}), ["dept"]),
    (lambda: TimmImageTower("test_vit", weights="x", pretrained=True), ["not both"]),
    (lambda: TimmImageTower("test_efficientnet", pooling="cls"), ["no class token", "mean"]),
    (lambda: TimmImageTower("test_vit", mean=[0.5]), ["mean needs three numbers"]),
    (lambda: HFImageTower(), ["either name", "config"]),
    (lambda: HFImageTower(config={**DINO, "hiden_size": 3}), ["hiden_size"]),
    (lambda: HFImageTower(config={**DINO, "model_type": "dinov9"}), ["dinov9"]),
    (lambda: HFImageTower(config=DINO, image_size=30), ["30", "multiple of the patch size 8"]),
    (lambda: HFImageTower(name="/no/such/folder"), ["/no/such/folder", "config.json"]),
    (lambda: HFTextTower(config={"model_type": "bert"}), ["tokenizer"]),
    (lambda: HFTextTower(config={"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 12, "max_position_embeddings": 9},
                         tokenizer="t", max_tokens=10), ["max_tokens 10", "9"]),
])  # fmt: skip
def test_bad_options_are_named(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_images_without_pixels_are_an_input_error(tiny):
    with pytest.raises(InputError, match="pixels"):
        tiny.network().encode_images(ImageBatch(("a",), torch.arange(1)))
