"""Towers of timm: weights files, image sizes, and their errors."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from datamodules.errors import InputError
from lightning_modules.checkpoints.fill import fill
from lightning_modules.networks.towers.timm import TimmImageTower


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


def test_an_image_size_resamples_position_embeddings_of_timm(tiny):
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 16}
    tower = TimmImageTower("vit_tiny_patch16_224", image_size=32, options=options)
    assert tower(tiny.images(size=32).pixels_B3HW).shape == (4, 16)
    assert tower.image_input.size == 32


@pytest.mark.parametrize(("build", "words"), [
    (lambda: TimmImageTower("vit_tinny_patch16_224"), ["no model 'vit_tinny_patch16_224'", "vit_"]),
    (lambda: TimmImageTower("test_vit", options={"dept": 3}), ["dept"]),
    (lambda: TimmImageTower("test_vit", weights="x", pretrained=True), ["not both"]),
    (lambda: TimmImageTower("test_efficientnet", pooling="cls"), ["no class token", "mean"]),
    (lambda: TimmImageTower("test_vit", mean=[0.5]), ["mean needs three numbers"]),
])  # fmt: skip
def test_bad_options_are_named(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)
