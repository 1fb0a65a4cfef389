"""ViLT against the library's own forward pass, and against itself where two paths must agree."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_vilt
import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import ImageBatch, PairBatch
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.networks.packing import pack
from lightning_modules.networks.vilt import ViLT

PAIRS = torch.arange(len(tiny_vilt.SIZES))


@pytest.fixture(scope="module")
def network() -> ViLT:
    return tiny_vilt.vilt()


@pytest.fixture(scope="module")
def library(network: ViLT) -> Any:
    """The same weights in the library's class, its layers as they come."""
    from transformers import ViltForImageAndTextRetrieval

    model = ViltForImageAndTextRetrieval(network.model.config).eval()
    model.load_state_dict(network.model.state_dict())
    return model


def masks(batch: ImageBatch) -> Tensor:
    """The library's pixel mask."""
    assert batch.pixels_B3HW is not None
    assert batch.sizes_B2 is not None
    place = torch.arange(batch.pixels_B3HW.shape[-1])
    return ((place < batch.sizes_B2[:, :1])[:, :, None] & (place < batch.sizes_B2[:, 1:])[:, None]).long()


def inputs(rows: list[int]) -> dict[str, Tensor]:
    """Of the library, for some of the pairs."""
    batch, words = tiny_vilt.images(), tiny_vilt.texts()
    assert batch.pixels_B3HW is not None
    return {
        "input_ids": words.tokens_BT[rows], "attention_mask": words.mask_BT[rows].long(),
        "pixel_values": batch.pixels_B3HW[rows], "pixel_mask": masks(batch)[rows],
    }  # fmt: skip


@torch.no_grad()
def test_scores_are_the_librarys(network: ViLT, library: Any) -> None:
    embedded = network.embed_images(tiny_vilt.images()), network.embed_texts(tiny_vilt.texts())
    assert embedded[0].lengths_B.tolist() == [1 + height * width // 16 for height, width in tiny_vilt.SIZES]
    found = network.score_pairs(*embedded, PAIRS, PAIRS)
    expected = library(**inputs(PAIRS.tolist())).logits[:, 0]
    assert found.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    crossed = network.score_pairs(*embedded, torch.tensor([3, 0]), torch.tensor([1, 4]))
    assert not torch.allclose(crossed, found[[3, 0]], atol=1e-3)


@torch.no_grad()
def test_squares_without_a_mask_score_as_the_librarys(network: ViLT, library: Any) -> None:
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    batch, words = ImageBatch(("", ""), PAIRS[:2], pixels), tiny_vilt.texts()
    found = network.score_pairs(network.embed_images(batch), network.embed_texts(words), PAIRS[:2], PAIRS[:2])
    expected = library(input_ids=words.tokens_BT[:2], attention_mask=words.mask_BT[:2].long(), pixel_values=pixels).logits[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("row", PAIRS.tolist())
def test_attention_maps_are_the_librarys(network: ViLT, library: Any, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # its order of patches is drawn at random: here it stays as it is
    monkeypatch.setattr(torch, "multinomial", lambda weights, count, replacement=False: torch.arange(int(count)) % len(weights))
    height, width = tiny_vilt.SIZES[row]
    batch, words = tiny_vilt.images(), tiny_vilt.texts()
    assert batch.pixels_B3HW is not None
    alone = batch.pixels_B3HW[[row], :, :height, :width]
    count = tiny_vilt.WORDS[row]
    expected = library(
        input_ids=words.tokens_BT[[row], :count], pixel_values=alone, pixel_mask=torch.ones(1, height, width),
        output_attentions=True,
    ).attentions  # fmt: skip
    relations = network.relations(PairBatch(batch, words), [0, 2])
    for layer in (0, 2):
        ours = relations.attention[layer].maps()[row]
        length = expected[layer].shape[-1]
        torch.testing.assert_close(ours[:, :length, :length], expected[layer][0], atol=1e-5, rtol=0)
        assert ours[:, :length, length:].sum() == 0
    patches = relations.regions.place_BN[row, relations.regions.mask_BN[row]]
    assert patches.tolist() == list(range(count + 1, count + 1 + height * width // 16))
    assert relations.words.place_BN[row, relations.words.mask_BN[row]].tolist() == list(range(1, count - 1))


def test_the_pooled_path_gives_the_score_and_the_gradients_of_the_full_one(network: ViLT) -> None:
    gradients, scores = [], []
    for pooled in (True, False):
        network.zero_grad()
        packed = pack(network.embed_texts(tiny_vilt.texts()), network.embed_images(tiny_vilt.images()))
        tokens, _ = network.encode(packed, pooled=pooled)
        score = network.model.rank_output(network.model.vilt.pooler(network.model.vilt.layernorm(tokens))).squeeze(-1)
        (score * torch.arange(1.0, len(score) + 1)).sum().backward()
        scores.append(score.detach())
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    torch.testing.assert_close(scores[0], scores[1], atol=1e-6, rtol=0)
    assert gradients[0].keys() == gradients[1].keys() == {name for name, _ in network.named_parameters()}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
def test_asking_for_attention_changes_no_score(network: ViLT) -> None:
    embedded = network.embed_images(tiny_vilt.images()), network.embed_texts(tiny_vilt.texts())
    scores, relations = network.score_related(*embedded, [2])
    torch.testing.assert_close(scores, network.score_pairs(*embedded, PAIRS, PAIRS), atol=1e-6, rtol=0)
    assert list(relations.attention) == [2]
    with pytest.raises(InputError, match=r"layers \[3\] was asked for, but this ViLT has layers 0 to 2"):
        network.score_related(*embedded, [3])


@torch.no_grad()
def test_scores_are_not_rounded_to_bf16(network: ViLT) -> None:
    embedded = network.embed_images(tiny_vilt.images()), network.embed_texts(tiny_vilt.texts())
    with torch.autocast("cpu", torch.bfloat16):
        scores = network.score_pairs(*embedded, PAIRS, PAIRS)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def test_patches_are_left_out_in_training_only() -> None:
    sampling = tiny_vilt.vilt(config={"max_image_length": 10})
    whole = sampling.embed_images(tiny_vilt.images())
    sampling.train()
    torch.manual_seed(0)
    some = sampling.embed_images(tiny_vilt.images())
    assert whole.lengths_B.tolist() == [25, 25, 17, 19, 5]
    assert some.lengths_B.tolist() == [11, 11, 11, 11, 5]
    assert not torch.equal(sampling.embed_images(tiny_vilt.images()).states_ND, some.states_ND)
    starts, length = whole.starts().tolist(), whole.lengths_B.tolist()
    own = {tuple(row) for row in whole.states_ND[starts[1] : starts[1] + length[1]].tolist()}
    found = some.states_ND[11:22].tolist()
    assert found[0] == whole.states_ND[starts[1]].tolist()  # [CLS] always
    assert {tuple(row) for row in found} < own


def test_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    network = tiny_vilt.vilt(config={"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2})
    batch = tiny_vilt.images(), tiny_vilt.texts()

    def score() -> Tensor:
        return network.score_pairs(network.embed_images(batch[0]), network.embed_texts(batch[1]), PAIRS, PAIRS)

    assert torch.equal(score(), score())
    network.train()
    assert not torch.equal(score(), score())


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        network = tiny_vilt.vilt(checkpoint_activations=recompute)
        embedded = network.embed_images(tiny_vilt.images()), network.embed_texts(tiny_vilt.texts())
        network.score_pairs(*embedded, PAIRS, PAIRS).sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_folder_of_the_librarys_brings_weights_transform_and_tokenizer(network: ViLT, library: Any, tmp_path: Path) -> None:
    from transformers import ViltForMaskedLM, ViltImageProcessor

    library.save_pretrained(tmp_path / "tuned")
    ViltImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "tuned")
    tuned = ViLT(str(tmp_path / "tuned")).eval()
    assert tuned.inputs.image is not None
    assert tuned.inputs.text is not None
    assert (tuned.inputs.image.mean, tuned.inputs.image.patch, tuned.inputs.image.longest) == ((0.1, 0.2, 0.3), 4, 26)
    assert (tuned.inputs.text.tokenizer, tuned.inputs.text.max_tokens) == (str(tmp_path / "tuned"), 12)
    assert tuned.fresh == frozenset()
    assert tuned.loaded_heads == {"model.rank_output.weight", "model.rank_output.bias"}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tuned.state_dict()[name], tensor), name
    ViltForMaskedLM(network.model.config).save_pretrained(tmp_path / "pretrained")
    pretrained = ViLT(str(tmp_path / "pretrained"))
    assert pretrained.fresh == {"model.rank_output.weight", "model.rank_output.bias"}
    assert pretrained.loaded_heads == frozenset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": None, "config": None}, "give either name"),
        ({"weights": "random", "name": "x", "config": None}, "a name brings its own weights"),
        ({"config": {"hiden_size": 8}}, "ViltConfig has no option hiden_size"),
        ({"tokenizer": None}, "tokenizer is missing"),
        ({"max_tokens": 13}, "max_tokens 13 exceeds its 12 text positions"),
        ({"image_size": 18}, "image_size 18 must be a multiple of its patches' 4"),
        ({"name": "/nowhere/vilt", "config": None}, "there is no such folder"),
    ],
)
def test_what_cannot_be_built_says_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ViLT(**({"config": tiny_vilt.CONFIG, "tokenizer": "unused"} | options))


def test_what_it_cannot_read_says_so(network: ViLT) -> None:
    with pytest.raises(InputError, match="needs pixels"):
        network.embed_images(replace(tiny_vilt.images(), pixels_B3HW=None))
    words = tiny_vilt.texts()
    long = replace(words, tokens_BT=words.tokens_BT.repeat(1, 2), mask_BT=words.mask_BT.repeat(1, 2))
    with pytest.raises(InputError, match="12 text positions, got 20 tokens"):
        network.embed_texts(long)


@pytest.mark.parametrize("adapter", [LoRAAdapter(rank=2), MultiWayAdapter()], ids=["lora", "multiway"])
def test_adapters_start_without_effect_and_learn_in_every_layer(network: ViLT, adapter: LoRAAdapter | MultiWayAdapter) -> None:
    adapted = deepcopy(network).train()
    adapter.inject(adapted)

    def score(of: ViLT) -> Tensor:
        return of.score_pairs(of.embed_images(tiny_vilt.images()), of.embed_texts(tiny_vilt.texts()), PAIRS, PAIRS)

    torch.testing.assert_close(score(adapted), score(network), atol=1e-5, rtol=0)
    score(adapted).sum().backward()
    owned = {name: p for name, p in adapted.named_parameters() if adapter.owns(name)}
    assert {name.split(".layer.")[1][0] for name in owned} == {"0", "1", "2"}
    assert all(p.grad is not None for p in owned.values())
    assert all(any(p.grad.any() for name, p in owned.items() if f".layer.{i}." in name) for i in range(3))


def test_layers_count_for_decay(network: ViLT) -> None:
    ids = {name: network.layer_id(name) for name, _ in network.named_parameters()}
    assert {value for name, value in ids.items() if ".embeddings." in name} == {0}
    assert ids["model.vilt.encoder.layer.2.intermediate.dense.weight"] == 3
    assert {ids["model.vilt.layernorm.weight"], ids["model.rank_output.bias"]} == {4}


def test_parameter_count_of_base() -> None:
    with torch.device("meta"):
        base = ViLT(config={}, tokenizer="unused")
    assert sum(parameter.numel() for parameter in base.parameters()) == 111_595_777
    assert (base.inputs.image.longest, base.inputs.text.max_tokens) == (639, 40)  # type: ignore[union-attr]
