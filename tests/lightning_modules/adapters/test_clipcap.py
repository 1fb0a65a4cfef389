"""ClipCap: mappers, the released beam search against a slow twin, the official checkpoint layout, and published counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_captioner import captioner, images, texts
from torch import Tensor

from datamodules.errors import InputError
from lightning_modules.adapters.clipcap import ClipCap
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.adapters.tuning import count_parameters, set_mode, set_tuning
from lightning_modules.checkpoints import clipcap as checkpoint
from lightning_modules.checkpoints.adapter_export import export_adapter, load_adapter
from lightning_modules.networks.captioner import Captioner, VisualFeatures
from lightning_modules.networks.language_model import Decoding, LanguageModel, clipcap_beams
from lightning_modules.networks.towers.hugging_face import HFImageTower

OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"mapping": "mlp", "prefix_length": 3},
    "transformer": {"mapping": "transformer", "prefix_length": 3, "clip_length": 2, "layers": 2, "num_heads": 8},
}


def tuned(mapping: str = "transformer", family: str = "gpt2", **options: Any) -> tuple[Captioner, ClipCap]:
    network = captioner(family, visual="pooled")
    adapter = ClipCap(**{**OPTIONS[mapping], **options})
    torch.manual_seed(3)
    adapter.inject(network)
    for name, parameter in network.named_parameters():
        if name.startswith("prefix.") and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    set_tuning(network, adapter, "adapter")
    return network, adapter


# --------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("mapping", OPTIONS)
def test_frozen_or_tuned_language_model(mapping: str) -> None:
    network, adapter = tuned(mapping)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {name for name in network.state_dict() if name.startswith("prefix.")}
    set_mode(network, True, adapter)
    assert not network.language.model.training
    both, adapter = tuned(mapping, tune_language_model=True)
    trained = {name for name, p in both.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in both.named_parameters() if name.startswith(("prefix.", "language."))}
    assert not any(adapter.owns(name) for name in trained if name.startswith("language."))
    counts = count_parameters(both, adapter)
    assert counts.trainable == counts.adapter + counts.heads
    assert counts.heads == sum(p.numel() for p in both.language.parameters())
    set_mode(both, True, adapter)
    assert both.language.model.training
    assert not both.vision.model.training


def test_each_image_has_one_prefix() -> None:
    network, _ = tuned()
    calls: list[int] = []
    assert network.prefix is not None
    network.prefix.register_forward_hook(lambda m, args, out: calls.append(len(args[0])))
    rows = torch.tensor([1, 0, 1, 1])
    found = network.logits(network.encode_images(images(2)), texts(rows.tolist()), rows)
    assert calls == [2]
    for i, row in enumerate(rows.tolist()):
        features = VisualFeatures(network.encode_images(images(2)).tokens_IVD[row : row + 1])
        alone = network.logits(features, texts(rows.tolist()), torch.zeros(4, dtype=torch.int64))[i]
        torch.testing.assert_close(found[i], alone, atol=1e-5, rtol=1e-4)


def test_normalized_vectors() -> None:
    plain, _ = tuned()
    unit, _ = tuned(normalize=True)
    vectors = torch.randn(2, 1, 12)
    assert plain.prefix is not None
    assert unit.prefix is not None
    torch.testing.assert_close(unit.prefix(vectors), plain.prefix(vectors / vectors.norm(dim=-1, keepdim=True)))
    torch.testing.assert_close(unit.prefix(3 * vectors), unit.prefix(vectors))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "3 heads do not divide"),
        ({"mapping": "cubic"}, "unknown mapping"),
        ({"prefix_length": 0}, "must be positive"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClipCap(**options).inject(captioner(visual="pooled"))


def test_goes_only_where_it_can() -> None:
    network, adapter = tuned()
    with pytest.raises(InputError, match="inject only once"):
        adapter.inject(network)
    with pytest.raises(InputError, match="set visual of the captioner to pooled"):
        ClipCap().inject(captioner())
    with pytest.raises(InputError, match="captioners only"):
        ClipCap().inject(torch.nn.Linear(2, 2))


# ------------------------------------------------------------------------------------------------------------- generation


def slow_beams(network: Captioner, lead_LD: Tensor, beams: int, longest: int) -> list[list[int]]:
    """ClipCap's search for one image, with lists, without a cache: (sum, tokens, finished) of every beam."""
    language = network.language

    def continuations(tokens: list[int]) -> list[float]:
        embedded = torch.cat([lead_LD, language.embed(torch.tensor(tokens, dtype=torch.int64))])
        return language.model(inputs_embeds=embedded[None]).logits[0, -1].log_softmax(-1).tolist()

    first = sorted(((value, [token]) for token, value in enumerate(continuations([]))), key=lambda pair: -pair[0])[:beams]
    kept = [(value, tokens, tokens[-1] == language.eos) for value, tokens in first]
    for _ in range(longest - 1):
        if all(finished for _, _, finished in kept):
            break
        candidates = []
        for total, tokens, finished in kept:
            if finished:
                candidates.append((total / len(tokens), total, tokens, True))
                continue
            for token, value in enumerate(continuations(tokens)):
                mean = (total + value) / (len(tokens) + 1)
                candidates.append((mean, total + value, [*tokens, token], token == language.eos))
        candidates.sort(key=lambda candidate: -candidate[0])
        kept = [candidate[1:] for candidate in candidates[:beams]]
    kept.sort(key=lambda beam: -beam[0] / len(beam[1]))
    return [tokens for _, tokens, _ in kept]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@torch.no_grad()
def test_released_beam_search(family: str) -> None:
    network, _ = tuned(family=family)
    features = VisualFeatures(2 * torch.randn(3, 1, 12, generator=torch.Generator().manual_seed(4)))
    lead = network._lead(features, None)
    # an end token that some beams meet early, some late, some never
    network.language.eos = clipcap_beams(network.language, lead, Decoding(num_beams=4, max_new_tokens=8))[0][1][3]
    found = clipcap_beams(network.language, lead, Decoding(num_beams=4, max_new_tokens=8))
    assert found == [slow_beams(network, each, 4, 8) for each in lead]
    ends = {network.language.eos in beam for beams in found for beam in beams}
    assert True in ends
    assert len({len(beam) for beams in found for beam in beams}) > 1
    best = network.generate_ids(features, Decoding(num_beams=4, max_new_tokens=8, algorithm="clipcap", keep_eos=True))
    assert best == [beams[0] for beams in found]


@pytest.mark.parametrize("family", ["gpt2", "pythia", "llama", "opt 350m"])
def test_library_generation_from_a_prefix(family: str) -> None:
    network, _ = tuned(family=family)
    features = VisualFeatures(2 * torch.randn(3, 1, 12, generator=torch.Generator().manual_seed(4)))
    for beams in (1, 5):
        decoding = Decoding(num_beams=beams, max_new_tokens=6)
        together = network.generate_ids(features, decoding)
        assert together == [network.generate_ids(VisualFeatures(each[None]), decoding)[0] for each in features.tokens_IVD]
    with torch.no_grad():
        embedded = network._lead(features, None)
        greedy: list[list[int]] = [[] for _ in range(3)]
        for _ in range(6):
            best = network.language.model(inputs_embeds=embedded).logits[:, -1].argmax(-1)
            for ids, token in zip(greedy, best.tolist(), strict=True):
                ids.append(token)
            embedded = torch.cat([embedded, network.language.embed(best)[:, None]], 1)
    assert network.generate_ids(features, Decoding(num_beams=1, max_new_tokens=6)) == [
        network.language._cut(r, False) for r in greedy
    ]


# ------------------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("mapping", OPTIONS)
def test_official_checkpoint_out_and_in(mapping: str, tmp_path: Path) -> None:
    network, _ = tuned(mapping)
    path = checkpoint.write_official(network, tmp_path / "clipcap.pt")
    with pytest.raises(InputError, match="exists already"):
        checkpoint.write_official(network, path)
    stored = torch.load(path, weights_only=True)
    assert {name.split(".")[0] for name in stored} == {"clip_project", "gpt"}
    assert torch.equal(stored["gpt.transformer.wte.weight"], network.language.model.get_input_embeddings().weight)
    first = "clip_project.model.0.weight" if mapping == "mlp" else "clip_project.transformer.layers.0.attn.to_queries.weight"
    assert first in stored
    stored["gpt.transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)  # a causal mask, as old releases keep
    stored["gpt.transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    del stored["gpt.lm_head.weight"]
    torch.save(stored, tmp_path / "old.pt")
    described = checkpoint.describe_official(stored, "old.pt")
    fresh = captioner(visual="pooled")
    torch.manual_seed(9)
    described.inject(fresh)
    for parameter in fresh.language.parameters():
        torch.nn.init.zeros_(parameter)
    checkpoint.load_official(fresh, tmp_path / "old.pt")
    features, batch, rows = network.encode_images(images(2)), texts([0, 1]), torch.tensor([0, 1])
    with torch.no_grad():
        assert torch.equal(fresh.logits(features, batch, rows), network.logits(features, batch, rows))


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    network, _ = tuned("transformer")
    path = checkpoint.write_official(network, tmp_path / "clipcap.pt")
    other, _ = tuned("transformer", clip_length=4)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        InputError, match=r"options are mapping=transformer, prefix_length=3, clip_length=2, layers=2, mlp_ratio=2\.0"
    ):
        checkpoint.load_official(other, path)
    state = checkpoint.official_state(network)
    for broken, message in (
        ({**state, "optimizer": torch.zeros(1)}, "holds more than a ClipCap model"),
        ({name: t for name, t in state.items() if name.startswith("gpt.")}, "no clip_project"),
        ({name: t for name, t in state.items() if "ln_f" not in name}, r"missing: transformer\.ln_f\.bias"),
    ):
        with pytest.raises(InputError, match=message):
            checkpoint.load_state(other if "clip_project" in message else network, broken, "the file")
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    with pytest.raises(InputError, match="has no prefix"):
        checkpoint.official_state(captioner(visual="pooled"))
    llama, _ = tuned(family="llama")
    with pytest.raises(InputError, match="this language model is a llama"):
        checkpoint.write_official(llama, tmp_path / "llama.pt")


@pytest.mark.parametrize("tune", [False, True])
def test_export_comes_back(tune: bool, tmp_path: Path) -> None:
    network, adapter = tuned(tune_language_model=tune)
    export_adapter(network, adapter, tmp_path / "export")
    fresh = captioner(visual="pooled")
    loaded = load_adapter(fresh, tmp_path / "export")
    assert loaded is not None
    assert loaded.describe() == adapter.describe()
    features, batch, rows = network.encode_images(images(2)), texts([0, 1]), torch.tensor([0, 1])
    with torch.no_grad():
        assert torch.equal(fresh.logits(features, batch, rows), network.logits(features, batch, rows))


# ----------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("width", "layers", "heads", "millions"), [(768, 12, 12, 41.7), (1024, 24, 16, 72.4), (1280, 36, 20, 111.5)]
)
def test_counts_of_the_transformer_mapper(width: int, layers: int, heads: int, millions: float) -> None:
    """K 10, clip_length 10, 8 layers, on CLIP's projected 512-d vectors (facts, section 1)."""
    with torch.device("meta"):
        mapper = ClipCap().mapper(512, width)
    assert round(sum(p.numel() for p in mapper.parameters()) / 1e6, 1) == millions
    clip = {"model_type": "clip_vision_model", "hidden_size": 512, "num_hidden_layers": 1, "num_attention_heads": 8}
    gpt2 = {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 64}
    with torch.device("meta"):
        network = Captioner(HFImageTower(config=clip), LanguageModel(config=gpt2), visual="pooled")
    adapter = ClipCap()
    adapter.inject(network)
    assert set_tuning(network, adapter, "adapter").trainable == sum(p.numel() for p in mapper.parameters())


def test_i_tuning_and_clipcap_do_not_own_each_others() -> None:
    network, adapter = tuned()
    names = [name for name, _ in network.named_parameters()]
    assert not any(ITuning().owns(name) for name in names)
    assert sum(adapter.owns(name) for name in names) == len(list(network.prefix.parameters())) if network.prefix else False
    assert adapter.owns("prefix.mapper.linear.weight")
    assert not adapter.owns("language.model.prefix.weight")
