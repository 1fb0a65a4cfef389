"""Official UNITER checkpoints in and out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from datamodules.errors import InputError
from datamodules.files import releases as official
from datamodules.records import ImageBatch, MaskedBatch, TextBatch
from lightning_modules.checkpoints.fill import fill
from lightning_modules.checkpoints.uniter import (
    load,
    load_official,
    official_names,
    pretraining_to_official,
    to_official,
    write_official,
)
from lightning_modules.networks.packing import Packed
from lightning_modules.networks.uniter import EPS, UniterRetrieval
from lightning_modules.networks.uniter_pretraining import UniterPretraining

SIZES = {
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_width": 32,
    "vocab_size": 40,
    "text_positions": 12,
    "feature_width": 8,
}


def network(**changes: Any) -> UniterRetrieval:
    torch.manual_seed(len(changes))
    return UniterRetrieval(**{**SIZES, **changes})


def pretraining(source: UniterRetrieval) -> dict[str, Tensor]:
    """The layout of uniter-base.pt: the encoder, the matching head and the heads of masked pre-training; no ranking head."""
    state = {name: tensor for name, tensor in to_official(source.state_dict()).items() if not name.startswith("rank_output")}
    state["cls.predictions.bias"] = torch.zeros(40)
    state["feat_regress.weight"] = state["uniter.img_embeddings.img_linear.weight"]
    state["region_classifier.net.0.weight"] = torch.zeros(16, 16)
    return state


def test_round_trip_is_exact(tmp_path: Path) -> None:
    source, target = network(), network()
    for parameter in target.parameters():
        torch.nn.init.zeros_(parameter)
    path = write_official(source, tmp_path / "model_step_1.pt")
    assert load_official(target, path) == frozenset()
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name


def test_every_tensor_has_its_official_name() -> None:
    names = [each for name in network().state_dict() for each in official_names(name)]
    assert len(names) == len(set(names)) == 22 + 16 * (SIZES["num_layers"])  # base, 12 layers: 214
    assert "uniter.encoder.layer.1.attention.self.value.bias" in names
    with pytest.raises(InputError, match="no place in the official UNITER layout"):
        official_names("encoder.layers.0.multiway.knowledge_extractor.down.weight")


def test_pretraining_files_start_the_ranking_head_from_matched(tmp_path: Path) -> None:
    source, target = network(), network()
    torch.save(pretraining(source), tmp_path / "uniter-tiny.pt")
    extra = load_official(target, tmp_path / "uniter-tiny.pt")
    assert extra == {"cls.predictions.bias", "feat_regress.weight", "region_classifier.net.0.weight"}
    assert torch.equal(target.rank.weight, source.itm.weight[1:])
    assert torch.equal(target.rank.bias, source.itm.bias[1:])


def test_a_fine_tuned_ranking_head_is_kept(tmp_path: Path) -> None:
    source, target = network(), network()
    torch.save(to_official(source.state_dict()), tmp_path / "model_step_5000.pt")
    load_official(target, tmp_path / "model_step_5000.pt")
    assert torch.equal(target.rank.weight, source.rank.weight)
    assert not torch.equal(target.rank.weight, source.itm.weight[1:])


def test_old_names_prefixes_and_half_precision(tmp_path: Path) -> None:
    source, target = network(), network()
    old = {}
    for name, tensor in pretraining(source).items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        old[name.replace("uniter.", "bert.", 1)] = tensor.half()
    torch.save(old, tmp_path / "old.pt")
    load_official(target, tmp_path / "old.pt")
    for name, tensor in source.state_dict().items():
        if not name.startswith("rank."):
            torch.testing.assert_close(target.state_dict()[name], tensor.half().float(), atol=0, rtol=0, msg=name)
    assert all(parameter.dtype == torch.float32 for parameter in target.parameters())


def test_what_does_not_fit_is_told_and_nothing_changes(tmp_path: Path) -> None:
    torch.save(to_official(network().state_dict()), tmp_path / "tiny.pt")
    deeper, wider = network(num_layers=3), network(width=32)
    before = {name: tensor.clone() for name, tensor in deeper.state_dict().items()}
    with pytest.raises(InputError, match=r"tiny\.pt lacks 16 tensors .*num_layers"):
        load_official(deeper, tmp_path / "tiny.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in deeper.state_dict().items())
    with pytest.raises(InputError, match=r"other shapes .* \[40, 16\] instead of \[40, 32\]"):
        load_official(wider, tmp_path / "tiny.pt")
    with pytest.raises(InputError, match="exists already"):
        write_official(network(), tmp_path / "tiny.pt")


def bert(folder: Path, **changes: int) -> BertModel:
    torch.manual_seed(7)
    sizes = {
        "vocab_size": 30, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40,
        "max_position_embeddings": 12,
    }  # fmt: skip
    model = BertModel(BertConfig(**sizes | changes, layer_norm_eps=EPS)).eval()
    model.save_pretrained(folder)
    return model


def from_bert(folder: Path, **changes: Any) -> UniterRetrieval:
    sizes = {
        "width": 24, "num_layers": 2, "num_heads": 2, "ffn_width": 40, "vocab_size": 30, "text_positions": 12, "feature_width": 5,
        "tokenizer": None,
    }  # fmt: skip
    return fill(UniterRetrieval(**sizes | changes, weights=str(folder))).eval()


def test_bert_becomes_the_text_side(tmp_path: Path) -> None:
    model = bert(tmp_path)
    network = from_bert(tmp_path)
    tokens = torch.randint(0, 30, (2, 7), generator=torch.Generator().manual_seed(0))
    words = network.encoder.embed_texts(tokens, torch.ones_like(tokens, dtype=torch.bool))
    packed = Packed(words.states_ND.view(2, 7, -1), None, words.lengths_B, torch.zeros_like(words.lengths_B))
    with torch.no_grad():
        ours, theirs = network.encoder(packed).tokens_BSD, model(tokens)
        torch.testing.assert_close(ours, theirs.last_hidden_state, atol=1e-6, rtol=0)
        torch.testing.assert_close(network.encoder.pool(ours), theirs.pooler_output, atol=1e-6, rtol=0)
    assert not network.loaded_heads


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"num_layers": 1}, "2 layers"), ({"ffn_width": 48}, "FFN 40"),
     ({"num_heads": 3}, "2 attention heads, here 3; set num_heads"), ({"text_positions": 16}, "12 positions")],
)  # fmt: skip
def test_a_bert_of_other_sizes_is_refused(tmp_path: Path, changes: dict[str, int], says: str) -> None:
    bert(tmp_path)
    with pytest.raises(InputError, match=says):
        from_bert(tmp_path, **changes)


def test_weights_that_are_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither an official UNITER checkpoint \(uniter-base.pt"):
        from_bert(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"did you mean uniter-base"):
        from_bert(Path("uniter-bse.pt"))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="a gpt2, not a BERT"):
        from_bert(tmp_path)


# ------------------------------------------------------------------------------------------------- of our pre-training


def pretrained(**changes: Any) -> UniterPretraining:
    torch.manual_seed(11)
    return UniterPretraining(**{**SIZES, "region_classes": 1601, "tokenizer": None, **changes})


def test_a_pretraining_file_has_the_released_names_and_shapes(tmp_path: Path) -> None:
    """The released file's list of names, of two layers; shapes where no size of the model enters."""
    official = json.loads((Path(__file__).parents[2] / "recordings" / "uniter_pretraining_keys.json").read_text())
    source = pretrained()
    state = pretraining_to_official(source.state_dict())
    assert set(state) == {name for name in official if not any(f"layer.{i}." in name for i in range(2, 12))}
    assert list(state["region_classifier.net.3.weight"].shape) == [1601, 16]
    assert torch.equal(state["cls.predictions.decoder.weight"], source.encoder.text_embed.words.weight)
    assert torch.equal(state["feat_regress.weight"], source.encoder.region_embed.features.weight)
    again = pretrained()
    for parameter in again.parameters():
        torch.nn.init.zeros_(parameter)
    write_official(source, tmp_path / "uniter.pt")
    assert load_official(again, tmp_path / "uniter.pt") == frozenset()
    for name, tensor in source.state_dict().items():
        if not name.startswith("rank."):
            assert torch.equal(tensor, again.state_dict()[name]), name
    assert again.loaded_heads == {name for name, _ in again.head_parameters()}


def test_what_was_pretrained_starts_a_ranking_network(tmp_path: Path) -> None:
    """By the official file, and by a run's checkpoint, which has what trained and nothing of the ranking head."""
    source = pretrained()
    write_official(source, tmp_path / "uniter.pt")
    kept = {f"network.{name}": tensor for name, tensor in source.state_dict().items() if not name.startswith("rank.")}
    torch.save({"state_dict": kept | {"objective.of.own.scale": torch.ones(1)}, "epoch": 1}, tmp_path / "best.ckpt")
    for weights in ("uniter.pt", "best.ckpt#network."):
        target = fill(network(weights=str(tmp_path / weights)))
        for name, tensor in target.state_dict().items():
            expected = source.itm.state_dict()[name[5:]][1:] if name.startswith("rank.") else source.state_dict()[name]
            assert torch.equal(tensor, expected), (weights, name)
        assert target.loaded_heads == {"rank.weight", "rank.bias", "itm.weight", "itm.bias"}
        assert not target.fresh


def test_what_has_read_texts_alone_brings_no_regions(tmp_path: Path) -> None:
    source = pretrained(region_classes=None)
    source.learn({"words"}, "never")
    kept = {f"network.{name}": tensor for name, tensor in source.state_dict().items() if name not in source.unused_parameters()}
    torch.save({"state_dict": kept}, tmp_path / "best.ckpt")
    torch.manual_seed(5)
    before = network().encoder.region_embed.features.weight
    torch.manual_seed(5)
    target = fill(network(weights=str(tmp_path / "best.ckpt#network.")))
    assert torch.equal(target.encoder.text_embed.words.weight, source.encoder.text_embed.words.weight)
    assert target.encoder.region_embed.features.weight.shape == before.shape
    assert target.fresh == {
        name for name, _ in target.named_parameters() if name.startswith(("rank.", "itm.", "encoder.pooler", "encoder.region"))
    }
    onward = fill(pretrained(region_classes=None, weights=str(tmp_path / "best.ckpt#network.")))
    assert torch.equal(onward.words.dense.weight, source.words.dense.weight)
    del kept["network.encoder.layers.1.fc2.bias"]
    torch.save({"state_dict": kept}, tmp_path / "damaged.ckpt")
    with pytest.raises(InputError, match=r"lacks 1 tensors of this UNITER \(uniter\.encoder\.layer\.1\.output\.dense\.bias"):
        fill(network(weights=str(tmp_path / "damaged.ckpt#network.")))


def test_bert_brings_its_head_for_hidden_words(tmp_path: Path) -> None:
    torch.manual_seed(7)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
             "max_position_embeddings": 12, "layer_norm_eps": EPS}  # fmt: skip
    model = BertForMaskedLM(BertConfig(**sizes)).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(tmp_path / "whole")
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path / "bare")
    started = fill(pretrained(weights=str(tmp_path / "whole"), dropout=0.0)).eval()
    tokens = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    index, names = torch.arange(2), ("", "")
    texts = TextBatch(names, names, index, index, tokens, torch.ones_like(tokens, dtype=torch.bool))
    with torch.no_grad():
        words = started.encode_masked(MaskedBatch(ImageBatch(names, index), texts, "mlm"), text_only=True).words_BTD
        logits = started.word_logits(words.flatten(0, 1)).unflatten(0, (2, 7))
        torch.testing.assert_close(logits, model(tokens).logits, atol=1e-5, rtol=1e-4)
    assert not any(name.startswith("words.") for name in started.fresh)
    bare = fill(pretrained(weights=str(tmp_path / "bare")))
    assert {"words.dense.weight", "words.bias", "itm.weight"} <= bare.fresh
    assert not any(name.startswith("encoder.layers") for name in bare.fresh)


@pytest.mark.parametrize(
    "weights", ["https://acvrpublicycchen.blob.core.windows.net/uniter/pretrained/uniter-base.pt", "mine.pt"]
)
def test_the_official_address_is_closed_and_the_error_says_what_to_do(weights: str) -> None:
    with pytest.raises(InputError, match=r"HTTP 409, Public access is not permitted; ChenRocks/UNITER issue 96") as told:
        fill(network(weights=weights))
    for part in ("crosslight sweep run uniter/pretrain", "ViLT", "CROSSLIGHT_UNITER_URL", "RUN/checkpoints/best.ckpt#network."):
        assert part in str(told.value)


def test_the_official_name_says_so_too_unless_a_mirror_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(remote: Any, folder: Path) -> None:
        raise InputError(f"{remote.url}: the server answers 409 Public access is not permitted on this storage account.")

    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path))
    monkeypatch.delenv("CROSSLIGHT_UNITER_URL", raising=False)
    monkeypatch.setattr(official, "fetch", refused)
    with pytest.raises(InputError, match=r"answers 409 .*since November 2024 .*uniter/pretrain"):
        load(network(), "uniter-base")
    monkeypatch.setenv("CROSSLIGHT_UNITER_URL", "https://mirror.example/uniter")
    with pytest.raises(InputError, match=r"mirror\.example/uniter/uniter-base\.pt: the server answers 409 .*on another machine"):
        load(network(), "uniter-base")


def test_official_names_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "release"
    write_official(network(), release / "uniter-base.pt")
    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CROSSLIGHT_UNITER_URL", release.as_uri())
    asked = []
    monkeypatch.setattr(official, "fetch", lambda remote, folder: asked.append(remote.url) or shutil.copy(
        release / "uniter-base.pt", folder / "uniter-base.pt"))  # fmt: skip
    for _ in range(2):
        fresh = network()
        load(fresh, "uniter-base")
        assert fresh.loaded_heads == {"rank.weight", "rank.bias", "itm.weight", "itm.bias"}
    assert asked == [f"{release.as_uri()}/uniter-base.pt"]
