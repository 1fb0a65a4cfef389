"""CLIP's projected vector, against the whole CLIP of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_captioner import CLIP, END, FAMILIES, VOCABULARY

from datamodules.errors import InputError
from lightning_modules.checkpoints.fill import fill
from lightning_modules.networks.captioner import Captioner
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.towers.clip import ProjectedCLIPTower

TEXT = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=dict(CLIP), projection_dim=8)).eval()
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return folder, model


@torch.no_grad()
def test_vector_is_clips_image_embedding(whole: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = whole
    tower = ProjectedCLIPTower(str(folder)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    found = model.vision_model(pixel_values=pixels)
    expected = model.visual_projection(found.pooler_output)
    torch.testing.assert_close(tower(pixels), expected)
    assert (tower.width, tower.num_layers, tower.image_input.size) == (8, 2, 16)
    language = LanguageModel(
        config={**FAMILIES["gpt2"], "vocab_size": VOCABULARY, "bos_token_id": END, "eos_token_id": END}, max_tokens=12
    )
    pooled, tokens = Captioner(tower, language, visual="pooled"), Captioner(tower, language)
    assert (pooled.visual_width, tokens.visual_width) == (8, 12)
    torch.testing.assert_close(tokens.visual_tokens(pixels), found.last_hidden_state)
    save_file(tower.model.state_dict(), tmp_path / "vision.safetensors")
    again = fill(ProjectedCLIPTower(config=CLIP, weights=str(tmp_path / "vision.safetensors"))).eval()
    assert torch.equal(again(pixels), tower(pixels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either name"),
        ({"name": "/nowhere/at/all"}, "no usable CLIP"),
        ({"name": "/nowhere/at/all", "weights": "x"}, "weights .* go with config"),
        ({"config": {**CLIP, "width": 3}}, "no option width"),
    ],
)
def test_bad_towers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProjectedCLIPTower(**options)
