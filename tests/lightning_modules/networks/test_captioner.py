"""The captioner around its adapters: what is seen, what is scored, what is generated, and the language model's options."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_captioner import CLIP, END, FAMILIES, LAYERS, VOCABULARY, captioner, images, texts
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import ImageBatch
from lightning_modules.adapters.clipcap import ClipCap
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.adapters.tuning import head_names, set_tuning
from lightning_modules.checkpoints.fill import fill
from lightning_modules.networks.captioner import Captioner, VisualFeatures
from lightning_modules.networks.language_model import Decoding, LanguageModel, clipcap_beams
from lightning_modules.networks.towers.hugging_face import HFImageTower

GPT2 = {**FAMILIES["gpt2"], "vocab_size": VOCABULARY, "bos_token_id": END, "eos_token_id": END}


def tuned(kind: str, family: str = "gpt2", **options: Any) -> Captioner:
    network = captioner(family, **({"visual": "pooled"} if kind == "clipcap" else {}), **options)
    adapter: Any = ITuning(init_std=0.5) if kind == "i_tuning" else ClipCap(prefix_length=3, clip_length=2, layers=1, num_heads=2)
    torch.manual_seed(5)
    adapter.inject(network)
    set_tuning(network, adapter, "adapter")
    return network


# ----------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("kind", "special", "tokens"), [("clip", 1, 5), ("dinov2", 1, 5), ("vit", 1, 5), ("timm_vit", 1, 5), ("cnn", 0, None)]
)
def test_any_tower_gives_tokens(tiny: Any, kind: str, special: int, tokens: int | None) -> None:
    tower = tiny.image_tower(kind).eval().requires_grad_(False)
    pixels = tiny.images(2, tower.image_input.size).pixels_B3HW
    language = LanguageModel(config=GPT2, max_tokens=12)
    found, first = tower.tokens(pixels)
    assert first == special
    assert tokens is None or found.shape[1] == tokens
    shown: dict[Any, Tensor] = {}
    for visual in ("tokens", "patches", "pooled"):
        network = Captioner(tower, language, visual=visual)  # type: ignore[arg-type]
        shown[visual] = network.encode_images(ImageBatch(("a", "b"), torch.arange(2), pixels)).tokens_IVD
        assert shown[visual].shape[2] == network.visual_width
        assert not shown[visual].requires_grad
    assert torch.equal(shown["tokens"], found)
    assert torch.equal(shown["patches"], found[:, special:])
    assert torch.equal(shown["pooled"][:, 0], tower(pixels))
    if kind == "cnn":  # a grid, row by row
        torch.testing.assert_close(found.mean(1), tower.model.forward_features(pixels).mean((2, 3)))
    tower.requires_grad_(True)
    assert Captioner(tower, language).visual_tokens(pixels).requires_grad


def test_clip_norm_is_an_option() -> None:
    plain, normed = captioner(), captioner(visual_norm="tower")
    features = plain.encode_images(images(2)).tokens_IVD
    model: Any = normed.vision.model
    expected = F.layer_norm(features, (12,), model.post_layernorm.weight, model.post_layernorm.bias, model.config.layer_norm_eps)
    torch.testing.assert_close(normed.encode_images(images(2)).tokens_IVD, expected)
    torch.testing.assert_close(features, model(images(2).pixels_B3HW).last_hidden_state)
    for network in (plain, normed):
        assert network.unused_parameters() == {f"vision.{name}" for name, _ in network.vision.named_parameters()}  # nobody looks
        ITuning().inject(network)
    assert {name.split(".")[-2] for name in plain.unused_parameters()} == {"post_layernorm"}
    assert not normed.unused_parameters()
    with pytest.raises(InputError, match="set visual_norm to none"):
        captioner(visual="pooled", visual_norm="tower")
    with pytest.raises(InputError, match="pixels"):
        plain.encode_images(ImageBatch(("a",), torch.arange(1)))


# ------------------------------------------------------------------------------------------------------------------- loss


def alone(network: Captioner, pixels: Tensor, tokens_T: Tensor) -> Tensor:
    """Log probabilities of one caption's tokens, its image encoded for it alone, through the whole language model."""
    features = VisualFeatures(network.visual_tokens(pixels[None]))
    begin = torch.tensor([[network.language.bos, *network.language.prompt_ids]])
    if network.i_tuning is not None:
        network.i_tuning.set_images(features.tokens_IVD)
        logits = network.language.model(input_ids=torch.cat([begin, tokens_T[None]], 1)).logits[0]
    else:
        assert network.prefix is not None
        embed = network.language.model.get_input_embeddings()
        logits = network.language.model(
            inputs_embeds=torch.cat([network.prefix(features.tokens_IVD), embed(tokens_T[None])], 1)
        ).logits[0]
    return logits[-len(tokens_T) - 1 : -1].log_softmax(-1)[torch.arange(len(tokens_T)), tokens_T]


@pytest.mark.parametrize("family", ["gpt2", "pythia", "llama", "opt 350m"])
@pytest.mark.parametrize("kind", ["i_tuning", "clipcap"])
def test_loss_is_the_token_mean(kind: str, family: str) -> None:
    network = tuned(kind, family)
    rows, pictures = [1, 0, 1, 2, 1], images(3)
    batch, row_B = texts(rows), torch.tensor(rows)
    calls: list[int] = []
    network.vision.model.register_forward_hook(
        lambda m, a, kwargs, out: calls.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    loss = network.loss(network.encode_images(pictures), batch, row_B)["loss"]
    assert calls == [3]
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    assert gradients
    assert set(gradients) == {n for n, p in network.named_parameters() if p.requires_grad}
    assert pictures.pixels_B3HW is not None
    each = [alone(network, pictures.pixels_B3HW[row], batch.tokens_BT[i][batch.mask_BT[i]]) for i, row in enumerate(rows)]
    assert len({len(one) for one in each}) > 1
    torch.testing.assert_close(loss.detach(), -torch.cat(each).detach().mean(), atol=1e-5, rtol=1e-5)
    # what pads does not matter
    changed = texts(rows)
    changed.tokens_BT[~changed.mask_BT] = 7
    torch.testing.assert_close(network.loss(network.encode_images(pictures), changed, row_B)["loss"], loss)
    # in two micro-batches of unequal length, exactly
    network.zero_grad()
    total = batch.mask_BT.sum()
    parts = []
    for part in (slice(0, 2), slice(2, 5)):
        own = [rows[i] for i in range(5)[part]]
        some = texts(rows)
        micro = type(some)(
            some.caption_ids[part],
            some.texts[part],
            some.index_B[part],
            some.image_index_B[part],
            some.tokens_BT[part],
            some.mask_BT[part],
        )
        parts.append(network.loss(network.encode_images(pictures), micro, torch.tensor(own), total)["loss"])
        parts[-1].backward()
    torch.testing.assert_close(sum(parts), loss)
    for name, gradient in gradients.items():
        found = network.get_parameter(name).grad
        torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4)


def test_captions_that_cannot_be_learned_from() -> None:
    network = tuned("i_tuning")
    batch = texts([0, 1])
    nothing = type(batch)(
        ("a",), ("",), torch.arange(1), torch.arange(1), batch.tokens_BT[:1], torch.zeros(1, 7, dtype=torch.bool)
    )
    with pytest.raises(InputError, match="no caption token"):
        network.loss(network.encode_images(images(1)), nothing, torch.tensor([0]))
    with pytest.raises(InputError, match="needs 60 positions, the model has 48"):
        network.loss(network.encode_images(images(1)), texts([0], 60), torch.tensor([0]))
    with pytest.raises(InputError, match="needs 58 positions, the model has 48"):
        network.generate_ids(network.encode_images(images(1)), Decoding(max_new_tokens=57))
    with pytest.raises(InputError, match="image rows 0 to 2 of 2"):
        network.loss(network.encode_images(images(2)), batch, torch.tensor([0, 2]))


# ---------------------------------------------------------------------------------------------------------- attention maps


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_attention_maps(family: str) -> None:
    network = tuned("i_tuning", family)
    features, rows = network.encode_images(images(2)), torch.tensor([1, 0, 1])
    batch = texts([1, 0, 1])
    maps = network.attention(features, batch.tokens_BT, rows)
    assert list(maps) == list(range(LAYERS))
    for each in maps.values():
        assert each.shape == (3, 1, 7, 5)
        torch.testing.assert_close(each.sum(-1), torch.ones(3, 1, 7))
    # row t: the state that reads token t, from the tokens up to it
    short = network.attention(features, batch.tokens_BT[:1, :3], rows[:1], [2])
    assert list(short) == [2]
    torch.testing.assert_close(short[2][0], maps[2][0, :, :3])
    other = batch.tokens_BT[:1, :3].clone()
    other[0, 2] = (other[0, 2] + 1) % END
    changed = network.attention(features, other, rows[:1], [2])[2]
    torch.testing.assert_close(changed[0, :, :2], maps[2][0, :, :2])
    assert not torch.allclose(changed[0, :, 2], maps[2][0, :, 2])
    with pytest.raises(InputError, match=r"layers \[9\] have no module"):
        network.attention(features, batch.tokens_BT, rows, [9])
    with pytest.raises(InputError, match="has no I-Tuning modules"):
        captioner().attention(features, batch.tokens_BT, rows)


# -------------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_and_unused_parameters(family: str) -> None:
    network = tuned("i_tuning", family)
    assert network.num_layers == LAYERS
    assert not head_names(network)
    layers = {name: network.layer_id(name) for name, _ in network.named_parameters()}
    for name, layer in layers.items():
        if name.startswith("i_tuning."):
            assert layer == int(name.split(".")[1]) + 1
        elif name.startswith("vision."):
            assert layer == 0
        elif any(part in name for part in ("wte", "wpe", "embed_", "project_in")):
            assert layer == 0, name
        elif any(part in name for part in (".h.", ".layers.")):
            assert layer == int(next(part for part in name.split(".") if part.isdigit())) + 1
        else:
            assert layer == LAYERS + 1, name  # last norm, untied head
    assert network.layer_id("prefix.mapper.linear.weight") == LAYERS + 1
    unused = network.unused_parameters()
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name not in unused
    network.loss(network.encode_images(images(2)), texts([0, 1]), torch.tensor([0, 1]))["loss"].backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == (name in unused), name


# --------------------------------------------------------------------------------------------------------- language model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model and its word tokenizer, with a generation configuration that would spoil every caption."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("language")
    torch.manual_seed(0)
    model = LanguageModel(config=GPT2, max_tokens=12).model
    model.save_pretrained(path)
    words = {"<unk>": 0, **{f"word{i}": i for i in range(1, END)}, "<end>": END}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", bos_token="<end>").save_pretrained(
        path
    )
    spoiled = {"do_sample": True, "num_beams": 3, "suppress_tokens": list(range(50)), "max_length": 3, "temperature": 5.0}
    (path / "generation_config.json").write_text(json.dumps(spoiled))
    return path


def test_language_model_from_a_folder(folder: Path) -> None:
    language = LanguageModel(str(folder), prompt="word5 word6", max_tokens=12)
    assert (language.bos, language.eos, language.prompt_ids) == (END, END, (5, 6))
    assert language.text_input.tokenizer == str(folder)
    again = fill(LanguageModel(config=GPT2, weights=str(folder / "model.safetensors"), max_tokens=12))
    for name, tensor in language.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    network = Captioner(HFImageTower(config=CLIP), language).eval()
    features = network.encode_images(images(2))
    lead = torch.tensor([[END, 5, 6]] * 2)
    assert torch.equal(network._lead(features, None), lead)
    plain = Decoding(num_beams=1, max_new_tokens=5)
    expected = lead
    for _ in range(5):
        expected = torch.cat([expected, language.model(input_ids=expected).logits[:, -1:].argmax(-1)], 1)
    assert network.generate_ids(features, plain) == [language._cut(row, False) for row in expected[:, 3:].tolist()]
    assert network.generate(features, plain)[0] == " ".join(f"word{i}" for i in network.generate_ids(features, plain)[0])


def test_the_end_of_training_is_the_end_of_generation(folder: Path) -> None:
    other = {**GPT2, "eos_token_id": 7}
    with pytest.raises(InputError, match="ends texts with token 60, its configuration with 7; set eos to 60"):
        LanguageModel(config=other, tokenizer=str(folder), max_tokens=12).decode([[1]])
    assert LanguageModel(config=other, tokenizer=str(folder), eos=5, max_tokens=12).decode([[1, 2], []]) == ["word1 word2", ""]


def test_decoding_options_do_what_they_say() -> None:
    network = tuned("i_tuning")
    features = network.encode_images(images(2))
    repeated = network.generate_ids(features, Decoding(num_beams=1, max_new_tokens=20))
    unique = network.generate_ids(features, Decoding(num_beams=1, max_new_tokens=20, no_repeat_ngram=1))
    assert all(len(set(ids)) == len(ids) for ids in unique)
    assert any(len(set(ids)) < len(ids) for ids in repeated)
    network.language.eos = repeated[0][3]
    cut = network.generate_ids(features, Decoding(num_beams=1, max_new_tokens=20))
    assert cut[0] == repeated[0][: repeated[0].index(network.language.eos)]
    kept = network.generate_ids(features, Decoding(num_beams=1, max_new_tokens=20, keep_eos=True))
    assert kept[0] == [*cut[0], network.language.eos]
    full = [(network.language.eos + 1) % END] * 20
    ended = [network.language.has_ended(ids, Decoding(max_new_tokens=20)) for ids in (full, cut[0], kept[0])]
    assert ended == [False, True, True]
    short = Decoding(num_beams=1, max_new_tokens=len(kept[0]), keep_eos=True)
    assert network.language.has_ended(network.generate_ids(features, short)[0], short)
    longer = network.generate_ids(features, Decoding(num_beams=1, max_new_tokens=20, min_new_tokens=10))
    assert len(longer[0]) >= 9 > len(cut[0])
    sampling = Decoding(num_beams=1, max_new_tokens=10, sample=True, temperature=2.0)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(network.generate_ids(features, sampling))
    assert drawn[0] == drawn[1] != drawn[2]
    state = torch.get_rng_state()
    network.generate_ids(features, sampling, seeds=[0] * len(features))
    assert torch.equal(state, torch.get_rng_state())  # seeded draws are nobody else's
    with pytest.raises(InputError, match="tokenizer is missing"):
        network.generate(features)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(num_beams=1),
        Decoding(),
        Decoding(length_penalty=2.0, min_new_tokens=3),
        Decoding(algorithm="clipcap"),
        Decoding(num_beams=1, sample=True, temperature=2.0),
        Decoding(num_beams=3, sample=True, top_k=20, top_p=0.9),
    ],
    ids=["greedy", "beams", "length penalty", "clipcap", "sample", "sampled beams"],
)
def test_a_caption_depends_on_no_neighbour(decoding: Decoding) -> None:
    network, decoding = tuned("i_tuning", "llama"), replace(decoding, max_new_tokens=12)
    tokens_IVD = network.encode_images(images(7)).tokens_IVD
    seeds = list(range(100, 107))
    network.language.eos = network.generate_ids(VisualFeatures(tokens_IVD), replace(decoding, min_new_tokens=0), seeds)[0][5]
    together = network.generate_ids(VisualFeatures(tokens_IVD), decoding, seeds)
    assert len({len(ids) for ids in together}) > 1  # some end before their neighbours
    assert len({tuple(ids) for ids in together}) > 4
    order = [5, 0, 3, 1, 2, 6, 4]
    for size in (1, 3):
        found: dict[int, list[int]] = {}
        for first in range(0, 7, size):
            rows = order[first : first + size]
            ids = network.generate_ids(VisualFeatures(tokens_IVD[rows]), decoding, [seeds[row] for row in rows])
            found |= dict(zip(rows, ids, strict=True))
        assert [found[row] for row in range(7)] == together
    if decoding.sample:
        assert network.generate_ids(VisualFeatures(tokens_IVD), decoding, seeds[::-1]) != together


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 0},
        {"max_new_tokens": 0},
        {"min_new_tokens": 40},
        {"temperature": 0.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"temperature": 0.3},
        {"top_k": 5},
        {"top_p": 0.5},
        {"num_beams": 1, "length_penalty": 5.0},
        {"algorithm": "clipcap", "top_p": 0.5},
        {"algorithm": "clipcap", "sample": True},
        {"algorithm": "clipcap", "length_penalty": 2.0},
    ],
)
def test_bad_decoding(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="decoding:"):
        Decoding(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either name .* or config"),
        ({"name": "a", "config": GPT2}, "give either name .* or config"),
        ({"name": "/nowhere/at/all", "weights": "x"}, "a name brings its own weights"),
        ({"name": "/nowhere/at/all"}, "no usable configuration .*there is no such folder"),
        ({"config": {**GPT2, "n_layers": 3}}, "no option n_layers"),
        ({"config": {"n_layer": 3}}, r"no usable configuration .*none given"),
        ({"config": {"model_type": "clip_vision_model"}}, "no usable causal language model"),
        ({"config": GPT2, "bos": 99}, "bos token 99 is outside"),
        ({"config": {**GPT2, "eos_token_id": None}}, "eos token is unknown"),
        ({"config": GPT2, "max_tokens": 48}, "needs 49 positions, the model has 48"),
        ({"config": GPT2, "prompt": "A photo of", "max_tokens": 12}, "tokenizer is missing"),
        ({"config": GPT2, "prompt": "A photo of", "tokenizer": "/nowhere/at/all", "max_tokens": 12}, "no tokenizer at"),
    ],
)
def test_bad_language_models(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LanguageModel(**options)


@pytest.mark.parametrize("kind", ["i_tuning", "clipcap"])
@pytest.mark.parametrize("decoding", [Decoding(max_new_tokens=3), Decoding(num_beams=2, max_new_tokens=3, algorithm="clipcap")])
def test_of_no_images_there_are_no_captions(kind: str, decoding: Decoding) -> None:
    network = tuned(kind)
    nothing = VisualFeatures(network.encode_images(images(1)).tokens_IVD[:0])
    assert network.generate_ids(nothing, decoding) == []
    assert network.log_probs(nothing, [], []) == []
    assert network.language.generate(decoding, input_ids=torch.empty(0, 1, dtype=torch.int64)) == []


@pytest.mark.parametrize("longest", [1, 3])
def test_more_beams_than_words(longest: int) -> None:
    """There are as many beams as captions, each once."""
    settings = {**GPT2, "vocab_size": 5, "bos_token_id": 4, "eos_token_id": 4, "pad_token_id": 4}
    language = LanguageModel(config=settings, weights="random", max_tokens=12).eval()
    lead = torch.randn(2, 3, language.model.get_input_embeddings().embedding_dim, generator=torch.Generator().manual_seed(0))
    decoding = Decoding(num_beams=90, max_new_tokens=longest, algorithm="clipcap")
    found = clipcap_beams(language, lead, decoding)
    # every caption of up to three words of which none but the last is the end token
    assert [len(beams) for beams in found] == [{1: 5, 3: 1 + 4 + 16 * 5}[longest]] * 2
    assert all(len({tuple(beam) for beam in beams}) == len(beams) for beams in found)
    few = clipcap_beams(language, lead, Decoding(num_beams=5, max_new_tokens=1, algorithm="clipcap"))
    if longest == 1:
        assert found == few
    assert language.generate(decoding, inputs_embeds=lead) == [
        beams[0][:-1] if beams[0][-1] == language.eos else beams[0] for beams in found
    ]


@pytest.mark.parametrize("kind", ["i_tuning", "clipcap"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_whole_network_may_have_another_dtype(tiny: Any, kind: str, dtype: torch.dtype) -> None:
    """`model.double()` and its like, beside a tower that does not round its pixels by itself."""
    batch, rows, pixels = texts([0, 1]), torch.arange(2), tiny.images(2, 16)
    visual: Any = "pooled" if kind == "clipcap" else "tokens"
    network = Captioner(tiny.image_tower("timm_vit"), captioner().language, visual=visual)
    adapter: Any = ITuning() if kind == "i_tuning" else ClipCap(prefix_length=3, clip_length=2, layers=1, num_heads=2)
    adapter.inject(network)
    network.eval()
    with torch.no_grad():
        expected = network.loss(network.encode_images(pixels), batch, rows)["loss"]
        network.to(dtype)
        features = network.encode_images(pixels)
        assert features.tokens_IVD.dtype == dtype
        torch.testing.assert_close(network.loss(features, batch, rows)["loss"], expected, rtol=0.03, atol=0)
    assert len(network.generate_ids(features, Decoding(max_new_tokens=2))) == 2
