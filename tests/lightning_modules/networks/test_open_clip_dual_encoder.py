"""Models of open_clip, tiny and random: outputs, transforms and tokens are the library's, and they are tuned like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image
from torch import Tensor

import lightning_modules
from datamodules.errors import InputError
from datamodules.loading.images import evaluation_transform, normalize
from datamodules.loading.tokens import Tokenizer
from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.exporting import export_run
from lightning_modules.networks.open_clip_dual_encoder import OpenCLIPDualEncoder
from lightning_modules.objectives.sigmoid import SigmoidLoss
from lightning_modules.retrieval import RetrievalModule

open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed: pip install 'crosslight[open_clip]'")

VISION = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
CLIP = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
TEXTS = ["a dog", "Two  cats &amp; a “dog” – été", "a photo of " + "many words " * 8, "!"]
BERT = {**tiny_run.BERT, "vocab_size": 320, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model of Hugging Face in a folder, with the tokenizer of the rendered world."""
    from transformers import AutoConfig, AutoModel

    from datamodules.miniworld.write import write_tokenizer

    folder = tmp_path_factory.mktemp("bert")
    write_tokenizer(folder)
    options = dict(BERT)
    AutoModel.from_config(AutoConfig.for_model(options.pop("model_type"), **options)).save_pretrained(folder)
    return folder


def configurations(bert: Path) -> dict[str, dict[str, Any]]:
    hugging_face = {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "context_length": 12, "hf_proj_type": "mlp"}
    timm = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
    return {
        "CLIP": CLIP,
        "OpenAI's": {**CLIP, "quick_gelu": True},
        "another block": {**CLIP, "text_cfg": {**TEXT, "block_type": "custom", "scale_fc": True}},
        "SigLIP": {
            **CLIP, "init_logit_bias": -10, "vision_cfg": timm, "custom_text": True,
            "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        },
        "a text model of Hugging Face": {**CLIP, "text_cfg": hugging_face},
    }  # fmt: skip


KINDS = ["CLIP", "OpenAI's", "another block", "SigLIP", "a text model of Hugging Face"]


def network(config: dict[str, Any], **options: Any) -> OpenCLIPDualEncoder:
    torch.manual_seed(3)
    return OpenCLIPDualEncoder(config=config, weights="random", **options).eval()


def images(model: OpenCLIPDualEncoder) -> ImageBatch:
    assert model.inputs.image is not None
    side = model.inputs.image.size
    return ImageBatch(("0", "1", "2"), torch.arange(3), torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1)))


def texts(model: OpenCLIPDualEncoder, given: list[str] = TEXTS[:3]) -> TextBatch:
    assert model.inputs.text is not None
    tokens_BT, mask_BT = Tokenizer(model.inputs.text)(given)
    rows = torch.arange(len(given))
    return TextBatch(tuple(map(str, rows.tolist())), tuple(given), rows, rows, tokens_BT, mask_BT)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_and_tokens_are_the_librarys(kind: str, bert: Path) -> None:
    config = configurations(bert)[kind]
    ours = network(config)
    library = _library(config)
    library.visual.load_state_dict(ours.image.model.state_dict())
    library.text.load_state_dict(ours.text.model.state_dict())
    tokens_BT = _tokenizer(config)(TEXTS)
    with torch.no_grad():
        _close(ours.encode_images(images(ours)), library.encode_image(images(ours).pixels_B3HW, normalize=True))
        _close(ours.encode_texts(texts(ours, TEXTS)), library.encode_text(tokens_BT, normalize=True))
        # one text at a time, so that none is padded to the length of another
        for row, text in enumerate(TEXTS):
            _close(ours.encode_texts(texts(ours, [text])), library.encode_text(tokens_BT[row : row + 1], normalize=True))
    assert float(ours.logit_scale.detach()) == pytest.approx(np.log(1 / 0.07))
    assert (ours.logit_bias is None) == ("init_logit_bias" not in config)


def _library(config: dict[str, Any]) -> Any:
    whole = {key: value for key, value in config.items() if key != "custom_text"}
    if "hf_model_name" in whole["text_cfg"]:
        whole["text_cfg"] = {**whole["text_cfg"], "hf_model_pretrained": False}
    return open_clip.CustomTextCLIP(**whole).eval()


def _tokenizer(config: dict[str, Any]) -> Any:
    if name := config["text_cfg"].get("hf_tokenizer_name"):
        return open_clip.tokenizer.HFTokenizer(name, context_length=12)
    return open_clip.SimpleTokenizer(context_length=12)


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.dtype == torch.float32


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that the library knows as `tiny-clip`, with weights as older files have them (no tower of texts)."""
    folder = tmp_path_factory.mktemp("named")
    (folder / "tiny-clip.json").write_text(json.dumps(CLIP))
    (folder / "tiny-coca.json").write_text(json.dumps({**CLIP, "custom_text": True, "multimodal_cfg": {"layers": 1, "heads": 2}}))
    open_clip.add_model_config(folder)
    torch.manual_seed(5)
    model = open_clip.CLIP(**CLIP)
    torch.save(model.state_dict(), folder / "weights.pt")
    hub = folder / "hub"
    hub.mkdir()
    preprocess = {
        "size": 16,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    (hub / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": preprocess}))
    torch.save(model.state_dict(), hub / "open_clip_pytorch_model.bin")
    return folder


@pytest.mark.parametrize("by", ["name", "folder"])
def test_weights_and_transform_come_with_a_name_or_a_folder(by: str, named: Path) -> None:
    library = open_clip.CLIP(**CLIP).eval()
    library.load_state_dict(torch.load(named / "weights.pt", weights_only=True))
    options: dict[str, Any] = {"name": "tiny-clip", "weights": str(named / "weights.pt")}
    ours = OpenCLIPDualEncoder(**options if by == "name" else {"name": f"local-dir:{named / 'hub'}"}).eval()
    with torch.no_grad():
        _close(ours.encode_images(images(ours)), library.encode_image(images(ours).pixels_B3HW, normalize=True))
        _close(ours.encode_texts(texts(ours)), library.encode_text(_tokenizer(CLIP)(TEXTS[:3]), normalize=True))
    assert ours.fresh == frozenset()
    assert ours.loaded_heads == {"image.model.proj", "text.model.text_projection", "logit_scale"}
    assert RetrievalModule(ours, None, "frozen").counts.trainable == 0
    spec = ours.inputs.image
    assert spec is not None
    assert (spec.size, spec.resize, spec.interpolation) == (
        16,
        *(("crop", "bicubic") if by == "name" else ("squash", "bilinear")),
    )


@pytest.mark.parametrize("size", [16, 32])
def test_another_image_size_resamples_the_positions(size: int, named: Path) -> None:
    options: dict[str, Any] = {"name": "tiny-clip", "weights": str(named / "weights.pt")}
    ours = OpenCLIPDualEncoder(**options, image_size=size)
    library = open_clip.create_model("tiny-clip", options["weights"], force_image_size=size)
    assert ours.inputs.image is not None
    assert ours.inputs.image.size == size
    assert ours.image.model.positional_embedding.shape[0] == (size // 8) ** 2 + 1
    assert torch.equal(ours.image.model.positional_embedding, library.visual.positional_embedding)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_the_librarys(mode: str, interpolation: str) -> None:
    given = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": interpolation, "resize_mode": mode}
    ours = network(CLIP, preprocess=given)
    colors = np.random.default_rng(0).integers(0, 255, (90, 61, 3), dtype=np.uint8)
    image = Image.fromarray(colors)
    assert ours.inputs.image is not None
    found = normalize(evaluation_transform(ours.inputs.image)(image)[None], ours.inputs.image)[0]
    config = open_clip.transform.PreprocessCfg(size=16, **given)
    expected = open_clip.transform.image_transform_v2(config, is_train=False)(image)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_control_tokens_that_are_spelled_in_a_text_are_letters() -> None:
    ours = network(CLIP)
    assert ours.inputs.text is not None
    tokenizer = Tokenizer(ours.inputs.text)
    end = tokenizer(["a"])[0][0, 2]
    assert end == 49407
    assert end in _tokenizer(CLIP)(["a <end_of_text> b"])[0, 2:3]
    assert (tokenizer(["a <end_of_text> b"])[0] == end).sum() == 1
    assert tokenizer.remarks(["dog " * 11]) == [
        f"'{'dog ' * 11}': longer than the 12 tokens of the model, which reads '{'dog ' * 9}dog'"
    ]


ADAPTERS: dict[str, Any] = {
    "mwa": lambda: MultiWayAdapter(dropout=0.0), "lora": lambda: LoRAAdapter(rank=2), "head": lambda: None, "full": lambda: None,
}  # fmt: skip


@pytest.mark.parametrize("tuning", ADAPTERS)
@pytest.mark.parametrize("kind", ["CLIP", "another block", "SigLIP"])
def test_everything_that_is_to_train_gets_a_gradient(tuning: str, kind: str, bert: Path) -> None:
    adapter: Adapter | None = ADAPTERS[tuning]()
    built, plain = network(configurations(bert)[kind]), network(configurations(bert)[kind])
    objective = SigmoidLoss() if kind == "SigLIP" else None
    model = RetrievalModule(built, adapter, "adapter" if adapter else tuning, "all", objective)  # type: ignore[arg-type]
    model.eval()
    with torch.no_grad():  # adapters start as the identity
        _close(built.encode_images(images(built)), plain.encode_images(images(plain)))
        _close(built.encode_texts(texts(built)), plain.encode_texts(texts(plain)))
        for name, parameter in built.named_parameters():  # past the zeros at the start
            if adapter is not None and adapter.owns(name):
                parameter.normal_(std=0.1)
    model.log_dict = lambda *arguments, **keywords: None  # type: ignore[method-assign]
    model.training_step(PairBatch(images(built), texts(built)), 0).backward()
    trained = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in built.named_parameters() if parameter.grad is not None}
    heads = {name for name, _ in built.head_parameters()}
    owned = {name for name in trained if adapter is not None and adapter.owns(name)}
    assert {"image", "text"} <= {name.partition(".")[0] for name in owned or trained}
    assert trained == (
        owned | heads if adapter is not None or tuning == "head" else {name for name, _ in built.named_parameters()}
    )


def test_layers_are_counted_from_the_embeddings() -> None:
    ours = network({**CLIP, "text_cfg": {**TEXT, "layers": 1}})
    ids = {
        "image.model.class_embedding": 0, "image.model.conv1.weight": 0, "image.model.transformer.resblocks.1.ln_2.weight": 2,
        "image.model.ln_post.weight": 3, "image.model.proj": 3, "text.model.token_embedding.weight": 1,
        "text.model.transformer.resblocks.0.mlp.c_fc.weight": 2, "text.model.text_projection": 3, "logit_scale": 3,
    }  # fmt: skip
    assert ours.num_layers == 2
    assert {name: ours.layer_id(name) for name in ids} == ids


def test_a_run_is_loaded_and_exported(tmp_path: Path) -> None:
    init = {"config": CLIP, "weights": "random"}
    section = tiny_run.configuration()
    path = "lightning_modules.networks.open_clip_dual_encoder.OpenCLIPDualEncoder"
    section["init_args"]["network"] = {"class_path": path, "init_args": init}
    trained = tiny_run.run_folder(tmp_path / "run", section=section).eval()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    vectors = trained.encode_images([tmp_path / "a.png"]), trained.encode_texts(["a dog"])
    for folder in (tmp_path / "run", export_run(tmp_path / "run", tmp_path / "export")):
        again = lightning_modules.load(folder)
        assert torch.equal(again.encode_images([tmp_path / "a.png"]), vectors[0])
        assert torch.equal(again.encode_texts(["a dog"]), vectors[1])


def test_its_parameters_are_counted_without_weights(named: Path) -> None:
    with torch.device("meta"):
        counted = OpenCLIPDualEncoder(name="tiny-clip", weights=str(named / "weights.pt"))
    assert sum(p.numel() for p in counted.parameters()) == sum(p.numel() for p in open_clip.CLIP(**CLIP).parameters())
    assert all(parameter.is_meta for parameter in counted.parameters())


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "give either name .* or config"),
    "both": ({"name": "ViT-B-32", "config": CLIP}, "give either name .* or config"),
    "no such model": ({"name": "ViT-B-23"}, "no model 'ViT-B-23'; near names: .*ViT-B-32"),
    "no such tag": ({"name": "ViT-B-32", "weights": "laion3b"}, "'laion3b' are neither a file nor a tag .* laion2b_s34b_b79k"),
    "weights beside a config": ({"config": CLIP, "weights": "openai"}, "weights .openai. go with a name of the library"),
    "weights beside a folder": ({"name": "local-dir:/x", "weights": "openai"}, "local-dir:/x brings its own weights"),
    "no such folder": ({"name": "local-dir:/nowhere"}, "open_clip local-dir:/nowhere cannot be built or loaded .*not found"),
    "a mistyped size": ({"config": {**CLIP, "text_cfg": {**TEXT, "widht": 3}}}, "cannot be built or loaded .*widht"),
    "a mistyped part": ({"config": {**CLIP, "vision": VISION}}, "cannot be built or loaded .*'vision'"),
    "one that writes": ({"name": "tiny-coca"}, "tiny-coca is a CoCa, which also writes"),
    "a padded image": ({"config": CLIP, "preprocess": {"resize_mode": "longest"}}, "wants resize_mode longest"),
    "no square": ({"config": {**CLIP, "vision_cfg": {**VISION, "image_size": [16, 32]}}}, "wants images of 16 x 32 pixels"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line(what: str, named: Path) -> None:
    options, expected = MISTAKES[what]
    with pytest.raises(InputError, match=expected) as caught:
        OpenCLIPDualEncoder(**options)
    assert "\n" not in str(caught.value)


def test_random_weights_that_would_stay_are_refused() -> None:
    with pytest.raises(InputError, match=r"at their random start and would stay there \(tuning frozen\)"):
        RetrievalModule(OpenCLIPDualEncoder(config=CLIP), None, "frozen")


def test_a_damaged_file_of_weights_is_one_line(named: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes((named / "weights.pt").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"open_clip tiny-clip cannot be built or loaded"):
        OpenCLIPDualEncoder(name="tiny-clip", weights=str(tmp_path / "w.pt"))
