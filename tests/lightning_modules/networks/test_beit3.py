"""BEiT-3 against its equations written out slowly, and what retrieval, adapters and losses rely on."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.tuning import set_tuning
from lightning_modules.networks import beit3
from lightning_modules.networks.beit3 import BEiT3, BEiT3Retrieval, DropPath, Encoded

WIDTH, LAYERS, HEADS, FFN, SIZE, PATCH, VOCAB, POSITIONS = 16, 3, 2, 24, 12, 4, 40, 12
PATCHES = (SIZE // PATCH) ** 2
IMAGE_TOKENS = 1 + PATCHES


def build(adapter: bool = False, seed: int = 0, **options: Any) -> BEiT3Retrieval:
    """Tiny, with weights large enough for every part to matter; an adapter's KE and AE do something too."""
    network = BEiT3Retrieval(SIZE, WIDTH, LAYERS, HEADS, FFN, PATCH, VOCAB, POSITIONS, "none", 8, **options)
    if adapter:
        MultiWayAdapter(knowledge_extractor_mid=3, alignment_enhancer_mid=5, dropout=0.0).inject(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = name.endswith("weight") and parameter.ndim == 1
            parameter.copy_(1 + 0.3 * noise if is_norm else 0.3 * noise)
    return network.eval()


def pixels(rows: int = 3) -> Tensor:
    return torch.randn(rows, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def texts(rows: int = 3, length: int = 6) -> tuple[Tensor, Tensor]:
    """Ids and mask; row i has `length` - i real tokens."""
    tokens = torch.randint(4, VOCAB, (rows, length), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(length) < torch.tensor([[length - row] for row in range(rows)])
    return tokens.where(mask, 1), mask


def inputs(kind: str) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (pixels() if kind != "text" else None, *(texts() if kind != "image" else (None, None)))


# ------------------------------------------------------------------------------------------------------------- naive twin


def _norm(x: list[float] | Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    x = torch.as_tensor(x)
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def naive(encoder: BEiT3, image: Tensor | None, tokens: Tensor | None, mask: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """One sample, one token and one head at a time: final tokens [T, D] and each layer's maps [H, T, T]."""
    w = {name: tensor.double() for name, tensor in encoder.state_dict().items()}
    stream: list[Tensor] = []
    sides: list[str] = []
    real: list[bool] = []
    if image is not None:
        rows = w["image_embed.positions"][2:]
        stream, sides, real = [w["image_embed.cls_token"][0, 0] + rows[0]], ["image"], [True]
        for i in range(PATCHES):
            top, left = i // (SIZE // PATCH) * PATCH, i % (SIZE // PATCH) * PATCH
            patch = image.double()[:, top : top + PATCH, left : left + PATCH].flatten()
            stream.append(w["image_embed.patches.weight"].flatten(1) @ patch + w["image_embed.patches.bias"] + rows[i + 1])
            sides.append("image")
            real.append(True)
    if tokens is not None:
        for i, token in enumerate(tokens.tolist()):
            is_real = mask is None or bool(mask[i])
            x = w["text_embed.tokens.weight"][token] + w["text_embed.positions"][i + 2]
            stream.append(x if is_real else torch.zeros_like(x))
            sides.append("text")
            real.append(is_real)
    all_maps = []
    head_width = WIDTH // HEADS
    for layer in range(LAYERS):
        at = [f"layers.{layer}.{side}" for side in sides]
        qkv = [_linear(_norm(x, w, f"{a}.attention_norm"), w, f"{a}.qkv") for x, a in zip(stream, at, strict=True)]
        contexts: list[list[Tensor]] = [[] for _ in stream]
        maps = []
        for head in range(HEADS):
            part = slice(head * head_width, (head + 1) * head_width)
            queries = [each[:WIDTH][part] / math.sqrt(head_width) for each in qkv]
            keys = [each[WIDTH : 2 * WIDTH][part] for each in qkv]
            values = [each[2 * WIDTH :][part] for each in qkv]
            weights = []
            for i, query in enumerate(queries):
                powers = torch.stack(
                    [torch.exp(query @ key) if here else query.new_zeros(()) for key, here in zip(keys, real, strict=True)]
                )
                weights.append(powers / powers.sum())
                contexts[i].append(sum(p * value for p, value in zip(weights[-1], values, strict=True)))  # type: ignore[arg-type]
            maps.append(torch.stack(weights))
        all_maps.append(torch.stack(maps))
        out = []
        for x, a, context in zip(stream, at, contexts, strict=True):
            x = x + _linear(_norm(torch.cat(context), w, f"{a}.inner_norm"), w, f"{a}.out")
            hidden = _gelu(_linear(_norm(x, w, f"{a}.ffn_norm"), w, f"{a}.fc1"))
            y = x + _linear(_norm(hidden, w, f"{a}.sub_norm"), w, f"{a}.fc2")
            m = a.rpartition(".")[0] + ".multiway"
            side = a.rpartition(".")[2]
            if f"{m}.knowledge_extractor.{side}.down.weight" in w:
                y = y + 0.6 * _linear(
                    torch.relu(_linear(x, w, f"{m}.knowledge_extractor.{side}.down")), w, f"{m}.knowledge_extractor.{side}.up"
                )
                ae = f"{m}.alignment_enhancer.{side}"
                y = y + _linear(_norm(_gelu(_linear(y, w, f"{ae}.fc1")), w, f"{ae}.sub_norm"), w, f"{ae}.fc2")
            out.append(y)
        stream = out
    return torch.stack([_norm(x, w, f"norm.{side}") for x, side in zip(stream, sides, strict=True)]), all_maps


@pytest.mark.parametrize("kind", ["image", "text", "fused"])
@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "multiway"])
def test_equals_the_equations_written_out(kind: str, adapter: bool) -> None:
    encoder = build(adapter).encoder
    images, tokens, mask = inputs(kind)
    found = encoder(images, tokens, mask, attention=range(LAYERS))
    assert found.image_tokens == (0 if kind == "text" else IMAGE_TOKENS)
    for row in range(3):
        wanted, maps = naive(
            encoder,
            None if images is None else images[row],
            None if tokens is None else tokens[row],
            None if mask is None else mask[row],
        )
        torch.testing.assert_close(found.tokens_BTD[row].double(), wanted, atol=1e-5, rtol=0)
        for layer in range(LAYERS):
            torch.testing.assert_close(found.attention[layer].maps()[row].double(), maps[layer], atol=1e-6, rtol=0)


def test_positions_start_at_row_two() -> None:
    network = build()
    before = network.encoder(*inputs("fused")).tokens_BTD
    with torch.no_grad():
        network.encoder.image_embed.positions[:2] += 5
        network.encoder.text_embed.positions[:2] += 5
        network.encoder.text_embed.positions[2 + 6 :] += 5
    assert torch.equal(network.encoder(*inputs("fused")).tokens_BTD, before)


def test_fused_tokens_use_their_own_side_and_see_both() -> None:
    """The split is at the end of the image: text weights move no image token in a first layer that sees only images."""
    encoder = build().encoder
    before = encoder(*inputs("fused"), hidden=True)
    with torch.no_grad():
        for name, parameter in encoder.layers[0].text.named_parameters():
            if name.startswith(("fc", "ffn_norm", "sub_norm", "out", "inner_norm")):
                parameter.add_(0.5)
    after = encoder(*inputs("fused"), hidden=True)
    assert torch.equal(after.hidden[1][:, :IMAGE_TOKENS], before.hidden[1][:, :IMAGE_TOKENS])
    assert (after.hidden[1][:, IMAGE_TOKENS:] - before.hidden[1][:, IMAGE_TOKENS:]).abs().min() > 0
    assert (after.hidden[2] - before.hidden[2]).abs().amax(dim=-1).min() > 1e-4  # then every token sees it by attention
    # and an unmasked fused pass is not two passes side by side
    alone = encoder(pixels(), hidden=True)
    assert not torch.allclose(after.hidden[2][:, :IMAGE_TOKENS], alone.hidden[2])


# ---------------------------------------------------------------------------------------------------- padding and pooling


@pytest.mark.parametrize("kind", ["text", "fused"])
def test_more_padding_changes_nothing(kind: str) -> None:
    encoder = build(adapter=True).encoder
    images, tokens, mask = inputs(kind)
    assert tokens is not None
    assert mask is not None
    extra = torch.randint(4, VOCAB, (3, 4))  # whatever stands behind the mask
    longer = torch.cat([tokens, extra], 1), torch.cat([mask, torch.zeros_like(extra, dtype=torch.bool)], 1)
    start = 0 if images is None else IMAGE_TOKENS
    short, long = encoder(images, tokens, mask), encoder(images, *longer)
    real = torch.cat([torch.ones(3, start, dtype=torch.bool), mask], 1)
    torch.testing.assert_close(long.tokens_BTD[:, : real.shape[1]][real], short.tokens_BTD[real], atol=2e-6, rtol=0)
    unmasked = encoder(images, longer[0])
    assert not torch.allclose(unmasked.tokens_BTD[:, 0], short.tokens_BTD[:, 0], atol=1e-3)  # the mask does matter


def test_no_mask_is_a_mask_of_ones() -> None:
    encoder, (tokens, _) = build().encoder, texts()
    full = encoder(pixels(), tokens, torch.ones_like(tokens, dtype=torch.bool)).tokens_BTD
    torch.testing.assert_close(encoder(pixels(), tokens).tokens_BTD, full, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["image", "text", "fused"])
@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "multiway"])
def test_pooled_path_is_the_first_token_of_the_full_one(kind: str, adapter: bool) -> None:
    network = build(adapter)
    results = []
    for pooled in (False, True):
        network.zero_grad()
        tokens = network.encoder(*inputs(kind), pooled=pooled).tokens_BTD
        assert tokens.shape[1] == 1 or not pooled
        tokens[:, 0].square().sum().backward()
        gradients = {n: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for n, p in network.named_parameters()}
        results.append((tokens[:, 0].detach(), gradients))
    (full, full_gradients), (pooled_output, pooled_gradients) = results
    torch.testing.assert_close(pooled_output, full, atol=2e-6, rtol=0)
    assert full_gradients["encoder.layers.0.image.fc1.weight" if kind != "text" else "encoder.layers.0.text.fc1.weight"].any()
    for name, gradient in full_gradients.items():
        torch.testing.assert_close(
            pooled_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_pooled_path_computes_less() -> None:
    """All queries' attention, output and FFN of the last layer are left out for all tokens but one."""
    from torch.utils.flop_counter import FlopCounterMode

    encoder, counts = build().encoder, []
    for pooled in (False, True):
        with FlopCounterMode(display=False) as counter:
            encoder(pixels(), pooled=pooled)
        counts.append(counter.get_total_flops())
    skipped = 2 * 3 * PATCHES * (WIDTH * WIDTH + 2 * WIDTH * FFN) + 2 * 2 * 3 * PATCHES * IMAGE_TOKENS * WIDTH
    assert counts[0] - counts[1] == skipped


# ------------------------------------------------------------------------------------------------------- attention access


def test_maps_are_made_on_request_only_and_sum_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build().encoder
    images, tokens, mask = inputs("fused")
    assert encoder(images, tokens, mask).attention == {}
    monkeypatch.setattr(torch, "softmax", lambda *a, **k: pytest.fail("an attention map was made"))
    found = encoder(images, tokens, mask, attention=[1])
    monkeypatch.undo()
    assert list(found.attention) == [1]
    maps = found.attention[1].maps()
    assert maps.shape == (3, HEADS, IMAGE_TOKENS + 6, IMAGE_TOKENS + 6)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    assert mask is not None
    assert not maps[..., IMAGE_TOKENS:].transpose(1, 3)[~mask].any()  # nothing looks at padding
    torch.testing.assert_close(encoder(images, tokens, mask).tokens_BTD, found.tokens_BTD, atol=0, rtol=0)


def test_gradients_of_a_map_reach_queries_and_keys() -> None:
    network = build()
    maps = network.encoder(*inputs("image"), attention=[1]).attention[1].maps()
    maps[:, 0, 0, 0].sum().backward()
    weight = network.encoder.layers[1].image.qkv.weight.grad
    assert weight is not None
    assert weight[:WIDTH].any()
    assert weight[WIDTH : 2 * WIDTH].any()
    assert not weight[2 * WIDTH :].any()
    assert network.encoder.layers[0].image.fc2.weight.grad is not None
    assert network.encoder.layers[2].image.qkv.weight.grad is None


def test_maps_are_full_precision_under_autocast() -> None:
    encoder = build().encoder
    with torch.autocast("cpu", torch.bfloat16):
        seen = encoder(pixels(), attention=[0]).attention[0]
        assert seen.queries_BHQD.dtype == torch.bfloat16
        scores = seen.scores()
    wanted = seen.queries_BHQD.double() @ seen.keys_BHKD.double().transpose(-2, -1) / math.sqrt(WIDTH // HEADS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), wanted, atol=1e-6, rtol=1e-5)


def test_a_layer_that_does_not_exist() -> None:
    with pytest.raises(InputError, match=r"layers \[3\] was asked for, but BEiT-3 here has layers 0 to 2"):
        build().encoder(pixels(), attention=[0, 3])


def test_columns_that_are_padding_in_every_caption_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build()
    tokens, mask = texts()
    wide = TextBatch(
        caption_ids=("",) * len(tokens), texts=("",) * len(tokens),
        index_B=torch.arange(len(tokens)), image_index_B=torch.arange(len(tokens)),
        tokens_BT=torch.nn.functional.pad(tokens, (0, 5), value=1), mask_BT=torch.nn.functional.pad(mask, (0, 5)),
    )  # fmt: skip
    expected = torch.nn.functional.normalize(network.text_head(network.encoder(None, tokens, mask).tokens_BTD[:, 0]), dim=-1)
    widths, attend = [], beit3.attend
    monkeypatch.setattr(beit3, "attend", lambda q, k, v, m: (widths.append(k.shape[2]), attend(q, k, v, m))[1])
    torch.testing.assert_close(network.encode_texts(wide), expected)
    assert set(widths) == {int(mask.sum(1).max())}


def test_relations_are_those_of_patches_and_content_words() -> None:
    network = build()
    tokens, mask = texts()
    images, captions = batches()
    relations = network.relations(PairBatch(images, captions), [1])
    patches = (SIZE // PATCH) ** 2
    assert relations.regions.place_BN.tolist() == [list(range(1, patches + 1))] * len(tokens)
    assert relations.regions.mask_BN.all()
    words = [relations.words.place_BN[row][relations.words.mask_BN[row]].tolist() for row in range(len(tokens))]
    # after the class token and the patches comes <s>, then the words, then </s>
    assert words == [list(range(patches + 2, patches + int(length))) for length in mask.sum(1)]
    whole = network.encoder(images.pixels_B3HW, tokens, mask, attention=[1])
    torch.testing.assert_close(relations.attention[1].maps(), whole.attention[1].maps())


# -------------------------------------------------------------------------------------------------- drop path, checkpoints


def test_drop_path_grows_linearly_and_rests_in_eval() -> None:
    network = build(drop_path=0.4)
    rates = [layer.drop_path.probability for layer in network.encoder.layers]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
    assert torch.equal(network.encoder(pixels()).tokens_BTD, build().encoder(pixels()).tokens_BTD)
    network.train()
    assert not torch.allclose(network.encoder(pixels()).tokens_BTD, network.encoder(pixels()).tokens_BTD)


def test_drop_path_drops_branches_and_ae_but_never_the_ke(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = build(adapter=True, drop_path=0.5).train().encoder.layers[2]
    x = torch.randn(2, 5, WIDTH)
    for dense in (False, True):  # every sample loses its branch: rows computed, or dropped after
        monkeypatch.setattr(torch, "rand", lambda size, device: torch.ones(size))
        out, _ = layer(x, 5, want_attention=dense)
        torch.testing.assert_close(out, x + layer.multiway.knowledge_extractor["image"](x))
        assert (out - x).abs().max() > 0.01


@pytest.mark.parametrize("dense", [False, True])
def test_drop_path_keeps_whole_samples_and_scales_them(dense: bool) -> None:
    drop, x = DropPath(0.25).train(), torch.zeros(400, 5, 3)
    weight = torch.full((3,), 3.0, requires_grad=True)

    def branch(rows: torch.Tensor | None) -> torch.Tensor:
        assert dense == (rows is None)
        return (x if rows is None else x[rows]) + weight

    torch.manual_seed(0)
    out = drop(x, branch, dense)
    assert out.unique().tolist() == [0.0, 4.0]  # 3 / (1 - 0.25)
    assert all(len(row.unique()) == 1 for row in out)
    assert (out[:, 0, 0] > 0).float().mean() == pytest.approx(0.75, abs=0.06)
    out.sum().backward()
    assert weight.grad is not None
    assert weight.grad[0] == pytest.approx(5 / 0.75 * (out[:, 0, 0] > 0).sum().item(), rel=1e-5)


def test_computing_only_kept_samples_gives_the_dense_result_and_gradients() -> None:
    network = build(adapter=True, drop_path=0.5).train()
    results = []
    for compiling in (False, True):
        torch.manual_seed(1)
        network.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: compiling)  # noqa: B023
            patch.setattr(torch.nn.functional, "dropout", lambda x, *args, **kwargs: x)
            tokens, mask = texts()
            out = network.encoder(pixels(), pooled=True).tokens_BTD.sum() + network.encoder(None, tokens, mask).tokens_BTD.sum()
        out.backward()
        results.append((out.detach(), {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_in_fused_input_a_sample_drops_its_image_and_its_text_together() -> None:
    network = build(drop_path=0.5).train()
    layer = network.encoder.layers[2]
    torch.manual_seed(0)
    x = torch.randn(16, 7, WIDTH)
    moved = (layer(x, 4)[0] - x).abs().amax(-1) > 0
    assert 0 < moved[:, 0].sum() < 16
    assert torch.equal(moved[:, 0], moved[:, 5])


@pytest.mark.parametrize("tuning", ["full", "adapter"])
def test_activation_checkpointing_gives_equal_gradients(tuning: Any) -> None:
    gradients = []
    for checkpointed in (False, True):
        network = build(adapter=tuning == "adapter", drop_path=0.5, checkpoint_activations=checkpointed)
        adapter = MultiWayAdapter(knowledge_extractor_mid=3, alignment_enhancer_mid=5) if tuning == "adapter" else None
        set_tuning(network, adapter, tuning)
        network.train()
        torch.manual_seed(3)  # drop path draws the same again when the layers are recomputed
        tokens, mask = texts()
        (
            network.encoder(pixels(), pooled=True).tokens_BTD.sum() + network.encoder(None, tokens, mask).tokens_BTD.sum()
        ).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("layers.0" in name for name in gradients[0])
    assert all(".multiway." in name for name in gradients[0] if ".layers." in name) == (tuning == "adapter")
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name


def test_a_frozen_encoder_records_no_graph_unless_pixels_ask_for_it() -> None:
    network = build(checkpoint_activations=True).requires_grad_(False)
    assert not network.encoder(*inputs("fused")).tokens_BTD.requires_grad
    image = pixels().requires_grad_()  # a saliency map on a frozen network
    network.encoder(image, pooled=True).tokens_BTD.sum().backward()
    assert image.grad is not None
    assert image.grad.any()


def test_with_adapters_nothing_is_recorded_below_the_first() -> None:
    network = build(adapter=True)
    adapter = MultiWayAdapter(knowledge_extractor_mid=3, alignment_enhancer_mid=5)
    set_tuning(network, adapter, "adapter")
    hidden = network.encoder(pixels(), hidden=True).hidden
    assert [state.requires_grad for state in hidden] == [False, True, True, True]


# ------------------------------------------------------------------------------------------------------------ retrieval


def batches() -> tuple[ImageBatch, TextBatch]:
    ids, index = ("a", "b", "c"), torch.arange(3)
    return ImageBatch(ids, index, pixels()), TextBatch(ids, ids, index, index, *texts())


def test_encodings_are_normalized_heads_of_the_first_token() -> None:
    network, (images, captions) = build(), batches()
    for found, head, kind in (
        (network.encode_images(images), network.image_head, "image"),
        (network.encode_texts(captions), network.text_head, "text"),
    ):
        first = network.encoder(*inputs(kind)).tokens_BTD[:, 0] @ head.weight.T
        torch.testing.assert_close(found, first / first.norm(dim=-1, keepdim=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "multiway"])
def test_runs_in_bfloat16_autocast_with_a_full_precision_residual(adapter: bool) -> None:
    network, (images, captions) = build(adapter), batches()
    exact = network.encode_images(images)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = network.encoder(*inputs("fused"), hidden=True).hidden
        encoded = network.encode_images(images)
        loss = encoded @ network.encode_texts(captions).T
    assert {state.dtype for state in hidden} == {torch.float32}
    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded, exact, atol=0.05, rtol=0)
    loss.sum().backward()
    assert all(
        p.grad is not None for n, p in network.named_parameters() if n not in {*network.unused_parameters(), "logit_scale"}
    )


def test_all_parameters_but_the_mask_token_take_part() -> None:
    network, (images, captions) = build(), batches()
    loss = (network.encode_images(images) @ network.encode_texts(captions).T * network.logit_scale.exp()).square().sum()
    loss.backward()
    assert {name for name, parameter in network.named_parameters() if parameter.grad is None} == network.unused_parameters()


def test_deepcopy_is_apart_and_equal() -> None:
    network = build(adapter=True, checkpoint_activations=True)
    other = copy.deepcopy(network)
    assert torch.equal(other.encoder(pixels()).tokens_BTD, network.encoder(pixels()).tokens_BTD)
    with torch.no_grad():
        other.encoder.layers[0].multiway.knowledge_extractor["image"].up.bias += 1
    assert not torch.allclose(other.encoder(pixels()).tokens_BTD, network.encoder(pixels()).tokens_BTD)


def test_layer_ids_of_every_parameter() -> None:
    """unilm optim_factory.py: "embed" 0, layer i -> i + 1 (adapters too), all else behind the last layer."""
    network = build(adapter=True)
    assert network.num_layers == LAYERS
    for name, _ in network.named_parameters():
        if name.startswith(("encoder.image_embed.", "encoder.text_embed.")):
            wanted = 0
        elif name.startswith("encoder.layers."):
            wanted = int(name.split(".")[2]) + 1
        else:
            assert name.startswith(("encoder.norm.", "image_head.", "text_head.", "logit_scale"))
            wanted = LAYERS + 1
        assert network.layer_id(name) == wanted, name
    assert {name for name, _ in network.head_parameters()} == {"image_head.weight", "text_head.weight", "logit_scale"}
    names = dict(network.named_parameters())
    assert network.no_decay_parameters() <= names.keys()
    assert network.unused_parameters() <= names.keys()


@pytest.mark.parametrize(
    ("large", "size", "total"),
    [(False, 384, 222_458_881), (True, 384, 675_188_737), (False, 224, 222_167_041), (True, 224, 674_799_617)],
)
def test_official_parameter_totals(large: bool, size: int, total: int) -> None:
    sizes = {"width": 1024, "num_layers": 24, "num_heads": 16, "ffn_width": 4096} if large else {}
    with torch.device("meta"):
        network = BEiT3Retrieval(size, **sizes)
    assert sum(parameter.numel() for parameter in network.parameters()) == total


def test_starts_as_the_official_code_does() -> None:
    torch.manual_seed(0)
    network = BEiT3Retrieval(32, 64, 2, 4, 128, 8, 500, 66, "none")
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.abs().max() <= 0.02, name
            assert module.weight.std().item() == pytest.approx(0.0108, rel=0.05), name
            assert module.bias is None or not module.bias.any(), name
    assert network.encoder.text_embed.tokens.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    for table in (network.encoder.image_embed.positions, network.encoder.text_embed.positions):
        assert table.std().item() == pytest.approx(1, rel=0.1)
    assert network.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_compiled_in_one_graph() -> None:
    """The whole encoder with adapters is one graph: an eager backend shows breaks without the minutes of code generation."""
    network = build(adapter=True)
    wanted = network.encoder(*inputs("text"), pooled=True).tokens_BTD
    compiled = torch.compile(network.encoder, backend="eager", fullgraph=True)
    found: Encoded = compiled(*inputs("text"), pooled=True)
    assert torch.equal(found.tokens_BTD, wanted)
    torch._dynamo.reset()


def test_inputs_name_the_squashed_image_and_the_tokenizer() -> None:
    asked = build().inputs
    assert asked.image is not None
    assert asked.text is not None
    assert (asked.image.size, asked.image.resize, asked.image.mean, asked.image.std) == (SIZE, "squash", (0.5,) * 3, (0.5,) * 3)
    assert (asked.text.tokenizer, asked.text.max_tokens, asked.text.vocabulary) == ("none", 8, VOCAB)


# -------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, r"image_size \(30\) must be a multiple of patch_size \(16\)"),
        ({"width": 70, "num_heads": 4}, r"width \(70\) of num_heads \(4\)"),
        ({"num_heads": 0}, "every size must be 1 or more"),
        ({"drop_path": 1.0}, "drop_path is 1.0; give a probability"),
        ({"max_tokens": 1023}, "max_tokens 1023 exceeds its 1022 text positions"),
    ],
)
def test_sizes_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BEiT3Retrieval(**options)


def test_inputs_that_cannot_be() -> None:
    network, (tokens, _) = build(), texts()
    with pytest.raises(InputError, match=r"built for images of 12 px, got \(16, 16\); set image_size"):
        network.encoder(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="positions for 10 text tokens, got 11; lower max_tokens"):
        network.encoder(None, torch.zeros(1, 11, dtype=torch.int64))
    with pytest.raises(InputError, match=r"token ids from \d+ to 40, but its vocabulary has rows 0 to 39; use the tokenizer"):
        network.encoder(None, tokens.index_fill(1, torch.tensor([2]), 40))
    with pytest.raises(InputError, match="needs an image, a text or both"):
        network.encoder()
    with pytest.raises(InputError, match="needs pixels"):
        network.encode_images(ImageBatch(("a",), torch.arange(1)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_whole_network_may_have_another_dtype(dtype: torch.dtype) -> None:
    """`model.double()` and its like: pixels are still fp32."""
    network = build(adapter=True).eval()
    (tokens, mask), ids = texts(), ("a", "b", "c")
    pairs = PairBatch(
        ImageBatch(ids, torch.arange(3), pixels()), TextBatch(ids, ids, torch.arange(3), torch.arange(3), tokens, mask)
    )
    with torch.no_grad():
        expected = network.encode_images(pairs.images), network.encode_texts(pairs.texts)
        network.to(dtype)
        found = network.encode_images(pairs.images), network.encode_texts(pairs.texts)
        assert network.relations(pairs, [0]).attention[0].queries_BHQD.dtype == dtype
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.15 if dtype == torch.bfloat16 else 1e-4, rtol=0)
