"""What all towers share: pooling of images and layer ids."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("kind", ["timm_vit", "vit", "clip", "dinov2"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_image_pooling_is_what_it_says(tiny, kind, pooling):
    tower = tiny.image_tower(kind, pooling)
    pixels = tiny.images().pixels_B3HW
    output = tower.model.forward_features(pixels) if kind == "timm_vit" else tower.model(pixels).last_hidden_state
    naive = {"cls": [output[:, 0]], "mean": [output[:, 1:].mean(1)], "cls+mean": [output[:, 0], output[:, 1:].mean(1)]}[pooling]
    assert torch.equal(tower.eval()(pixels), torch.cat(naive, 1))
    assert tower.width == 16 * len(naive)


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
