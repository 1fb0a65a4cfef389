"""VisualBERT, BLIP and BridgeTower: the library's numbers, and what every pair scorer owes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_scorers as tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import ImageBatch, PairBatch
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.tuning import head_names, set_tuning
from lightning_modules.checkpoints.adapter_export import export_adapter, load_adapter
from lightning_modules.checkpoints.fill import fill
from lightning_modules.checkpoints.stored import stored
from lightning_modules.networks.network import FirstStage, HasRelations
from lightning_modules.networks.visual_bert import VisualBERT

LOGITS = {"visual_bert": "seq_relationship_logits", "blip": "itm_score", "bridgetower": "logits"}
each_network = pytest.mark.parametrize("name", tiny.NETWORKS)


def inputs(name: str, image_P: Tensor, text_P: Tensor) -> dict[str, Tensor]:
    """What the library takes, padded."""
    texts, images = tiny.texts(1 if name == "bridgetower" else 0), tiny.images(name)
    given = {"input_ids": texts.tokens_BT[text_P], "attention_mask": texts.mask_BT[text_P].long()}
    if images.regions is None:
        assert images.pixels_B3HW is not None
        return {**given, "pixel_values": images.pixels_B3HW[image_P]}
    features, mask = images.regions.features_BRD[image_P], images.regions.mask_BR[image_P].long()
    return {**given, "visual_embeds": features, "visual_attention_mask": mask}


@torch.no_grad()
def theirs(name: str, ours: Any, first: int | None = None) -> Tensor:
    """The library's two outputs [P, 2] for every pair."""
    given = inputs(name, *tiny.every_pair())
    if first is not None:
        given["input_ids"] = torch.cat([torch.full_like(given["input_ids"][:, :1], first), given["input_ids"][:, 1:]], 1)
    logits: Tensor = tiny.library(name, ours)(**given)[LOGITS[name]]
    return logits


# -------------------------------------------------------------------------------------------------- the library's numbers


@pytest.mark.parametrize(
    ("name", "options", "first"),
    [
        ("visual_bert", {}, None),
        ("blip", {"first_token": "cls"}, None),
        ("blip", {"first_token": "enc"}, tiny.WORDS - 1),
        ("bridgetower", {}, None),
    ],
    ids=["visual_bert", "blip, cls", "blip, enc", "bridgetower"],
)
def test_scores_are_the_librarys(name: str, options: dict[str, Any], first: int | None) -> None:
    network = tiny.network(name, **options)
    expected = theirs(name, network, first)
    matched = expected[:, {"visual_bert": 0, "blip": 1, "bridgetower": 1}[name]]
    assert matched.std() > 0.1  # it tells pairs apart
    with torch.no_grad():
        torch.testing.assert_close(tiny.scores(network, name), matched, atol=1e-5, rtol=0)
        network.score = "log_odds"
        odds = expected.softmax(-1).logit()[:, {"visual_bert": 0}.get(name, 1)]
        torch.testing.assert_close(tiny.scores(network, name), odds, atol=1e-4, rtol=1e-4)


def test_visual_berts_attention_is_the_librarys() -> None:
    network = tiny.network("visual_bert")
    library, rows = tiny.library("visual_bert", network), torch.arange(tiny.IMAGES)
    texts = tiny.texts()
    cut = type(texts)(texts.caption_ids[:3], texts.texts[:3], rows, rows, texts.tokens_BT[:3], texts.mask_BT[:3])
    with torch.no_grad():
        relations = network.relations(PairBatch(tiny.images("visual_bert"), cut), [0, 1])
    for row in rows.tolist():
        words, regions = int(tiny.MASK_T[row].sum()), int(tiny.MASK_R[row].sum())
        given = {key: value[:, : regions if "visual" in key else words]
                 for key, value in inputs("visual_bert", rows[row : row + 1], rows[row : row + 1]).items()}  # fmt: skip
        with torch.no_grad():
            maps = library(**given, output_attentions=True).attentions
        for layer in (0, 1):
            found = relations.attention[layer].maps()[row, :, : words + regions, : words + regions]
            torch.testing.assert_close(found, maps[layer][0], atol=1e-5, rtol=0)
        assert relations.words.place_BN[row][relations.words.mask_BN[row]].tolist() == list(range(1, words - 1))
        assert relations.regions.place_BN[row][relations.regions.mask_BN[row]].tolist() == list(range(words, words + regions))


def test_blips_first_stage_is_the_librarys_contrast() -> None:
    network, index = tiny.network("blip"), torch.arange(3)
    assert isinstance(network, FirstStage)
    with torch.no_grad():
        found = network.image_vectors(network.embed_images(tiny.images("blip"))) @ network.text_vectors(
            network.embed_texts(tiny.texts())
        ).T  # fmt: skip
        expected = tiny.library("blip", network)(**inputs("blip", index, index), use_itm_head=False).itm_score
    torch.testing.assert_close(found[:, :3], expected, atol=1e-5, rtol=0)
    unused = network.first_stage_parameters()
    assert unused == {f"model.{side}_proj.{leaf}" for side in ("vision", "text") for leaf in ("weight", "bias")}


# ---------------------------------------------------------------------------------------------------- what a scorer owes


@each_network
def test_a_pair_scores_alone_as_among_others(name: str) -> None:
    network = tiny.network(name)
    with torch.no_grad():
        together, row = tiny.scores(network, name), torch.tensor([0])
        images, texts = network.embed_images(tiny.images(name)), network.embed_texts(tiny.texts())
        for place, (image, text) in enumerate(zip(*tiny.every_pair(), strict=True)):
            alone = network.score_pairs(images.take(image[None]), texts.take(text[None]), row, row)
            torch.testing.assert_close(alone[0], together[place], atol=1e-5, rtol=0)


@each_network
def test_full_tuning_reaches_every_parameter_that_is_used(name: str) -> None:
    network = tiny.network(name)
    set_tuning(network, None, "full")
    tiny.scores(network, name).square().sum().backward()
    used = {key for key, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert used == {key for key, _ in network.named_parameters()} - network.unused_parameters()
    heads = {"visual_bert": "model.cls.seq_relationship", "blip": "model.itm_head", "bridgetower": "model.itm_score.fc"}[name]
    assert head_names(network) == {f"{heads}.weight", f"{heads}.bias"}


@each_network
def test_scores_are_fp32_under_autocast_and_dropout_is_of_training(name: str) -> None:
    network = tiny.network(name)
    with torch.no_grad():
        plain = tiny.scores(network, name)
        with torch.autocast("cpu", torch.bfloat16):
            half = tiny.scores(network, name)
        assert half.dtype == torch.float32
        assert not torch.equal(half, half.bfloat16().float())
        torch.testing.assert_close(half, plain, atol=0.3, rtol=0.1)
        network.train()
        torch.manual_seed(0)
        assert not torch.equal(tiny.scores(network, name), tiny.scores(network, name))


@pytest.mark.parametrize("adapter", [LoRAAdapter(rank=2), MultiWayAdapter()], ids=["lora", "mwa"])
@each_network
def test_adapters_start_as_nothing_learn_everywhere_and_export(name: str, adapter: Any, tmp_path: Path) -> None:
    network = tiny.network(name)
    before = tiny.scores(network, name).detach()
    adapter.inject(network)
    set_tuning(network, adapter, "adapter", "all")
    torch.testing.assert_close(tiny.scores(network, name).detach(), before, atol=1e-6, rtol=0)
    own = {key: parameter for key, parameter in network.named_parameters() if adapter.owns(key)}
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in own.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    tiny.scores(network, name).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in own.values())
    assert not torch.equal(tiny.scores(network, name), before)
    # every kind of block has some
    places = {
        "visual_bert": ["encoder.layer"],
        "blip": ["vision_model.encoder", "text_encoder.encoder"],
        "bridgetower": ["resblocks", "text_model.encoder", "cross_modal_text_layers", "cross_modal_image_layers"],
    }[name]
    assert [place for place in places if any(place in key for key in own)] == places
    export_adapter(network, adapter, tmp_path / "export")
    again = tiny.network(name)
    load_adapter(again, tmp_path / "export")
    assert torch.equal(tiny.scores(again, name), tiny.scores(network, name))


@each_network
def test_what_a_network_cannot_read_or_give_is_said(name: str) -> None:
    network, index = tiny.network(name), torch.arange(1)
    with pytest.raises(InputError, match="regions option"):
        network.embed_images(ImageBatch(("0",), index))
    assert isinstance(network, HasRelations) == (name == "visual_bert")
    if name != "visual_bert":
        embedded = network.embed_images(tiny.images(name)), network.embed_texts(tiny.texts())
        with pytest.raises(InputError, match=r"no sequence holds both.*Set model.iais to null"):
            network.score_related(*embedded, [0])


# -------------------------------------------------------------------------------------------------- where weights are from


@each_network
def test_a_folder_brings_weights_and_a_file_is_read_back(name: str, tmp_path: Path) -> None:
    kind = tiny.NETWORKS[name][0]
    network = tiny.network(name)
    expected = tiny.scores(network, name).detach()
    tiny.library(name, network).save_pretrained(tmp_path / "folder")
    named = fill(kind(str(tmp_path / "folder"), tokenizer="none", max_tokens=10)).eval()
    assert torch.equal(tiny.scores(named, name), expected)
    assert (named.fresh, named.loaded_heads) == (frozenset(), head_names(named))
    assert named.inputs == network.inputs
    with torch.device("meta"):
        counted = kind(str(tmp_path / "folder"), tokenizer="none", max_tokens=10)
    assert {key: value.shape for key, value in counted.named_parameters()} == {
        key: value.shape for key, value in network.named_parameters()
    }
    save_file({key: tensor.contiguous() for key, tensor in stored(network).items()}, tmp_path / "file.safetensors")
    read = kind(config=tiny.NETWORKS[name][1], weights=str(tmp_path / "file.safetensors"), tokenizer="none", max_tokens=10)
    assert not read.loaded_heads
    assert torch.equal(tiny.scores(fill(read).eval(), name), expected)
    assert (read.fresh, read.loaded_heads) == (frozenset(), head_names(read))
    unasked = kind(config=tiny.NETWORKS[name][1], tokenizer="none", max_tokens=10)
    assert unasked.fresh == {key for key, _ in unasked.named_parameters()}
    assert not kind(config=tiny.NETWORKS[name][1], weights="random", tokenizer="none", max_tokens=10).fresh


def test_a_folder_of_another_task_brings_all_but_the_head(tmp_path: Path) -> None:
    from transformers import VisualBertConfig, VisualBertForQuestionAnswering

    torch.manual_seed(0)
    VisualBertForQuestionAnswering(VisualBertConfig(**tiny.VISUAL_BERT)).save_pretrained(tmp_path)
    network = VisualBERT(str(tmp_path), max_tokens=10)
    assert network.fresh == head_names(network)
    assert not network.loaded_heads


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either name .* or config"),
        ({"name": "here", "config": {}}, "either name .* or config"),
        ({"name": "here", "weights": "there"}, "a name brings its own weights"),
        ({"config": {"hidden_sizes": 3}}, "VisualBertConfig has no option hidden_sizes; is hidden_size meant?"),
        ({"config": {"model_type": "bert"}}, "it is a bert, not a visual_bert"),
        ({"config": {**tiny.VISUAL_BERT, "bypass_transformer": True}}, "bypass_transformer"),
        ({"config": tiny.VISUAL_BERT, "max_tokens": 13}, "exceeds its 12 text positions"),
        ({"name": "./nowhere"}, "there is no such folder"),
    ],
)
def test_what_cannot_be_built_is_said(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        VisualBERT(**options)


@pytest.mark.parametrize("name", ["blip", "bridgetower"])
@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_mistyped_size_of_a_tower_is_said(name: str, part: str) -> None:
    kind, sizes, _ = tiny.NETWORKS[name]
    config = {**sizes, part: {**sizes[part], "num_hiden_layers": 1}}
    with pytest.raises(InputError, match=r"Config has no option num_hiden_layers; is num_hidden_layers meant\?"):
        kind(config=config, tokenizer="none")


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    tiny.library("blip", tiny.network("blip")).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="it is a blip, not a visual_bert"):
        VisualBERT(str(tmp_path))
