"""I-Tuning against slow twins: one caption and one image at a time, keys and values computed anew at every step."""

from __future__ import annotations

import copy
import math
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_captioner import FAMILIES, LAYERS, captioner, images, texts
from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.adapters.i_tuning import ITuning, ITuningModule, ITuningModules, Rows
from lightning_modules.adapters.tuning import set_mode, set_tuning
from lightning_modules.checkpoints.adapter_export import export_adapter, load_adapter
from lightning_modules.networks.captioner import Captioner, VisualFeatures
from lightning_modules.networks.checkpointing import checkpoint_blocks
from lightning_modules.networks.decoder_layers import find_language_model
from lightning_modules.networks.language_model import Decoding, LanguageModel
from lightning_modules.networks.towers.hugging_face import HFImageTower


def tuned(family: str = "gpt2", *, checkpointed: bool = False, **options: Any) -> tuple[Captioner, ITuning]:
    network = captioner(family, checkpoint_activations=checkpointed)
    adapter = ITuning(**{"init_std": 0.5, "num_heads": 2, **options})
    adapter.inject(network)
    set_tuning(network, adapter, "adapter")
    return network, adapter


def modules_of(network: Captioner) -> ITuningModules:
    assert network.i_tuning is not None
    return network.i_tuning


def blocks_of(network: Captioner) -> list[nn.Module]:
    model, site = find_language_model(network)
    return list(model.get_submodule(site.layers).children())


# -------------------------------------------------------------------------------------------------------------- equations


def slow(module: ITuningModule, x_TD: Tensor, visual_ND: Tensor, scale: float, lambda_: float) -> tuple[Tensor, Tensor]:
    """Eq. 1-5 for one caption and one image, a head and a token at a time."""
    width = module.q.out_features // module.num_heads
    contexts, maps = [], []
    for head in range(module.num_heads):
        part = slice(head * width, (head + 1) * width)
        queries, keys, values = (
            (layer.weight[part] @ of.T).T + layer.bias[part]
            for layer, of in ((module.q, x_TD), (module.k, visual_ND), (module.v, visual_ND))
        )
        rows = torch.stack([torch.softmax(torch.stack([scale * (query @ key) for key in keys]), 0) for query in queries])
        maps.append(rows)
        contexts.append(rows @ values)
    return lambda_ * (torch.cat(contexts, -1) @ module.o.weight.T) + module.o.bias, torch.stack(maps)


@pytest.mark.parametrize(("heads", "scale", "lambda_"), [(1, 1.0, 4.0), (3, None, 1.0), (2, 0.3, 2.5)])
@pytest.mark.parametrize(
    "rows",
    [[0, 0, 1, 1, 2, 2], [2, 0, 1, 0, 1, 2], [0, 0, 0, 2, 1], [1, 1, 1, 1, 1, 1, 0], [2, 0]],
    ids=["grouped", "mixed", "ragged", "copied", "one image unused"],
)
def test_captions_share_their_image_by_index(rows: list[int], heads: int, scale: float | None, lambda_: float) -> None:
    torch.manual_seed(0)
    module = ITuningModule(8, 5, 6, heads, scale, lambda_, init_std=0.5)
    nn.init.normal_(module.o.bias)
    x, visual = torch.randn(len(rows), 4, 8), torch.randn(3, 7, 5)
    modules = ITuningModules({"0": module})
    modules.set_images(visual, torch.tensor(rows))
    assert module._images is not None
    with modules.keep_maps() as kept:
        watched = module(x, module._images)
    found = module(x, module._images)
    flat = module(x.flatten(0, 1), module._images)  # OPT
    for row, image in enumerate(rows):
        expected, maps = slow(module, x[row], visual[image], 1 / math.sqrt(6 / heads) if scale is None else scale, lambda_)
        for tensor in (found[row], watched[row], flat.unflatten(0, x.shape[:2])[row]):
            torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(kept[0][0][row].transpose(0, 1), maps, atol=1e-6, rtol=1e-5)


def test_keys_are_copied_only_for_very_unequal_numbers() -> None:
    module = ITuningModule(8, 5, 6)
    modules = ITuningModules({"0": module})
    for rows, keys in (([0, 0, 1, 1, 2, 2], 3), ([2, 1, 0], 3), ([0, 0, 0, 1, 2], 3), ([0] * 7 + [1, 2], 9)):
        modules.set_images(torch.randn(3, 7, 5), torch.tensor(rows))
        assert module._images is not None
        assert len(module._images.keys_IHVE) == keys
    with pytest.raises(InputError, match="image rows 0 to 3 of 3"):
        Rows.of(torch.tensor([0, 3]), 3)
    with pytest.raises(InputError, match="of 3"):
        Rows.of(torch.tensor([], dtype=torch.int64), 3)


# --------------------------------------------------------------------------------------------------------- every family


def slow_caption(network: Captioner, visual_ND: Tensor, longest: int) -> list[int]:
    """Greedy tokens of one image without any cache."""
    ids = [network.language.bos]
    for _ in range(longest):
        modules_of(network).set_images(visual_ND[None])
        logits = network.language.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] == network.language.eos:
            break
    modules_of(network).clear_images()
    return [i for i in ids[1:] if i != network.language.eos]


@pytest.mark.parametrize("family", FAMILIES)
def test_language_model_is_untouched_and_sees_the_image(family: str) -> None:
    plain = captioner(family)
    names, keys = [n for n, _ in plain.language.named_modules()], list(plain.language.state_dict())
    tokens = texts([0, 1, 1]).tokens_BT
    with torch.no_grad():
        expected = plain.language.model(input_ids=tokens).logits
    network, adapter = tuned(family)
    assert [n for n, _ in network.language.named_modules()] == names
    assert list(network.language.state_dict()) == keys
    assert {n for n in network.state_dict() if adapter.owns(n)} == {n for n in network.state_dict() if n.startswith("i_tuning.")}
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {n for n in network.state_dict() if adapter.owns(n)}
    with torch.no_grad():
        assert torch.equal(network.language.model(input_ids=tokens).logits, expected)  # no image: bit by bit
        features = network.encode_images(images(3))
        rows = torch.tensor([0, 2, 2])
        found = network.logits(features, texts([0, 2, 2]), rows)
        alone = [
            network.logits(
                VisualFeatures(features.tokens_IVD[row : row + 1]), texts([0, 2, 2]), torch.zeros(3, dtype=torch.int64)
            )[i]
            for i, row in enumerate(rows.tolist())
        ]
        torch.testing.assert_close(found, torch.stack(alone), atol=2e-5, rtol=1e-4)
        other = network.logits(VisualFeatures(features.tokens_IVD.flip(0)), texts([0, 2, 2]), rows)
        assert (found - other).abs().amax((1, 2)).min() > 0.01
        network.clear_images()
        assert torch.equal(network.language.model(input_ids=tokens).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_computes_keys_once_an_image(family: str) -> None:
    network, _ = tuned(family, drop_first=1)
    features = VisualFeatures(2 * torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(3)))
    projections: list[int] = []
    for module in modules_of(network).modules_by_layer().values():
        module.k.register_forward_hook(lambda layer, args, output: projections.append(len(args[0])))
    greedy = network.generate_ids(features, Decoding(num_beams=1, max_new_tokens=8))
    assert greedy == [slow_caption(network, visual, 8) for visual in features.tokens_IVD]
    projections.clear()
    beams = network.generate_ids(features, Decoding(num_beams=5, max_new_tokens=8))
    assert projections == [3] * (LAYERS - 1)  # once a layer, for three images: not for fifteen beams, not at every step
    assert beams == [
        network.generate_ids(VisualFeatures(visual[None]), Decoding(num_beams=5, max_new_tokens=8))[0]
        for visual in features.tokens_IVD
    ]
    assert (
        beams == network.generate_ids(VisualFeatures(features.tokens_IVD.flip(0)), Decoding(num_beams=5, max_new_tokens=8))[::-1]
    )
    assert len({tuple(ids) for ids in beams}) > 1
    assert all(module._images is None for module in modules_of(network).modules_by_layer().values())  # let go of afterwards
    # the same beams with keys and values of an image's copies, one a beam, and no cache
    modules_of(network).set_images(features.tokens_IVD.repeat_interleave(5, 0))
    lead = torch.full((3, 1), network.language.bos)
    settings = network.language.settings(Decoding(num_beams=5, max_new_tokens=8))
    settings.use_cache = False
    slow_beams = network.language.model.generate(lead, attention_mask=torch.ones_like(lead), generation_config=settings)
    assert beams == [network.language._cut(row, False) for row in slow_beams[:, 1:].tolist()]


# --------------------------------------------------------------------------------------------------------------- dropping


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_nothing_is_recorded_below_the_first_module(family: str, checkpointed: bool) -> None:
    network, adapter = tuned(family, checkpointed=checkpointed, drop_first=2)
    assert set(modules_of(network)) == {"2", "3"}
    set_mode(network, True, adapter)
    assert not any(module.training for module in network.language.modules())
    requires: list[bool] = []
    states: list[weakref.ref[Tensor]] = []

    def after(block: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        requires.append(output.requires_grad)
        states.append(weakref.ref(output))

    handles = [block.register_forward_hook(after) for block in blocks_of(network)]
    loss = network.loss(network.encode_images(images(2)), texts([0, 1, 1]), torch.tensor([0, 1, 1]))["loss"]
    assert requires == [False, False, True, True]
    assert states[0]() is None  # no graph keeps what is below: it is gone before the backward pass
    for handle in handles:
        handle.remove()
    loss.backward()
    assert all(p.grad is not None for p in modules_of(network).parameters())
    reference, _ = tuned(family, drop_first=2)
    reference.loss(reference.encode_images(images(2)), texts([0, 1, 1]), torch.tensor([0, 1, 1]))["loss"].backward()
    for mine, theirs in zip(modules_of(network).parameters(), modules_of(reference).parameters(), strict=True):
        assert mine.grad is not None
        assert torch.equal(mine.grad, theirs.grad)
    assert all(p.grad is None for p in network.language.parameters())


def test_dropped_layers_are_the_plain_ones() -> None:
    network, _ = tuned(drop_first=2)
    full, _ = tuned()
    full_modules = modules_of(full).modules_by_layer()
    with torch.no_grad():
        for layer, module in modules_of(network).modules_by_layer().items():
            module.load_state_dict(full_modules[layer].state_dict())
        for layer in (0, 1):
            nn.init.zeros_(full_modules[layer].o.weight)
        features, rows = network.encode_images(images(2)), torch.tensor([1, 0])
        batch = texts([1, 0])
        torch.testing.assert_close(network.logits(features, batch, rows), full.logits(features, batch, rows))


def test_chosen_layers_instead() -> None:
    network, _ = tuned(layers=[3, 1])
    assert list(modules_of(network)) == ["1", "3"]
    network, _ = tuned(drop_first="half")
    assert list(modules_of(network)) == ["2", "3"]
    for options, message in (
        ({"layers": [4]}, r"layers \[4\], but the language model has layers 0 to 3"),
        ({"drop_first": 4}, "drop_first 4"),
    ):
        with pytest.raises(InputError, match=message):
            tuned(**options)


# --------------------------------------------------------------------------------------------------------------- options


def test_zero_up_starts_as_the_language_model() -> None:
    network, adapter = tuned(init="zero_up")
    assert adapter.identity_at_start
    assert not ITuning().identity_at_start
    batch, rows = texts([0, 1]), torch.tensor([0, 1])
    with torch.no_grad():
        lead = torch.full((2, 1), network.language.bos)
        plain = network.language.model(input_ids=torch.cat([lead, batch.tokens_BT[:, :-1]], 1)).logits
        features = network.encode_images(images(2))
        assert torch.equal(network.logits(features, batch, rows), plain)
        nn.init.normal_(modules_of(network).modules_by_layer()[0].o.weight)
        assert not torch.equal(network.logits(features, batch, rows), plain)


def test_readings_and_x() -> None:
    printed = ITuning().module(768, 768, 12)
    assert (printed.num_heads, printed.scale, printed.q.out_features, printed.lambda_) == (1, 1.0, 384, 4.0)
    multihead = ITuning("multihead").module(1280, 768, 12)
    assert (multihead.num_heads, multihead.scale, multihead.q.out_features) == (10, 0.125, 640)
    assert ITuning("multihead", num_heads=4, scale=2.0).module(768, 768, 12).scale == 2.0
    assert ITuning(scale="sqrt", num_heads=6).module(768, 768, 12).scale == pytest.approx(1 / 8)
    assert float(printed.q.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    # X as the residual stream is the FFN's input before its norm
    results = {}
    for x in ("ffn_input", "residual"):
        network, _ = tuned(x=x, layers=[2])
        block: Any = blocks_of(network)[2]
        inputs: dict[str, Tensor] = {}
        block.ln_2.register_forward_hook(lambda m, a, out, kept=inputs: kept.update(residual=a[0], ffn_input=out))
        read: list[Tensor] = []
        modules_of(network).modules_by_layer()[2].q.register_forward_hook(lambda m, a, out, kept=read: kept.append(a[0]))
        with torch.no_grad():
            results[x] = network.logits(network.encode_images(images(1)), texts([0]), torch.tensor([0]))
        assert torch.equal(read[0], inputs[x])
    assert not torch.allclose(results["ffn_input"], results["residual"])
    normed = ITuning(visual_norm=True).module(768, 768, 12)
    assert sum(p.numel() for p in normed.parameters()) - sum(p.numel() for p in printed.parameters()) == 2 * 768
    features = torch.randn(1, 3, 768)
    torch.testing.assert_close(
        normed.keys_values(features, Rows(1, 1, None)).keys_IHVE[:, 0], normed.k(F.layer_norm(features, (768,)))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "3 heads do not divide the bottleneck of 8"),
        ({"reading": "released"}, "unknown reading"),
        ({"layers": [1], "drop_first": 1}, "not both"),
        ({"layers": []}, "layers"),
        ({"bottleneck": 0}, "bottleneck 0"),
        ({"drop_first": -1}, "drop_first -1"),
        ({"lambda_": 0.0}, "lambda_"),
        ({"scale": -1.0}, "scale"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tuned(**options)


def test_refuses_what_it_does_not_know() -> None:
    network, adapter = tuned()
    with pytest.raises(InputError, match="inject only once"):
        adapter.inject(network)
    with pytest.raises(InputError, match="visual_width"):
        ITuning().inject(nn.Linear(2, 2))
    other = captioner()
    other.language.model = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"gpt2, gpt_neox.*it has CLIPVisionModel \(clip_vision_model\)"):
        ITuning().inject(other)


# ------------------------------------------------------------------------------------------------------- published counts


@pytest.mark.parametrize(
    ("width", "layers", "heads", "drop", "count"),
    [
        (768, 12, 12, 0, 14_178_816),
        (1024, 24, 16, 0, 44_101_632),
        (1280, 36, 20, 0, 94_487_040),
        (1280, 36, 20, 18, 47_243_520),
    ],
)
@pytest.mark.parametrize("reading", ["paper", "multihead"])
def test_printed_parameter_counts(width: int, layers: int, heads: int, drop: int, count: int, reading: str) -> None:
    clip = {
        "model_type": "clip_vision_model",
        "hidden_size": 768,
        "num_hidden_layers": 1,
        "num_attention_heads": 12,
        "patch_size": 16,
    }
    gpt2 = {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 64}
    with torch.device("meta"):
        network = Captioner(HFImageTower(config=clip), LanguageModel(config=gpt2))
    adapter = ITuning(reading, drop_first=drop)  # type: ignore[arg-type]
    adapter.inject(network)
    counts = set_tuning(network, adapter, "adapter")
    assert counts.adapter == counts.trainable == count


# ---------------------------------------------------------------------------------------------------- copies and exports


def test_export_comes_back(tmp_path: Any) -> None:
    network, adapter = tuned(drop_first=2, lambda_=2.0)
    folder = export_adapter(network, adapter, tmp_path / "export")
    fresh = captioner()
    loaded = load_adapter(fresh, folder)
    assert isinstance(loaded, ITuning)
    assert loaded.describe() == adapter.describe()
    features, batch, rows = network.encode_images(images(2)), texts([0, 1]), torch.tensor([0, 1])
    with torch.no_grad():
        assert torch.equal(fresh.logits(features, batch, rows), network.logits(features, batch, rows))


def test_copies_work_on_their_own_after_a_step() -> None:
    network, _ = tuned()
    features, batch, rows = network.encode_images(images(2)), texts([0, 1]), torch.tensor([0, 1])
    expected = network.logits(features, batch, rows)  # with a graph in the modules, which cannot be copied
    twin = copy.deepcopy(network)
    assert torch.equal(twin.logits(features, batch, rows), expected)
    with torch.no_grad():
        for parameter in modules_of(twin).parameters():
            parameter.zero_()
    assert torch.equal(network.logits(features, batch, rows), expected)
    assert not torch.equal(twin.logits(features, batch, rows), expected)


def test_half_precision_and_library_checkpointing() -> None:
    network, _ = tuned()
    features, batch, rows = network.encode_images(images(2)), texts([0, 1, 1]), torch.tensor([0, 1, 1])
    full = network.loss(features, batch, rows)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        half = network.loss(features, batch, rows)["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.05)
    checkpoint_blocks(blocks_of(network))  # after injection as well
    again = network.loss(features, batch, rows)["loss"]
    assert torch.equal(again, full)
    assert len(blocks_of(network)) == LAYERS


@pytest.mark.parametrize("between", ["loss", "generate", "clear", "maps"])
def test_a_checkpointed_backward_pass_attends_to_the_images_of_its_own_loss(between: str) -> None:
    """Whatever the modules held last: what is recomputed is what was computed."""
    batch, rows = texts([0, 1, 1]), torch.tensor([0, 1, 1])
    first, second = (VisualFeatures(tokens) for tokens in captioner().encode_images(images(4)).tokens_IVD.split(2))

    def gradients(network: Captioner, *losses: Tensor, retain: bool = False) -> list[Tensor]:
        own = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return list(torch.autograd.grad(torch.stack(losses).sum(), own, retain_graph=retain))

    plain, _ = tuned()
    one, other = (gradients(plain, plain.loss(each, batch, rows)["loss"]) for each in (first, second))
    expected = [a + b for a, b in zip(one, other, strict=True)] if between == "loss" else one
    network = copy.deepcopy(tuned(checkpointed=True)[0])  # a copy binds its own modules
    if between == "maps":
        with modules_of(network).keep_maps() as kept:
            losses = [network.loss(first, batch, rows)["loss"]]
            modules_of(network).clear_images()
    else:
        losses = [network.loss(first, batch, rows)["loss"]]
    match between:
        case "loss":
            losses.append(network.loss(second, batch, rows)["loss"])
        case "generate":
            network.generate_ids(second, Decoding(max_new_tokens=3))
        case "clear":
            network.clear_images()
    held = [module._images for module in modules_of(network).modules_by_layer().values()]
    torch.testing.assert_close(gradients(network, *losses, retain=True), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients(network, *losses), expected, rtol=1e-4, atol=1e-6)  # as often as asked for
    assert all(a is module._images for a, module in zip(held, modules_of(network).modules_by_layer().values(), strict=True))
    if between == "maps":
        assert [len(maps) for maps in kept.values()] == [1] * LAYERS
