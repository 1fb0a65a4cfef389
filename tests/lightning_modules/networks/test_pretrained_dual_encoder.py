"""Whole dual encoders of Hugging Face: the library's own vectors, scores, transform and tokens, on tiny random models."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_library_models import CONFIGS, dual_encoder
from tiny_spm import train_spm
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.inputs import ImageInput
from datamodules.loading.images import evaluation_transform, normalize
from datamodules.loading.tokens import Tokenizer
from datamodules.records import ImageBatch, TextBatch
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.tuning import set_tuning
from lightning_modules.checkpoints.fill import fill
from lightning_modules.networks.image_processor import image_input
from lightning_modules.networks.library_model import read_settings
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


def library_model(network: HFDualEncoder) -> Any:
    """A model that the library builds and fills itself, from the weights of a network of ours in the library's own names."""
    from transformers import AutoModel

    settings = network.model.config
    model = AutoModel.from_config(settings)
    state = {name.removeprefix("model."): value for name, value in network.state_dict().items() if name.startswith("model.")}
    for name in ("logit_scale", "logit_bias", "temperature"):
        if (own := getattr(model, name, None)) is not None:
            value = network.logit_bias if name == "logit_bias" else network.logit_scale
            state[name] = (value.neg().exp() if name == "temperature" else value).detach().reshape(own.shape)
    model.load_state_dict(state, strict=True)
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
    model = library_model(network)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "library.safetensors")
    theirs = model(**inputs_of(kind, network))
    for own, vectors in zip(ours, (theirs.image_embeds, theirs.text_embeds), strict=True):
        assert own.norm(dim=-1).allclose(torch.ones(3))
        torch.testing.assert_close(own, nn.functional.normalize(vectors, dim=-1), rtol=0, atol=1e-5)
    scores = ours[0] @ ours[1].T * network.logit_scale.exp() + (network.logit_bias or 0.0)
    torch.testing.assert_close(scores, theirs.logits_per_image, rtol=1e-5, atol=1e-5)
    # and its own file of weights fills a network of another start
    other = dual_encoder(kind, seed=1, weights=str(tmp_path / "library.safetensors"))
    assert not dual_encoder(kind, seed=1).encode_images(images(other)).allclose(ours[0])
    fill(other)
    assert torch.equal(other.encode_images(images(other)), ours[0])
    assert torch.equal(other.encode_texts(texts(other)), ours[1])
    assert other.logit_scale.item() == pytest.approx(1.5)
    assert other.loaded_heads == {name for name, _ in other.head_parameters()}
    assert other.fresh == frozenset()


# ------------------------------------------------------------------------------------------------------------ by a folder


TEXTS = ["a dog", "two young males are outside, and a child", "a dog runs " * 20]


def save_tokenizer(kind: str, folder: Path) -> None:
    """A small one of the kind that the library has for the model."""
    from transformers import BertTokenizer, CLIPTokenizer, SiglipTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if kind == "siglip":
        SiglipTokenizer(str(train_spm(folder / "words.model", vocab_size=60)), model_max_length=12).save_pretrained(folder)
    elif kind == "clip":
        letters = [*bytes_to_unicode().values()]
        words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        CLIPTokenizer(vocab={word: row for row, word in enumerate(words)}, merges=[], model_max_length=16).save_pretrained(folder)
    else:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "two", "child", "outside"]
        BertTokenizer(vocab={word: row for row, word in enumerate(words)}, model_max_length=10).save_pretrained(folder)


@pytest.mark.parametrize(("kind", "vocabulary", "most"), [("clip", 514, 16), ("siglip", 64, 12), ("chinese_clip", 40, 10)])
@torch.no_grad()
def test_a_folder_of_the_library_is_read_whole(kind: str, vocabulary: int, most: int, tmp_path: Path) -> None:
    """Weights, tokenizer and transform: from a folder that the library wrote, to the same vectors of the same file and texts."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPImageProcessorPil, SiglipImageProcessorPil

    save_tokenizer(kind, tmp_path)
    official = AutoTokenizer.from_pretrained(tmp_path)
    config = copy.deepcopy(CONFIGS[kind])
    config["text_config"] |= {"vocab_size": vocabulary} | ({} if kind != "clip" else {"eos_token_id": official.eos_token_id})
    torch.manual_seed(3)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **config)).eval()
    model.save_pretrained(tmp_path)
    size = {"height": 16, "width": 16}
    processor: Any = CLIPImageProcessorPil(size={"shortest_edge": 18}, crop_size=size)
    if kind == "siglip":
        processor = SiglipImageProcessorPil(size=size, resample=2)
    processor.save_pretrained(tmp_path)

    network = fill(HFDualEncoder(str(tmp_path))).eval()
    assert network.inputs.text.max_tokens == most
    assert network.fresh == frozenset()
    assert network.loaded_heads == {name for name, _ in network.head_parameters()}
    padding = "max_length" if kind == "siglip" else True
    theirs = official(TEXTS, padding=padding, truncation=True, max_length=most, return_tensors="pt")
    tokens, mask = Tokenizer(network.inputs.text)(TEXTS)
    assert torch.equal(tokens, theirs["input_ids"])
    assert tokens.shape == (3, most)
    if kind == "siglip":
        theirs.pop("attention_mask", None)  # its processor gives none, and it reads the padding
    index = torch.arange(3)
    ours = network.encode_texts(TextBatch(("0", "1", "2"), tuple(TEXTS), index, index, tokens, mask))
    vectors = nn.functional.normalize(model.get_text_features(**theirs).pooler_output, dim=-1)
    torch.testing.assert_close(ours, vectors, rtol=0, atol=1e-5)

    image = photograph(375, 500)
    spec = network.inputs.image
    pixels = normalize(evaluation_transform(spec)(image)[None], spec)
    ours = network.encode_images(ImageBatch(("0",), torch.arange(1), pixels))
    vectors = nn.functional.normalize(model.get_image_features(**processor(image, return_tensors="pt")).pooler_output, dim=-1)
    torch.testing.assert_close(ours, vectors, rtol=0, atol=1e-4)  # a pixel may be rounded otherwise


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth noise with edges, of a size that photographs have."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).copy()
    large[height // 3 : height // 2, width // 4 : width // 2] = draw.integers(0, 256, 3)
    return Image.fromarray(large)


def processors() -> dict[str, Any]:
    """As the Hub has them: class and options of preprocessor_config.json."""
    return {
        "clip": ("CLIPImageProcessor", {}),
        "clip 256": ("CLIPImageProcessor", {"size": {"shortest_edge": 256}}),
        "siglip": ("SiglipImageProcessor", {}),
        "siglip2": ("SiglipImageProcessor", {"resample": 2, "size": {"height": 256, "width": 256}}),
        "chinese_clip": ("ChineseCLIPImageProcessor", {"size": {"height": 224, "width": 224}, "do_center_crop": False}),
        "align": ("EfficientNetImageProcessor", {
            "do_center_crop": True, "do_normalize": False, "include_top": False, "rescale_factor": 1 / 127.5,
            "rescale_offset": True, "resample": 2,
        }),
        "efficientnet": ("EfficientNetImageProcessor", {"resample": 2}),
    }  # fmt: skip


@pytest.mark.parametrize("kind", processors())
def test_pixels_are_those_of_the_librarys_image_processor(kind: str) -> None:
    """Within one level of 255 of its PIL form; its torchvision form interpolates otherwise, by a few levels at edges. Where an
    odd number of pixels is cropped away, it and torchvision (as OpenAI's transform) may take one from different sides."""
    import transformers

    name, options = processors()[kind]
    exact, torchvision = getattr(transformers, f"{name}Pil")(**options), getattr(transformers, name)(**options)
    spec = image_input("x", exact)
    assert spec == image_input("x", torchvision)
    level = 1 / 255 / min(spec.std)
    for width, height in ((500, 375), (333, 500), (640, 427), (224, 224)):
        image = photograph(width, height)
        ours = normalize(evaluation_transform(spec)(image)[None], spec)
        theirs, other = (processor(image, return_tensors="pt")["pixel_values"] for processor in (exact, torchvision))
        assert ours.shape == theirs.shape
        if spec.resize == "crop" and (width, height) == (640, 427):  # 111 columns of 335, 127 of 383
            ours, theirs, other = ours[..., :-1], theirs[..., 1:], other[..., 1:]
        assert (ours - theirs).abs().max() <= 1.01 * level, (width, height)
        assert (ours - other).abs().mean() <= level, (width, height)


@pytest.mark.parametrize(("options", "message"), [
    ({"do_center_crop": False}, r"keeps the aspect ratio \(size {'shortest_edge': 224}\) and crops nothing"),
    ({"do_resize": False}, "does not resize"),
    ({"resample": 1}, "resizes by interpolation 1"),
    ({"size": {"height": 224, "width": 336}, "do_center_crop": False}, "makes no squares"),
    ({"do_pad": True}, "has do_pad"),
])  # fmt: skip
def test_an_image_processor_that_cannot_be_followed_is_refused(options: dict[str, Any], message: str) -> None:
    from transformers import CLIPImageProcessorPil

    with pytest.raises(InputError, match=f"model m: its image processor .* {message}.*write a network of your own"):
        image_input("model m", CLIPImageProcessorPil(**options))


# --------------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("kind", KINDS)
def test_full_tuning_and_adapters_reach_exactly_what_the_vectors_depend_on(networks: Any, kind: str) -> None:
    whole = copy.deepcopy(networks[kind])
    counts = set_tuning(whole, None, "full")
    assert counts.total - counts.trainable == sum(whole.get_parameter(name).numel() for name in whole.unused_parameters())
    assert bool(whole.unused_parameters()) == (kind in ("align", "blip"))
    assert without_gradient(whole) == {"logit_scale", "logit_bias"} & {name for name, _ in whole.named_parameters()}
    towers = "text" if kind == "align" else None  # its image tower is a CNN
    with torch.no_grad():
        before = encoded(networks[kind])
    for adapter in (MultiWayAdapter(towers=towers, dropout=0.0), LoRAAdapter(rank=1, towers=towers)):
        network = copy.deepcopy(networks[kind])
        if kind == "blip" and isinstance(adapter, LoRAAdapter):
            adapter = LoRAAdapter(rank=1, towers="image")  # its text tower has cross-attention that nothing asks
        adapter.inject(network)
        with torch.no_grad():
            torch.testing.assert_close(encoded(network), before, rtol=0, atol=1e-6)
        counts = set_tuning(network, adapter, "adapter", train_heads="none")
        assert counts.trainable == counts.adapter > 0
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if adapter.owns(name):
                    parameter.normal_(std=0.3)
        assert without_gradient(network) == set()
        assert not any(adapter.owns(name) for name in network.unused_parameters())


def encoded(network: HFDualEncoder) -> Tensor:
    return torch.cat([network.encode_images(images(network)), network.encode_texts(texts(network))])


def without_gradient(network: HFDualEncoder) -> set[str]:
    """Of what trains: what a loss over both vectors does not reach."""
    vectors = encoded(network)
    (vectors * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None}


def test_heads_layers_and_sides(networks: Any) -> None:
    heads = {kind: {name for name, _ in networks[kind].head_parameters()} for kind in ("clip", "siglip", "align")}
    projections = {f"model.{name}_projection.weight" for name in ("visual", "text")}
    assert heads["clip"] == projections | {"logit_scale"}
    assert heads["align"] == {"model.text_projection.weight", "model.text_projection.bias", "logit_scale"}
    ends = ("model.vision_model.head.", "model.text_model.head.")
    assert {name for name in heads["siglip"] if not name.startswith(ends)} == {"logit_scale", "logit_bias"}
    assert sum(name.startswith(ends[0]) for name in heads["siglip"]) == 11
    clip = networks["clip"]
    image, text = clip.encoder_parameters("image"), clip.encoder_parameters("text")
    assert image | text | {"logit_scale"} == {name for name, _ in clip.named_parameters()}
    assert {name for name in image if "vision_model" not in name} == {"model.visual_projection.weight"}
    ids = {
        "model.vision_model.embeddings.class_embedding": 0,
        "model.text_model.encoder.layers.1.mlp.fc1.weight": 2,
        "model.vision_model.post_layernorm.weight": 3,
        "model.text_projection.weight": 3,
        "logit_scale": 3,
    }
    assert {name: clip.layer_id(name) for name in ids} == ids


def test_checkpointed_and_resized_networks_compute_what_they_should() -> None:
    plain, remembering = dual_encoder("clip"), dual_encoder("clip", checkpoint_activations=True)
    grads = []
    for network in (plain, remembering):
        without_gradient(network)
        grads.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
    larger = dual_encoder("clip", image_size=32)
    assert larger.inputs.image.size == 32
    with torch.no_grad():
        expected = larger.model.get_image_features(images(larger).pixels_B3HW, interpolate_pos_encoding=True).pooler_output
        assert torch.equal(larger.encode_images(images(larger)), nn.functional.normalize(expected, dim=-1))


def test_of_its_own_size_a_model_may_leave_a_rest_unread() -> None:
    """SigLIP So400m: 384 px in patches of 14."""
    sizes = {**CONFIGS["siglip"], "vision_config": {**CONFIGS["siglip"]["vision_config"], "image_size": 20}}
    network = HFDualEncoder(config={"model_type": "siglip", **sizes}, weights="random", tokenizer="none").eval()
    batch = images(network)
    assert batch.pixels_B3HW.shape[-1] == 20
    with torch.no_grad():
        seen = network.encode_images(batch)
        batch.pixels_B3HW[..., 16:, :] = batch.pixels_B3HW[..., 16:] = 9.0
        assert torch.equal(network.encode_images(batch), seen)


@pytest.mark.parametrize(("options", "message"), [
    ({"config": {"model_type": "bert"}, "tokenizer": "t"}, "BertModel has no get_image_features and get_text_features"),
    ({}, "give either name"),
    ({"name": "a/b", "config": {}}, "give either name"),
    ({"config": {"model_type": "clip"}}, "tokenizer is missing"),
    ({"config": {"model_type": "clip", "text_config": {"hiden_size": 3}}, "tokenizer": "t"}, "CLIPTextConfig has no option hi"),
    ({"config": {"model_type": "clip", **CONFIGS["clip"]}, "tokenizer": "t", "max_tokens": 17}, "17 exceeds its 16 positions"),
    ({"config": {"model_type": "clip", **CONFIGS["clip"]}, "tokenizer": "t", "image_size": 20}, "multiple of the patch size 8"),
    ({"config": {"model_type": "siglip2", **CONFIGS["siglip2"]}, "tokenizer": "t"}, "NaFlex.*set image_size"),
    ({"config": {"model_type": "clip", **CONFIGS["clip"]}, "tokenizer": "t", "init_temperature": 0.0}, "must be positive"),
    ({"name": "/no/folder"}, "no such folder"),
])  # fmt: skip
def test_what_cannot_be_built_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        HFDualEncoder(**options)
    assert "\n" not in str(error.value)


def test_an_image_processor_of_another_size_is_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, CLIPImageProcessorPil

    AutoModel.from_config(AutoConfig.for_model("clip", **CONFIGS["clip"])).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="it takes 16 px, and its image processor makes 24; set image_size to 16"):
        HFDualEncoder(str(tmp_path), tokenizer="t")
    assert HFDualEncoder(str(tmp_path), tokenizer="t", image_size=16).inputs.image.size == 16
    (tmp_path / "preprocessor_config.json").unlink()  # then it is the library's for a CLIP, which is of 224 px
    with pytest.raises(InputError, match="makes 224"):
        HFDualEncoder(str(tmp_path), tokenizer="t")
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["vision_config"]["image_size"] == 16


def test_a_transform_by_both_sides_crops_the_middle() -> None:
    spec = ImageInput(8, (0.5,) * 3, (0.5,) * 3, "squash_crop", 0.5)
    image = photograph(40, 20)
    whole = evaluation_transform(ImageInput(16, (0.5,) * 3, (0.5,) * 3, "squash"))(image)
    assert torch.equal(evaluation_transform(spec)(image), whole[:, 4:12, 4:12])


def test_a_library_s_own_defaults_are_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an option's name its class is asked, whose defaults do not fit each other (SigLIP's text side)."""
    heard: list[str] = []
    logger: Any = logging.getLogger("transformers")
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: heard.append(record.getMessage()))
    logger.addHandler(handler)
    try:
        read_settings("dual encoder", None, {"model_type": "siglip", "text_config": {"hidden_size": 24}})
    finally:
        logger.removeHandler(handler)
    assert not heard
