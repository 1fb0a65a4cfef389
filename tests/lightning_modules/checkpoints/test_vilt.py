"""Weights for a ViLT: its own file, and a ViT of timm's to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import tiny_vilt
import torch
from safetensors.torch import save_file

from datamodules.errors import InputError
from datamodules.records import ImageBatch
from lightning_modules.checkpoints.fill import fill
from lightning_modules.checkpoints.fresh import fresh_parameters
from lightning_modules.checkpoints.stored import stored
from lightning_modules.networks.vilt import ViLT


def vit(**sizes: Any) -> Any:
    torch.manual_seed(1)
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
    model = timm.create_model("vit_tiny_patch16_224", **(options | sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def from_file(state: dict[str, torch.Tensor], path: Path) -> ViLT:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return fill(ViLT(config=tiny_vilt.CONFIG, tokenizer="unused", weights=str(path))).eval()


def test_its_own_file_comes_back_whole(tmp_path: Path) -> None:
    network = tiny_vilt.vilt()
    back = from_file(stored(network), tmp_path / "vilt.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert back.loaded_heads == {"model.rank_output.weight", "model.rank_output.bias"}
    assert not fresh_parameters(back)


@torch.no_grad()
def test_a_vit_starts_patches_and_layers(tmp_path: Path) -> None:
    """Its patches alone, through the layers, are what the ViT makes of them."""
    model = vit()
    network = from_file(model.state_dict(), tmp_path / "vit.safetensors")
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    embedded = network.embed_images(ImageBatch(("", ""), torch.arange(2), pixels)).states_ND.unflatten(0, (2, 17))
    x = embedded - network.model.vilt.embeddings.token_type_embeddings.weight[1]
    for layer in network.blocks:
        x, _ = layer(x, None)
    torch.testing.assert_close(network.model.vilt.layernorm(x), model.forward_features(pixels), atol=1e-4, rtol=1e-4)
    fresh = {name.removeprefix("model.").removeprefix("vilt.").split(".")[0] for name in fresh_parameters(network)}
    assert fresh == {"embeddings", "pooler", "rank_output"}
    assert not any(".encoder." in name or "patch" in name for name in fresh_parameters(network))
    assert network.loaded_heads == frozenset()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: vit(depth=4).state_dict(), "of more layers than this ViLT"),
        (lambda: vit(depth=2).state_dict(), "of other sizes than this ViLT"),
        (lambda: vit(embed_dim=32).state_dict(), "of other sizes than this ViLT"),
        (lambda: vit(init_values=0.1).state_dict(), "has a blocks.0.ls1.gamma, for which ViLT has no place"),
        (lambda: {"vilt.layernorm.weight": torch.ones(24)}, "does not fit ViLT of the given config"),
    ],
)
def test_what_does_not_fit_says_so(state: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        from_file(state(), tmp_path / "file.safetensors")
