"""Whole dual encoders of Hugging Face: the library's own vectors, scores, transform and tokens, on tiny random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_library_models import CONFIGS, dual_encoder
from torch import Tensor, nn

from datamodules.records import ImageBatch, TextBatch
from lightning_modules.checkpoints.fill import fill
from lightning_modules.networks.pretrained_dual_encoder import HFDualEncoder, patches

KINDS = sorted(CONFIGS)


@pytest.fixture(scope="module")
def networks() -> dict[str, HFDualEncoder]:
    torch.set_num_threads(1)
    return {kind: dual_encoder(kind) for kind in KINDS}


def images(network: HFDualEncoder, rows: int = 3) -> ImageBatch:
    size = network.inputs.image.size
    pixels = torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))
    return ImageBatch(tuple(map(str, range(rows))), torch.arange(rows), pixels)


def texts(network: HFDualEncoder) -> TextBatch:
    """Three captions of 5, 3 and 8 tokens, each with the end token 2; padded as the network's tokenizer does."""
    length = network.inputs.text.max_tokens if network.inputs.text.padding == "max_length" else 8
    tokens = torch.zeros(3, length, dtype=torch.int64)
    draw = torch.Generator().manual_seed(2)
    for row, words in enumerate((5, 3, 8)):
        tokens[row, :words] = torch.randint(4, 40, (words,), generator=draw)
        tokens[row, 0], tokens[row, words - 1] = 1, 2
    mask = torch.arange(length) < torch.tensor([[5], [3], [8]])
    return TextBatch(("0", "1", "2"), ("", "", ""), torch.arange(3), torch.arange(3), tokens, mask)


def library_model(network: HFDualEncoder, folder: Path) -> Any:
    """A model that the library builds and fills itself, from the weights of a network of ours in the library's own names."""
    from transformers import AutoModel

    settings = network.model.config
    model = AutoModel.from_config(settings)
    state = {name.removeprefix("model."): value for name, value in network.state_dict().items() if name.startswith("model.")}
    for name, shape in (("logit_scale", None), ("logit_bias", None), ("temperature", None)):
        own = getattr(model, name, shape)
        if own is not None:
            value = network.logit_bias if name == "logit_bias" else network.logit_scale
            state[name] = (value.neg().exp() if name == "temperature" else value).detach().reshape(own.shape)
    model.load_state_dict(state, strict=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "library.safetensors")
    return model.eval()


def inputs_of(kind: str, network: HFDualEncoder) -> dict[str, Tensor]:
    batch, captions = images(network), texts(network)
    pixels: dict[str, Any] = {"pixel_values": batch.pixels_B3HW}
    if kind == "siglip2":
        pixels = {
            "pixel_values": patches(batch.pixels_B3HW, 8), "pixel_attention_mask": torch.ones(3, 4, dtype=torch.int64),
            "spatial_shapes": torch.full((3, 2), 2),
        }  # fmt: skip
    mask = {} if kind.startswith("siglip") else {"attention_mask": captions.mask_BT.long()}
    return {**pixels, "input_ids": captions.tokens_BT, **mask}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_vectors_and_scores_are_the_librarys(networks: Any, kind: str, tmp_path: Path) -> None:
    network = networks[kind]
    with torch.no_grad():
        network.logit_scale.fill_(1.5)
        if network.logit_bias is not None:
            network.logit_bias.fill_(-3.0)
    ours = network.encode_images(images(network)), network.encode_texts(texts(network))
    model = library_model(network, tmp_path)
    theirs = model(**inputs_of(kind, network))
    for own, vectors in zip(ours, (theirs.image_embeds, theirs.text_embeds), strict=True):
        assert own.norm(dim=-1).allclose(torch.ones(3))
        torch.testing.assert_close(own, nn.functional.normalize(vectors, dim=-1), rtol=0, atol=1e-5)
    scores = ours[0] @ ours[1].T * network.logit_scale.exp() + (network.logit_bias or 0.0)
    torch.testing.assert_close(scores, theirs.logits_per_image, rtol=1e-5, atol=1e-5)
    # and its own file of weights fills a network of another start
    other = dual_encoder(kind, seed=1, weights=str(tmp_path / "library.safetensors"))
    assert not other.encode_images(images(other)).allclose(ours[0])
    fill(other)
    assert torch.equal(other.encode_images(images(other)), ours[0])
    assert torch.equal(other.encode_texts(texts(other)), ours[1])
    assert other.logit_scale.item() == pytest.approx(1.5)
    assert other.loaded_heads == {name for name, _ in other.head_parameters()}
    assert other.fresh == frozenset()
