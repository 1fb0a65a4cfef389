"""Towers of Hugging Face: text pooling, weights files and folders, and their errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from datamodules.errors import InputError
from lightning_modules.checkpoints.fill import fill
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.networks.towers.hugging_face import HFImageTower, HFTextTower


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


def test_of_its_own_size_a_tower_may_leave_a_rest_unread() -> None:
    tower = HFImageTower(config={**DINO, "image_size": 20}, weights="random").eval()
    with torch.no_grad():
        assert tower(torch.zeros(2, 3, 20, 20)).shape == (2, tower.width)


@pytest.mark.parametrize(("build", "words"), [
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
